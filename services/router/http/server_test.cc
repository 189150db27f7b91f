// The server over bare loopback sockets with a handler that the test plays: what is refused and
// how, that answers keep their order, and that a client that leaves is noticed.
#include "services/router/http/server.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>

#include "services/router/http/exchange.h"
#include "services/router/http/test_client.h"

namespace trivium::router::http {
namespace {

using std::chrono::milliseconds;

// "/echo" answers with what it was asked; "/wait" leaves the answer to the test.
class TestHandler final : public Handler {
 public:
  std::optional<Response> Refuse(const RequestHead& head) override {
    if (head.path == "/echo" || head.path == "/wait") return std::nullopt;
    return Error(404, "no such path");
  }
  void Handle(Request request, std::shared_ptr<Exchange> exchange) override {
    if (request.head.path == "/echo") {
      return exchange->Send({.status = 200, .body = request.head.method + " " + *request.body});
    }
    const std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(exchange));
    held_.push_back(std::move(request));
    changed_.notify_all();
  }
  Response Error(int status, std::string_view message) const override {
    return {.status = status, .body = "error: " + std::string(message)};
  }

  std::shared_ptr<Exchange> Next() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !waiting_.empty(); });
    const std::shared_ptr<Exchange> next = waiting_.front();
    waiting_.erase(waiting_.begin());
    return next;
  }
  void LetGo() {
    const std::lock_guard lock(mutex_);
    held_.clear();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::shared_ptr<Exchange>> waiting_;
  std::vector<Request> held_;  // until LetGo
};

// Set once, from another thread.
class Flag {
 public:
  void Set() {
    const std::lock_guard lock(mutex_);
    is_set_ = true;
    changed_.notify_all();
  }
  void Await() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return is_set_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_set_ = false;
};

class ServerTest : public testing::Test {
 protected:
  void Start(Limits limits = {}) {
    auto started = Server::Start({.listen = "127.0.0.1:0", .loopback_only = true, .limits = limits},
                                 &handler_, &registry_);
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
  }
  int port() const { return server_->port(); }
  double Metric(const std::string& series) const {
    const std::string text = registry_.Text();
    const size_t at = text.find("\ntrivium_router_http_" + series + " ");
    return at == std::string::npos ? -1 : std::atof(text.c_str() + text.find(' ', at + 1));
  }
  double Refused(const std::string& reason) const {
    return Metric("refused_total{reason=\"" + reason + "\"}");
  }
  // Answers are counted before they are sent, but a connection ends a little after its client does.
  void AwaitMetric(const std::string& series, double value) const {
    while (Metric(series) != value) std::this_thread::yield();
  }

  telemetry::Metrics registry_;
  TestHandler handler_;
  std::unique_ptr<Server> server_;
};

constexpr char kGet[] = "GET /echo HTTP/1.1\r\nHost: test\r\n\r\n";
constexpr char kWait[] = "GET /wait?query HTTP/1.1\r\nHost: test\r\n\r\n";

TEST_F(ServerTest, AnswersKeepTheOrderOfPipelinedRequests) {
  Start();
  TestClient client(port());
  std::string rest = JsonRequest("/echo", "first");
  for (int i = 0; i < 5000; ++i) rest += kGet;
  client.Send(std::string(kWait) + rest);
  handler_.Next()->Send({.status = 200, .body = "waited"});
  EXPECT_EQ(client.Read().body, "waited");
  EXPECT_EQ(client.Read().body, "POST first");
  for (int i = 0; i < 5000; ++i) ASSERT_EQ(client.Read().body, "GET ") << i;
  EXPECT_EQ(Metric("requests_total{status=\"200\"}"), 5002);
}

TEST_F(ServerTest, BytesMayComeOneByOne) {
  Start();
  TestClient client(port());
  for (const char byte : JsonRequest("/%65cho?a=b", "hello")) client.Send({&byte, 1});
  EXPECT_EQ(client.Read().body, "POST hello");
}

struct BadRequest {
  std::string request;
  int status;
  const char* refusal;  // nullptr: not the server's own
};

TEST_F(ServerTest, BadRequestsAreRefusedAndTheServerLivesOn) {
  Start({.header_bytes_max = 1024, .body_bytes_max = 1000});
  const std::string host = "Host: test\r\n";
  const BadRequest table[] = {
      {"GET /nowhere HTTP/1.1\r\n" + host + "\r\n", 404, nullptr},
      {"nonsense\r\n\r\n", 400, "malformed"},
      {"GET /echo HTTP/2.0\r\n" + host + "\r\n", 400, "malformed"},
      {"GET /echo HTTP/1.1\r\n\r\n", 400, "malformed"},
      {"GET /echo HTTP/1.1\r\n" + host + host + "\r\n", 400, "malformed"},
      {"GET /%zz HTTP/1.1\r\n" + host + "\r\n", 400, "malformed"},
      {"GET /echo%00 HTTP/1.1\r\n" + host + "\r\n", 400, "malformed"},
      {"GET /echo HTTP/1.1\r\n" + host + "no colon\r\n\r\n", 400, "malformed"},
      {"POST /echo HTTP/1.1\r\n" + host + "Content-Length: -1\r\n\r\n", 400, "malformed"},
      {"POST /echo HTTP/1.1\r\n" + host + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400,
       "malformed"},
      {"POST /echo HTTP/1.1\r\n" + host +
           "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
       400, "malformed"},
      {"POST /echo HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip\r\n\r\n", 400, "malformed"},
      {"POST /echo HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400,
       "malformed"},
      {"POST /echo HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400,
       "malformed"},
      {"POST /echo HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400,
       "malformed"},
      {"POST /echo HTTP/1.1\r\n" + host + "Expect: magic\r\nContent-Length: 1\r\n\r\n", 417,
       "malformed"},
      {"GET /echo HTTP/1.1\r\n" + host + "Long: " + std::string(2000, 'x') + "\r\n\r\n", 431,
       "header_bytes"},
      {"GET /echo HTTP/1.1\r\n" + host + "Long: " + std::string(200000, 'x'), 431, "header_bytes"},
      {"POST /echo HTTP/1.1\r\n" + host + "Content-Length: 1001\r\n\r\n", 413, "body_bytes"},
      {"POST /echo HTTP/1.1\r\n" + host + "Content-Length: 99999999999999999999\r\n\r\n", 400,
       "malformed"},
      {"POST /echo HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3e9\r\n" +
           std::string(1001, 'x') + "\r\n0\r\n\r\n",
       413, "body_bytes"},
  };
  for (const BadRequest& bad : table) {
    const double before = bad.refusal == nullptr ? 0 : Refused(bad.refusal);
    TestClient client(port());
    client.Send(bad.request);
    const Answer answer = client.Read();
    EXPECT_EQ(answer.status, bad.status) << bad.request.substr(0, 200);
    EXPECT_EQ(answer.body.substr(0, 7), "error: ");
    if (bad.refusal == nullptr) continue;
    EXPECT_TRUE(answer.Has("Connection: close"));
    EXPECT_EQ(client.ReadToEnd(), "") << "an answer to what was refused: " << bad.request;
    EXPECT_EQ(Refused(bad.refusal), before + 1) << bad.request.substr(0, 200);
  }
  TestClient client(port());
  client.Send(kGet);
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(ServerTest, MutatedRequestsNeverBreakTheServer) {
  Start({.header_bytes_max = 2048,
         .body_bytes_max = 2048,
         .header_timeout = milliseconds(30),
         .body_timeout = milliseconds(30),
         .idle_timeout = milliseconds(30)});
  const std::string seeds[] = {
      JsonRequest("/echo", "{\"a\": 1}"), std::string(kGet) + kGet,
      "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\n"
      "Trailer: z\r\n\r\n"};
  constexpr uint32_t kSeed = 4711;
  std::mt19937 random(kSeed);
  for (int round = 0; round < 600; ++round) {
    std::string bytes = seeds[random() % std::size(seeds)];
    for (int i = random() % 4; i >= 0; --i) {
      const size_t at = random() % bytes.size();
      if (random() % 3 == 0) bytes.erase(at, random() % 9);
      if (random() % 3 == 0) bytes.insert(at, bytes.substr(random() % (bytes.size() + 1), 20));
      if (at < bytes.size()) bytes[at] = static_cast<char>(random());
      if (bytes.empty()) bytes = "x";
    }
    TestClient client(port());
    client.Send(bytes);
    if (round % 4 == 0) {
      client.Reset();
      continue;
    }
    const Answer answer = client.ReadHead();
    ASSERT_TRUE(answer.head.empty() || answer.Has("HTTP/1.1 "))
        << "seed " << kSeed << ", " << round;
  }
  TestClient client(port());
  client.Send(kGet);
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(ServerTest, SlowRequestsEndInTheirTime) {
  Start({.header_timeout = milliseconds(50), .body_timeout = milliseconds(50)});
  TestClient silent(port()), header(port()), body(port());
  header.Send("GET /echo HTTP/1.1\r\nHost: te");
  body.Send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nabc");
  EXPECT_EQ(silent.ReadToEnd(), "");
  EXPECT_EQ(header.Read().status, 408);
  EXPECT_EQ(body.Read().status, 408);
  EXPECT_EQ(Refused("header_timeout"), 2);
  EXPECT_EQ(Refused("body_timeout"), 1);
}

// Each line comes in time, the whole does not: the pause paces the attack and decides nothing.
TEST_F(ServerTest, DribblingDoesNotStretchATimeout) {
  Start({.header_timeout = milliseconds(200)});
  TestClient client(port());
  client.Send("GET /echo HTTP/1.1\r\nHost: test\r\n");
  std::atomic<bool> is_over{false};
  std::thread dribble([&] {
    while (!is_over) {
      client.Send("A: b\r\n");
      std::this_thread::sleep_for(milliseconds(20));
    }
  });
  EXPECT_EQ(client.Read().status, 408);
  is_over = true;
  dribble.join();
}

TEST_F(ServerTest, IdleConnectionsAreClosed) {
  Start({.idle_timeout = milliseconds(50)});
  TestClient client(port());
  client.Send(kGet);
  EXPECT_EQ(client.Read().status, 200);
  EXPECT_EQ(client.ReadToEnd(), "");
  EXPECT_EQ(Refused("header_timeout"), 0);
}

TEST_F(ServerTest, ChunkedBodiesAndContinue) {
  Start();
  TestClient client(port());
  client.Send(
      "POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue"
      "\r\n\r\n");
  EXPECT_EQ(client.Read().status, 100);
  client.Send("3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\nTrailer: x\r\n\r\n");
  EXPECT_EQ(client.Read().body, "POST abcdefg");
  client.Send(
      "POST /nowhere HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nExpect: 100-continue"
      "\r\n\r\n");
  const Answer refused = client.Read();
  EXPECT_EQ(refused.status, 404) << "without asking for the body";
  EXPECT_TRUE(refused.Has("Connection: close"));
}

TEST_F(ServerTest, HeadIsGetWithoutTheBody) {
  Start();
  TestClient client(port());
  client.Send("HEAD /echo HTTP/1.1\r\nHost: test\r\n\r\n");
  EXPECT_TRUE(client.Read(false).Has("Content-Length: 4\r\n"));
  client.Send("HEAD /nowhere HTTP/1.1\r\nHost: test\r\n\r\n");
  EXPECT_EQ(client.Read(false).status, 404);
  client.Send(kGet);
  EXPECT_EQ(client.Read().body, "GET ");
}

void StreamAnswerTo(const std::shared_ptr<Exchange>& exchange) {
  exchange->BeginStream({.status = 200, .body = "", .content_type = "text/event-stream"});
  exchange->Write("one ", [](bool) {});
  exchange->Write("two", [](bool) {});
  exchange->End();
}

TEST_F(ServerTest, StreamsForBothVersions) {
  Start();
  TestClient client(port());
  for (int i = 0; i < 2; ++i) {
    client.Send(kWait);
    StreamAnswerTo(handler_.Next());
    const Answer answer = client.Read();
    EXPECT_TRUE(answer.Has("Transfer-Encoding: chunked"));
    EXPECT_EQ(answer.body, "one two");
  }
  TestClient old(port());
  old.Send("GET /wait HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  StreamAnswerTo(handler_.Next());
  const Answer answer = old.Read();
  EXPECT_TRUE(answer.Has("Connection: close"));
  EXPECT_EQ(answer.body, "one two");
}

TEST_F(ServerTest, AClientThatLeavesIsNoticed) {
  Start();
  int left = 0;
  for (const bool is_streaming : {false, true}) {
    for (const bool is_hard : {false, true}) {
      TestClient client(port());
      client.Send(kWait);
      const std::shared_ptr<Exchange> exchange = handler_.Next();
      Flag gone, refused;
      exchange->OnGone([&] { gone.Set(); });
      if (is_streaming) {
        exchange->BeginStream({});
        exchange->Write("some", [](bool) {});
        EXPECT_EQ(client.ReadHead().status, 200);
      }
      is_hard ? client.Reset() : client.Close();
      gone.Await();
      exchange->Write("more", [&](bool ok) {
        EXPECT_FALSE(ok);
        refused.Set();
      });
      refused.Await();
      AwaitMetric("clients_left_total", ++left);
    }
  }
  AwaitMetric("connections", 0);
}

TEST_F(ServerTest, AReaderThatDoesNotReadIsGivenUp) {
  Start({.write_timeout = milliseconds(100)});
  TestClient client(port());
  client.Send(kWait);
  const std::shared_ptr<Exchange> exchange = handler_.Next();
  Flag given_up;
  int64_t written = 0;
  const std::string piece(256 << 10, 'x');
  std::function<void(bool)> on_done = [&](bool ok) {
    if (!ok) return given_up.Set();
    written += static_cast<int64_t>(piece.size());
    exchange->Write(piece, on_done);
  };
  exchange->BeginStream({});
  exchange->Write(piece, on_done);
  given_up.Await();
  AwaitMetric("refused_total{reason=\"slow_reader\"}", 1);
  EXPECT_LT(written, 64 << 20) << "what the kernel holds, and no more";
}

TEST_F(ServerTest, ConnectionsAreBounded) {
  Start({.connections_max = 2});
  auto first = std::make_unique<TestClient>(port());
  TestClient second(port());
  first->Send(kGet);
  second.Send(kGet);
  EXPECT_EQ(first->Read().status, 200);
  EXPECT_EQ(second.Read().status, 200);
  TestClient third(port());
  EXPECT_EQ(third.Read().status, 503);
  EXPECT_EQ(Refused("connections"), 1);
  first.reset();
  AwaitMetric("connections", 1);
  TestClient fourth(port());
  fourth.Send(kGet);
  EXPECT_EQ(fourth.Read().status, 200);
}

TEST_F(ServerTest, BodiesOfAllClientsAreBounded) {
  Start({.body_bytes_max = 1000, .body_memory_bytes = 1500});
  TestClient first(port()), second(port());
  first.Send(JsonRequest("/wait", std::string(600, 'x')));
  const std::shared_ptr<Exchange> exchange = handler_.Next();
  second.Send(JsonRequest("/echo", std::string(1000, 'x')));
  EXPECT_EQ(second.Read().status, 503);
  EXPECT_EQ(Refused("body_memory"), 1);
  handler_.LetGo();  // the answer may take longer than its question
  TestClient third(port());
  third.Send(JsonRequest("/echo", std::string(1000, 'x')));
  EXPECT_EQ(third.Read().status, 200);
  exchange->Send({});
  EXPECT_EQ(first.Read().status, 200);
}

// Whoever works at a question holds it, whether or not somebody still waits for the answer.
TEST_F(ServerTest, ABodyCountsWhenItsClientHasLeft) {
  Start({.body_bytes_max = 1000, .body_memory_bytes = 1500});
  const auto post = [&] {
    TestClient client(port());
    client.Send(JsonRequest("/echo", std::string(1000, 'x')));
    return client.Read().status;
  };
  TestClient leaver(port());
  leaver.Send(JsonRequest("/wait", std::string(600, 'x')));
  handler_.Next();
  leaver.Reset();
  AwaitMetric("connections", 0);
  EXPECT_EQ(post(), 503);
  handler_.LetGo();
  EXPECT_EQ(post(), 200);
}

TEST_F(ServerTest, AChunkedBodyCountsAsTheBytesThatItHas) {
  Start({.body_bytes_max = 1000, .body_memory_bytes = 1500});
  TestClient first(port()), second(port());
  first.Send(
      "POST /wait HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: "
      "chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
  handler_.Next();
  second.Send(JsonRequest("/echo", std::string(1000, 'x')));
  EXPECT_EQ(second.Read().status, 200);
}

TEST_F(ServerTest, DrainLetsAnswersEndAndRefusesTheRest) {
  Start();
  TestClient idle(port()), streaming(port());
  idle.Send(kGet);
  EXPECT_EQ(idle.Read().status, 200);
  streaming.Send(kWait);
  const std::shared_ptr<Exchange> exchange = handler_.Next();
  exchange->BeginStream({});
  exchange->Write("before ", [](bool) {});
  EXPECT_EQ(streaming.ReadHead().status, 200);
  server_->Drain();
  EXPECT_EQ(idle.ReadToEnd(), "");
  EXPECT_FALSE(TestClient(port()).is_connected());
  exchange->Write("after", [](bool) {});
  exchange->End();
  const std::string rest = streaming.ReadToEnd();
  EXPECT_NE(rest.find("before "), std::string::npos);
  EXPECT_NE(rest.find("after"), std::string::npos);
  EXPECT_EQ(rest.substr(rest.size() - 5), "0\r\n\r\n");
  streaming.Close();
  server_->AwaitClosed();
}

TEST_F(ServerTest, AbortEndsEverything) {
  Start();
  TestClient client(port());
  client.Send(kWait);
  const std::shared_ptr<Exchange> exchange = handler_.Next();
  Flag gone;
  exchange->OnGone([&] { gone.Set(); });
  server_->Drain();
  server_->Abort();
  gone.Await();
  server_->AwaitClosed();
  server_.reset();
  exchange->Send({});  // late: nobody takes it
}

TEST(StartTest, RefusesWhatItMayNotOrCannotBind) {
  telemetry::Metrics registry;
  TestHandler handler;
  const auto start = [&](const std::string& listen) {
    return Server::Start({.listen = listen, .loopback_only = true, .limits = {}}, &handler,
                         &registry);
  };
  EXPECT_EQ(start("0.0.0.0:0").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(start("unix:/tmp/x").status().code(), absl::StatusCode::kInvalidArgument);
  const auto first = start("127.0.0.1:0");
  ASSERT_TRUE(first.ok());
  const auto second = start("127.0.0.1:" + std::to_string((*first)->port()));
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(start("[::1]:0").ok());
}

TEST(DecodePathTest, Table) {
  EXPECT_EQ(DecodePath("/a%2Fb?c#d"), "/a/b");
  EXPECT_EQ(DecodePath("/a#b"), "/a");
  EXPECT_EQ(DecodePath("/%e4%BD%a0"), "/\xe4\xbd\xa0");
  for (const char* bad : {"/%", "/%4", "/%4g", "/%00", "/%:0"}) {
    EXPECT_EQ(DecodePath(bad), std::nullopt) << bad;
  }
}

}  // namespace
}  // namespace trivium::router::http

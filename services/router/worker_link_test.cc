// The Watch and stage clients against a real gRPC server on the loopback interface.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <future>
#include <mutex>
#include <thread>

#include "common/net/server.h"
#include "services/router/dispatch/grpc_clients.h"
#include "services/router/membership/watch_client.h"
#include "trivium/v1/stage.grpc.pb.h"

namespace trivium::router {
namespace {

constexpr char kToken[] = "0123456789abcdef";

// Reports `states` times and then ends, or waits for the other side when that is negative.
class WorkerService final : public v1::Worker::Service {
 public:
  explicit WorkerService(int states) : states_(states) {}
  grpc::Status Watch(grpc::ServerContext* context, const v1::WatchRequest*,
                     grpc::ServerWriter<v1::WorkerState>* writer) override {
    const auto token = context->client_metadata().find(net::kClusterTokenKey);
    if (token == context->client_metadata().end() || token->second != kToken) {
      return {grpc::StatusCode::UNAUTHENTICATED, "wrong token"};
    }
    for (int i = 0; states_ < 0 || i < states_; ++i) {
      v1::WorkerState state;
      state.set_sequence(i + 1);
      if (!writer->Write(state)) break;
      if (states_ < 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return grpc::Status::OK;
  }

 private:
  const int states_;
};

class DecodeService final : public v1::Decode::Service {
 public:
  grpc::Status Decode(grpc::ServerContext* context, const v1::DecodeRequest* request,
                      grpc::ServerWriter<v1::DecodeEvent>* writer) override {
    const auto id = context->client_metadata().find(net::kRequestIdKey);
    if (id == context->client_metadata().end()) return {grpc::StatusCode::INTERNAL, "no id"};
    v1::DecodeEvent event;
    for (int i = 0; i < request->sampling().max_tokens(); ++i) {
      event.mutable_token()->set_index(i);
      if (!writer->Write(event)) break;
    }
    while (request->output_index() < 0 && !context->IsCancelled()) std::this_thread::yield();
    return {grpc::StatusCode::RESOURCE_EXHAUSTED,
            std::string(id->second.data(), id->second.size())};
  }
  grpc::Status EndChoice(grpc::ServerContext* context, const v1::EndChoiceRequest* request,
                         v1::EndChoiceResponse*) override {
    const auto token = context->client_metadata().find(net::kClusterTokenKey);
    if (token != context->client_metadata().end() && token->second == kToken) {
      ended.set_value(*request);
    }
    return grpc::Status::OK;
  }

  std::promise<v1::EndChoiceRequest> ended;  // the first that comes with the token
};

// What came so far, and a wait until something holds of it.
struct Log {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<uint64_t> sequences;
  std::vector<absl::Status> ends;
  std::vector<int32_t> indices;

  template <typename Change>
  void Note(Change change) {
    std::lock_guard lock(mutex);
    change();
    changed.notify_all();
  }
  template <typename Condition>
  void Await(Condition condition) {
    std::unique_lock lock(mutex);
    changed.wait(lock, condition);
  }
};

std::unique_ptr<net::Server> Serve(grpc::Service* service) {
  auto server =
      net::Server::Start({.listen = "127.0.0.1:0", .services = {service}, .loopback_only = true});
  TRIVIUM_CHECK(server.ok(), "{}", Message(server.status()));
  return *std::move(server);
}

class WatchTest : public testing::Test {
 protected:
  // Opens what is due, with time that runs a second a call.
  std::unique_ptr<WatchClients> Watch(const net::Server& server, const std::string& token) {
    const auto channel = net::MakeChannel("127.0.0.1:" + std::to_string(server.port()));
    return std::make_unique<WatchClients>(
        std::vector{channel}, token,
        WatchHandlers{[this](WorkerIndex, const v1::WorkerState& state) {
                        log_.Note([&] { log_.sequences.push_back(state.sequence()); });
                        return state.sequence() != ends_at_;
                      },
                      [this](WorkerIndex, const absl::Status& status) {
                        log_.Note([&] { log_.ends.push_back(status); });
                      }});
  }
  // Whether a second stream ends too. The pause before it begins once a Tick has seen the end of
  // the first, and lasts 0.1 s.
  bool EndsTwice(WatchClients& watch) {
    for (int i = 0; i < 60000; ++i) {
      clock_.Advance(std::chrono::milliseconds(25));
      watch.Tick(clock_.Now());
      std::unique_lock lock(log_.mutex);
      if (log_.changed.wait_for(lock, std::chrono::milliseconds(1),
                                [&] { return log_.ends.size() >= 2; })) {
        return true;
      }
    }
    return false;
  }
  VirtualClock clock_;
  Log log_;
  uint64_t ends_at_ = 0;  // the state that the stream is not to go on from
};

TEST_F(WatchTest, AStreamThatEndsIsOpenedAgainAfterAPause) {
  WorkerService service(2);
  const auto server = Serve(&service);
  const auto watch = Watch(*server, kToken);
  watch->Tick(clock_.Now());
  log_.Await([&] { return log_.ends.size() == 1; });
  EXPECT_EQ(log_.sequences, (std::vector<uint64_t>{1, 2}));
  EXPECT_TRUE(EndsTwice(*watch));
  EXPECT_TRUE(log_.ends[0].ok());
}

TEST_F(WatchTest, AStreamThatDoesNotAddUpBeginsAnew) {
  WorkerService service(-1);
  const auto server = Serve(&service);
  ends_at_ = 3;
  const auto watch = Watch(*server, kToken);
  watch->Tick(clock_.Now());
  EXPECT_TRUE(EndsTwice(*watch));
  EXPECT_EQ(log_.ends[0].code(), absl::StatusCode::kCancelled);
  EXPECT_GE(std::count(log_.sequences.begin(), log_.sequences.end(), 1), 2);
}

TEST_F(WatchTest, AWrongTokenIsSaidSo) {
  WorkerService service(2);
  const auto server = Serve(&service);
  const auto watch = Watch(*server, "another token 16");
  watch->Tick(clock_.Now());
  log_.Await([&] { return !log_.ends.empty(); });
  EXPECT_EQ(log_.ends[0].code(), absl::StatusCode::kUnauthenticated);
  EXPECT_TRUE(log_.sequences.empty());
}

TEST_F(WatchTest, DestructionEndsAnOpenStream) {
  WorkerService service(-1);
  const auto server = Serve(&service);
  auto watch = Watch(*server, kToken);
  watch->Tick(clock_.Now());
  log_.Await([&] { return log_.sequences.size() >= 3; });
  watch.reset();
  EXPECT_EQ(log_.ends.size(), 1u);
}

class StageClientTest : public testing::Test {
 protected:
  std::shared_ptr<StageCall> Open(int32_t tokens, bool stays_open) {
    v1::DecodeRequest request;
    request.mutable_key()->set_request_id("r-1");
    request.mutable_sampling()->set_max_tokens(tokens);
    request.set_output_index(stays_open ? -1 : 0);
    return clients_.Decode(
        0, request, std::nullopt,
        {[this](const v1::DecodeEvent& event) {
           log_.Note([&] { log_.indices.push_back(event.token().index()); });
         },
         [this](const absl::Status& status) { log_.Note([&] { log_.ends.push_back(status); }); }});
  }

  Log log_;
  DecodeService service_;
  std::unique_ptr<net::Server> server_ = Serve(&service_);
  GrpcStageClients clients_{{net::MakeChannel("127.0.0.1:" + std::to_string(server_->port()))},
                            kToken};
};

TEST_F(StageClientTest, EventsComeInOrderAndTheStatusLast) {
  Open(5000, false);
  log_.Await([&] { return !log_.ends.empty(); });
  ASSERT_EQ(log_.indices.size(), 5000u);
  for (int i = 0; i < 5000; ++i) ASSERT_EQ(log_.indices[i], i);
  EXPECT_EQ(log_.ends[0], ResourceExhausted("r-1"));
}

TEST_F(StageClientTest, CancelReachesTheWorkerAndEndsTheCallOnce) {
  const auto call = Open(3, true);
  log_.Await([&] { return log_.indices.size() == 3; });
  call->Cancel();
  call->Cancel();
  log_.Await([&] { return !log_.ends.empty(); });
  EXPECT_EQ(log_.ends[0].code(), absl::StatusCode::kCancelled);
  call->Cancel();  // after the end: nothing
}

TEST_F(StageClientTest, AChoiceThatIsEndedIsToldToTheWorker) {
  v1::EndChoiceRequest request;
  request.mutable_key()->set_request_id("r-1");
  request.set_choice(3);
  clients_.EndChoice(0, request);
  EXPECT_EQ(service_.ended.get_future().get().SerializeAsString(), request.SerializeAsString());
}

TEST_F(StageClientTest, AMissingWorkerIsUnavailableAtOnce) {
  server_.reset();
  Open(3, false);
  log_.Await([&] { return !log_.ends.empty(); });
  EXPECT_EQ(log_.ends[0].code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace trivium::router

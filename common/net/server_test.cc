#include "common/net/server.h"

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <condition_variable>
#include <future>
#include <mutex>
#include <thread>

#include "common/net/health.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "trivium/v1/inference.grpc.pb.h"
#include "trivium/v1/stage.grpc.pb.h"

namespace trivium::net {
namespace {

using grpc::health::v1::HealthCheckResponse;
using testing::HasSubstr;

// Before main, and so before any thread of gRPC.
const bool kSignalsBlocked = (BlockShutdownSignals(true), true);

// A stream that sends one message and ends when it is released or cancelled; a stubborn one ignores
// both.
class OpenStream final : public grpc::ServerWriteReactor<v1::GenerateResponse> {
 public:
  explicit OpenStream(bool stubborn) : finished_(stubborn) { StartWrite(&response_); }
  void Release() {
    if (!finished_.exchange(true)) Finish(grpc::Status::OK);
  }
  void OnCancel() override {
    if (!finished_.exchange(true)) Finish(grpc::Status::CANCELLED);
  }
  void OnDone() override { delete this; }

 private:
  v1::GenerateResponse response_;
  std::atomic<bool> finished_;
};

class TestService final : public v1::Inference::CallbackService {
 public:
  std::string token;
  bool stubborn = false;

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest*,
                                       v1::ListModelsResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    response->add_models()->set_id("m");
    reactor->Finish(CheckClusterToken(*context, token));
    return reactor;
  }
  grpc::ServerUnaryReactor* ClusterStatus(grpc::CallbackServerContext* context,
                                          const v1::ClusterStatusRequest*,
                                          v1::ClusterStatusResponse*) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    std::string text;
    for (int i = 0; i < 3000; ++i) text += "\xe2\x82\xac";
    reactor->Finish(ToGrpc(absl::ResourceExhaustedError(text), std::chrono::seconds(2)));
    return reactor;
  }
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    response->add_pieces(std::to_string(request->text().size()));
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(grpc::CallbackServerContext*,
                                                           const v1::GenerateRequest*) override {
    const std::lock_guard lock(mutex_);
    stream_ = new OpenStream(stubborn);
    return stream_;
  }
  void Release() {
    const std::lock_guard lock(mutex_);
    stream_->Release();
  }

 private:
  std::mutex mutex_;
  OpenStream* stream_ = nullptr;
};

class StageService final : public v1::Worker::CallbackService {};

struct Fixture {
  TestService service;
  StageService stage;
  std::unique_ptr<Server> server;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Inference::Stub> stub;

  explicit Fixture(int drain_timeout_s = 30) {
    ServerOptions options;
    options.listen = "127.0.0.1:0";
    options.services = {&service, &stage};
    options.loopback_only = true;
    options.drain_timeout_s = drain_timeout_s;
    auto started = Server::Start(options);
    TRIVIUM_CHECK(started.ok(), "{}", Message(started.status()));
    server = std::move(started).value();
    channel = MakeChannel(fmt::format("127.0.0.1:{}", server->port()));
    stub = v1::Inference::NewStub(channel);
  }

  // UNKNOWN stands for an error of the call.
  HealthCheckResponse::ServingStatus Health(const std::string& name) {
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(name);
    HealthCheckResponse response;
    const auto status =
        grpc::health::v1::Health::NewStub(channel)->Check(&context, request, &response);
    return status.ok() ? response.status() : HealthCheckResponse::UNKNOWN;
  }

  grpc::Status ListModels(const std::vector<std::pair<std::string, std::string>>& metadata) {
    grpc::ClientContext context;
    for (const auto& [key, value] : metadata) context.AddMetadata(key, value);
    v1::ListModelsResponse response;
    return stub->ListModels(&context, {}, &response);
  }
};

TEST(ServerTest, HealthOfEveryServiceByName) {
  Fixture f;
  for (const char* name : {"", "trivium.v1.Inference", "trivium.v1.Worker"}) {
    EXPECT_EQ(f.Health(name), HealthCheckResponse::SERVING) << name;
  }
  EXPECT_EQ(f.Health("trivium.v1.Decode"), HealthCheckResponse::UNKNOWN);
  f.server->SetServing(false);
  for (const char* name : {"", "trivium.v1.Inference", "trivium.v1.Worker"}) {
    EXPECT_EQ(f.Health(name), HealthCheckResponse::NOT_SERVING) << name;
  }
  f.server->SetServing(true);
  EXPECT_EQ(f.Health("trivium.v1.Inference"), HealthCheckResponse::SERVING);
}

// Sends one ServerReflectionRequest as bytes: a second copy of its .proto would end the process.
std::string Reflect(const std::shared_ptr<grpc::Channel>& channel, const std::string& request) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  void* tag;
  bool ok = false;
  auto call = stub.PrepareCall(
      &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  call->StartCall(nullptr);
  queue.Next(&tag, &ok);
  grpc::Slice slice(request);
  call->Write(grpc::ByteBuffer(&slice, 1), nullptr);
  queue.Next(&tag, &ok);
  grpc::ByteBuffer response;
  call->Read(&response, nullptr);
  queue.Next(&tag, &ok);
  std::vector<grpc::Slice> slices;
  std::string text;
  if (ok && response.Dump(&slices).ok()) {
    for (const grpc::Slice& part : slices) text.append(part.begin(), part.end());
  }
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  queue.Next(&tag, &ok);
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
  return text;
}

TEST(ServerTest, ReflectionListsAndDescribesServices) {
  Fixture f;
  const std::string list = Reflect(f.channel, std::string("\x3a\x00", 2));
  EXPECT_THAT(list, HasSubstr("trivium.v1.Inference"));
  EXPECT_THAT(list, HasSubstr("trivium.v1.Worker"));
  const std::string symbol = "trivium.v1.Inference";
  const std::string file =
      Reflect(f.channel, "\x22" + std::string(1, static_cast<char>(symbol.size())) + symbol);
  EXPECT_THAT(file, HasSubstr("trivium/v1/inference.proto"));
  EXPECT_THAT(file, HasSubstr("GenerateRequest"));
  EXPECT_THAT(list, HasSubstr("grpc.health.v1.Health"));
}

TEST(ServerTest, ClusterToken) {
  Fixture f;
  EXPECT_TRUE(f.ListModels({}).ok());
  f.service.token = "secret-of-16-bytes";
  EXPECT_EQ(f.ListModels({}).error_code(), grpc::UNAUTHENTICATED);
  for (const std::string& wrong :
       {std::string(), std::string("secret-of-16-byteS"), std::string("secret"),
        std::string("secret-of-16-bytessecret-of-16-bytes"), std::string("secret-of-16-bytes ")}) {
    const grpc::Status status = f.ListModels({{kClusterTokenKey, wrong}});
    EXPECT_EQ(status.error_code(), grpc::UNAUTHENTICATED) << wrong;
    EXPECT_EQ(status.error_message().find("secret"), std::string::npos);
  }
  EXPECT_TRUE(f.ListModels({{kClusterTokenKey, f.service.token}}).ok());
  EXPECT_EQ(
      f.ListModels({{kClusterTokenKey, f.service.token}, {kClusterTokenKey, "x"}}).error_code(),
      grpc::UNAUTHENTICATED);
}

TEST(ServerTest, LongestErrorWithHintArrivesWhole) {
  Fixture f;
  grpc::ClientContext context;
  v1::ClusterStatusResponse response;
  const grpc::Status status = f.stub->ClusterStatus(&context, {}, &response);
  EXPECT_EQ(status.error_code(), grpc::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message().substr(0, 3), "\xe2\x82\xac") << status.error_message();
  EXPECT_EQ(RetryAfter(status), Duration(std::chrono::seconds(2)));
}

TEST(ServerTest, MessagesUpToTheLimit) {
  Fixture f;
  for (const auto& [bytes, fits] :
       {std::pair{kMessageBytesMax - 100, true}, std::pair{kMessageBytesMax + 1, false}}) {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    request.set_text(std::string(bytes, 'x'));
    v1::TokenizeResponse response;
    const grpc::Status status = f.stub->Tokenize(&context, request, &response);
    EXPECT_EQ(status.error_code(), fits ? grpc::OK : grpc::RESOURCE_EXHAUSTED);
  }
}

TEST(ServerTest, AddressErrors) {
  Fixture f;
  TestService service;
  ServerOptions options;
  options.services = {&service};
  options.listen = fmt::format("127.0.0.1:{}", f.server->port());
  auto second = Server::Start(options);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(second.status()), HasSubstr(options.listen + ": address in use"));
  options.listen = "nonsense";
  EXPECT_EQ(Server::Start(options).status().code(), absl::StatusCode::kInvalidArgument);
  options.listen = "0.0.0.0:0";
  options.loopback_only = true;
  EXPECT_EQ(Server::Start(options).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(f.ListModels({}).ok()) << "the first server lives on";
}

TEST(ServerTest, UnixSocket) {
  TestService service;
  ServerOptions options;
  options.listen = "unix:" + testing::TempDir() + "net_test.sock";
  options.services = {&service};
  options.loopback_only = true;
  auto server = Server::Start(options);
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_EQ((*server)->port(), 0);
  grpc::ClientContext context;
  v1::ListModelsResponse response;
  EXPECT_TRUE(v1::Inference::NewStub(MakeChannel(options.listen))
                  ->ListModels(&context, {}, &response)
                  .ok());
}

// A running stream, and the server draining on its own thread.
class DrainTest : public testing::Test {
 protected:
  explicit DrainTest() : f_(30) {}

  void OpenStreamAndWait() {
    reader_ = f_.stub->Generate(&context_, {});
    v1::GenerateResponse response;
    ASSERT_TRUE(reader_->Read(&response));
    waiter_ = std::async(std::launch::async,
                         [this] { f_.server->WaitForShutdown([this] { draining_.set_value(); }); });
  }
  grpc::Status EndOfStream() {
    v1::GenerateResponse response;
    while (reader_->Read(&response)) {
    }
    return reader_->Finish();
  }

  Fixture f_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader_;
  std::promise<void> draining_;
  std::future<void> waiter_;
};

TEST_F(DrainTest, SignalLetsARunningStreamEndAndRefusesNewCalls) {
  OpenStreamAndWait();
  ASSERT_EQ(kill(getpid(), SIGTERM), 0);
  draining_.get_future().wait();
  // Refusing begins a moment after on_drain, and each try before it is answered.
  while (f_.ListModels({}).ok()) {
  }
  EXPECT_EQ(waiter_.wait_for(std::chrono::seconds(0)), std::future_status::timeout);
  f_.service.Release();
  EXPECT_TRUE(EndOfStream().ok());
  waiter_.get();
  EXPECT_EQ(f_.ListModels({}).error_code(), grpc::UNAVAILABLE);
}

TEST_F(DrainTest, ShutdownDrainsToo) {
  OpenStreamAndWait();
  f_.server->Shutdown();
  draining_.get_future().wait();
  f_.service.Release();
  EXPECT_TRUE(EndOfStream().ok());
  waiter_.get();
}

TEST(ServerTest, ReloadsAtSighupUntilItIsToldToEnd) {
  Fixture f(30);
  int reloads = 0;
  ASSERT_EQ(kill(getpid(), SIGHUP), 0);  // before it waits: it is not lost
  f.server->WaitForShutdown(nullptr, nullptr, [&] {
    if (++reloads == 3) return f.server->Shutdown();
    ASSERT_EQ(kill(getpid(), SIGHUP), 0);
  });
  EXPECT_EQ(reloads, 3);
}

TEST_F(DrainTest, SecondSignalCancels) {
  OpenStreamAndWait();
  ASSERT_EQ(kill(getpid(), SIGTERM), 0);
  draining_.get_future().wait();
  ASSERT_EQ(kill(getpid(), SIGINT), 0);
  EXPECT_FALSE(EndOfStream().ok());
  waiter_.get();
}

class FakeDoor final : public Door {
 public:
  void Drain() override { drained.set_value(); }
  void AwaitClosed() override { closed.get_future().wait(); }
  void Abort() override {
    is_aborted = true;
    closed.set_value();
  }
  std::promise<void> drained, closed;
  bool is_aborted = false;
};

TEST(ServerTest, AnotherDoorIsDrainedAwaitedAndCutShortLikeTheServer) {
  for (const bool ends_by_itself : {true, false}) {
    Fixture f;
    FakeDoor door;
    auto waiter =
        std::async(std::launch::async, [&] { f.server->WaitForShutdown(nullptr, &door); });
    f.server->Shutdown();
    door.drained.get_future().wait();
    EXPECT_EQ(waiter.wait_for(std::chrono::seconds(0)), std::future_status::timeout);
    if (ends_by_itself) {
      door.closed.set_value();
    } else {
      ASSERT_EQ(kill(getpid(), SIGTERM), 0);
    }
    waiter.get();
    EXPECT_NE(door.is_aborted, ends_by_itself);
  }
}

// Over an hour's drain: a watcher that held it would hang this test.
TEST(ServerTest, HealthWatchFollowsAndDoesNotHoldTheDrain) {
  Fixture f(3600);
  grpc::ClientContext context, unknown_context;
  auto stub = grpc::health::v1::Health::NewStub(f.channel);
  grpc::health::v1::HealthCheckRequest request;
  request.set_service("trivium.v1.Inference");
  auto watch = stub->Watch(&context, request);
  request.set_service("nobody");
  auto unknown = stub->Watch(&unknown_context, request);
  HealthCheckResponse response;
  ASSERT_TRUE(unknown->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVICE_UNKNOWN);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  f.server->SetServing(false);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  f.server->SetServing(true);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  f.server->Shutdown();
  f.server->WaitForShutdown(nullptr);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  EXPECT_FALSE(watch->Read(&response));
  EXPECT_EQ(watch->Finish().error_code(), grpc::UNAVAILABLE);
  EXPECT_FALSE(unknown->Read(&response));
  EXPECT_EQ(unknown->Finish().error_code(), grpc::UNAVAILABLE);
}

TEST(ServerTest, HealthWatchersAreBoundedAndForgotten) {
  Fixture f;
  auto stub = grpc::health::v1::Health::NewStub(f.channel);
  HealthCheckResponse response;
  for (int round = 0; round < 2; ++round) {
    std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
    std::vector<std::unique_ptr<grpc::ClientReader<HealthCheckResponse>>> watches;
    for (size_t i = 0; i < HealthService::kWatchersMax; ++i) {
      contexts.push_back(std::make_unique<grpc::ClientContext>());
      watches.push_back(stub->Watch(contexts.back().get(), {}));
      // In the second round the server may still be forgetting the first.
      while (!watches.back()->Read(&response)) {
        ASSERT_EQ(round, 1) << i;
        ASSERT_EQ(watches.back()->Finish().error_code(), grpc::RESOURCE_EXHAUSTED);
        contexts.back() = std::make_unique<grpc::ClientContext>();
        watches.back() = stub->Watch(contexts.back().get(), {});
      }
    }
    if (round == 0) {
      grpc::ClientContext context;
      auto one_more = stub->Watch(&context, {});
      EXPECT_FALSE(one_more->Read(&response));
      EXPECT_EQ(one_more->Finish().error_code(), grpc::RESOURCE_EXHAUSTED);
    }
    for (auto& context : contexts) context->TryCancel();
    for (auto& watch : watches) EXPECT_EQ(watch->Finish().error_code(), grpc::CANCELLED);
  }
}

TEST(ServerDeathTest, ThirdSignalEndsAProcessWhoseCallIsStuck) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const auto drain = [] {
    Fixture f;
    f.service.stubborn = true;
    grpc::ClientContext context;
    auto reader = f.stub->Generate(&context, {});
    v1::GenerateResponse response;
    reader->Read(&response);
    kill(getpid(), SIGTERM);
    // Two kinds, because equal signals that wait become one.
    f.server->WaitForShutdown([] { kill(getpid(), SIGTERM), kill(getpid(), SIGINT); });
  };
  EXPECT_EXIT(drain(), testing::ExitedWithCode(1), "shutdown_forced reason=\"third signal\"");
}

TEST(ServerTest, TimeIsOverCancels) {
  Fixture f(1);
  grpc::ClientContext context;
  auto reader = f.stub->Generate(&context, {});
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  f.server->Shutdown();
  f.server->WaitForShutdown(nullptr);
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_FALSE(reader->Finish().ok());
}

}  // namespace
}  // namespace trivium::net

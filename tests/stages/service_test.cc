// Both workers behind real gRPC servers on the loopback interface, joined by the in-process
// transport.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <thread>

#include "common/model/testing/tiny_model.h"
#include "common/net/server.h"
#include "common/worker/run_worker.h"
#include "common/worker/runtime.h"
#include "common/worker/watch_service.h"
#include "services/decode/decode_stage.h"
#include "services/prefill/prefill_stage.h"
#include "trivium/v1/stage.grpc.pb.h"

namespace trivium::stages {
namespace {

constexpr char kToken[] = "a-token-for-tests-long-enough";

v1::WorkerConfig ConfigOf(const std::string& folder) {
  v1::WorkerConfig config;
  config.set_worker_id("worker-0");
  config.mutable_server()->set_listen("127.0.0.1:0");
  config.mutable_server()->set_cluster_token_file(folder + "/token");
  config.mutable_model()->set_path(folder + "/model.gguf");
  config.mutable_engine()->set_threads(1);
  config.mutable_engine()->set_isa("reference");
  config.mutable_engine()->set_numerics("batch_invariant");
  config.mutable_engine()->set_kv_type("f16");
  config.mutable_engine()->set_kv_memory_bytes(1 << 20);
  config.mutable_engine()->set_step_tokens(64);
  config.mutable_engine()->set_requests_max(8);
  config.mutable_transfer()->set_timeout_scale(1);
  config.mutable_transfer()->set_interface("lo");
  config.mutable_transfer()->set_transports("posix,tcp,self");
  return config;
}

// A worker with its server.
class TestWorker {
 public:
  TestWorker(const v1::WorkerConfig& config, const std::string& role,
             const worker::StageFactory& make_stage) {
    auto created = worker::WorkerRuntime::Create(config, role, transfer::MakeInProcessTransport);
    TRIVIUM_CHECK(created.ok(), "{}", Message(created.status()));
    runtime = *std::move(created);
    auto made = make_stage(*runtime);
    TRIVIUM_CHECK(made.ok(), "{}", Message(made.status()));
    stage = *std::move(made);
    watch = std::make_unique<worker::WatchService>(
        [this] { return runtime->State(); }, runtime->pool().events(), runtime->cluster_token());
    std::vector<grpc::Service*> services = stage->services();
    services.push_back(watch.get());
    auto started = net::Server::Start({.listen = "127.0.0.1:0", .services = std::move(services)});
    TRIVIUM_CHECK(started.ok(), "{}", Message(started.status()));
    server = *std::move(started);
    server->SetServing(true);
    channel = net::MakeChannel(fmt::format("127.0.0.1:{}", server->port()));
    waiter = std::thread([this] { server->WaitForShutdown([this] { stage->Drain(); }); });
  }
  ~TestWorker() {
    server->Shutdown();
    waiter.join();
    server.reset();
    stage->Stop();
  }
  bool WaitAllFree() const {
    for (const auto begin = std::chrono::steady_clock::now();
         std::chrono::steady_clock::now() - begin < std::chrono::seconds(60);) {
      if (runtime->pool().counts().free == runtime->pool().counts().total) return true;
      std::this_thread::yield();
    }
    return false;
  }

  std::unique_ptr<worker::WorkerRuntime> runtime;
  std::unique_ptr<worker::Stage> stage;
  std::unique_ptr<worker::WatchService> watch;
  std::unique_ptr<net::Server> server;
  std::shared_ptr<grpc::Channel> channel;
  std::thread waiter;
};

class ServiceTest : public testing::Test {
 protected:
  ServiceTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "stages-XXXXXX").string();
    TRIVIUM_CHECK(mkdtemp(pattern.data()) != nullptr, "cannot make {}", pattern);
    folder_ = pattern;
    std::ofstream(folder_ + "/token") << kToken << "\n";
    const absl::Status written = model::WriteTinyModel(folder_ + "/model.gguf");
    TRIVIUM_CHECK(written.ok(), "{}", Message(written));
    prefill_ =
        std::make_unique<TestWorker>(ConfigOf(folder_), "prefill", prefill::MakePrefillStage);
    decode_ = std::make_unique<TestWorker>(ConfigOf(folder_), "decode", decode::MakeDecodeStage);
    prefill_stub_ = v1::Prefill::NewStub(prefill_->channel);
    decode_stub_ = v1::Decode::NewStub(decode_->channel);
  }
  ~ServiceTest() override {
    prefill_.reset();
    decode_.reset();
    std::filesystem::remove_all(folder_);
  }

  static std::unique_ptr<grpc::ClientContext> Context(const std::string& token = kToken) {
    auto context = std::make_unique<grpc::ClientContext>();
    if (!token.empty()) context->AddMetadata(net::kClusterTokenKey, token);
    context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    return context;
  }

  template <typename Request>
  Request Fill(int prompt_tokens, int max_tokens) const {
    Request request;
    request.mutable_key()->set_request_id("request.1");
    request.mutable_key()->set_attempt(1);
    request.mutable_key()->set_secret(std::string(16, 's'));
    request.set_fingerprint(prefill_->runtime->model().fingerprint);
    for (int i = 0; i < prompt_tokens; ++i) request.add_token_ids(3 + i * 7 % 250);
    v1::StageSampling& sampling = *request.mutable_sampling();
    sampling.set_top_p(1);
    sampling.set_typical_p(1);
    sampling.set_repetition_penalty(1);
    sampling.set_prompt_logprobs(-1);
    sampling.set_max_tokens(max_tokens);
    sampling.set_ignore_eos(true);
    sampling.set_logprobs(1);
    return request;
  }

  grpc::Status DecodeStatus(const v1::DecodeRequest& request, const std::string& token = kToken) {
    auto context = Context(token);
    auto reader = decode_stub_->Decode(context.get(), request);
    v1::DecodeEvent event;
    while (reader->Read(&event)) ADD_FAILURE() << event.ShortDebugString();
    return reader->Finish();
  }
  grpc::Status PrefillStatus(const v1::PrefillRequest& request, const std::string& token = kToken) {
    auto context = Context(token);
    auto reader = prefill_stub_->Prefill(context.get(), request);
    v1::PrefillEvent event;
    while (reader->Read(&event)) ADD_FAILURE() << event.ShortDebugString();
    return reader->Finish();
  }

  std::string folder_;
  std::unique_ptr<TestWorker> prefill_, decode_;
  std::unique_ptr<v1::Prefill::Stub> prefill_stub_;
  std::unique_ptr<v1::Decode::Stub> decode_stub_;
};

void ExpectRefused(const grpc::Status& status, grpc::StatusCode code, const std::string& field) {
  EXPECT_EQ(status.error_code(), code) << status.error_message();
  EXPECT_NE(status.error_message().find(field), std::string::npos) << status.error_message();
}

TEST_F(ServiceTest, ARequestThroughBothStages) {
  auto decode_context = Context();
  auto decoded = decode_stub_->Decode(decode_context.get(), Fill<v1::DecodeRequest>(50, 12));
  v1::DecodeEvent event;
  ASSERT_TRUE(decoded->Read(&event)) << decoded->Finish().error_message();
  ASSERT_TRUE(event.has_ticket());

  auto prefill_request = Fill<v1::PrefillRequest>(50, 12);
  *prefill_request.mutable_ticket() = event.ticket();
  prefill_request.mutable_sampling()->set_prompt_logprobs(3);
  auto prefill_context = Context();
  auto prefilled = prefill_stub_->Prefill(prefill_context.get(), prefill_request);
  v1::PrefillEvent prompt, first, sent;
  ASSERT_TRUE(prefilled->Read(&prompt)) << prefilled->Finish().error_message();
  const v1::PromptLogprobs& scores = prompt.prompt_logprobs();
  ASSERT_EQ(scores.tokens_size(), 50);
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(scores.tokens(i).index(), i);
    EXPECT_EQ(scores.tokens(i).id(), prefill_request.token_ids(i));
    EXPECT_EQ(scores.tokens(i).has_logprob(), i > 0);
    EXPECT_EQ(scores.tokens(i).top_size(), i > 0 ? 3 : 0);
  }
  ASSERT_TRUE(prefilled->Read(&first)) << prefilled->Finish().error_message();
  ASSERT_TRUE(prefilled->Read(&sent)) << prefilled->Finish().error_message();
  EXPECT_TRUE(prefilled->Finish().ok());
  ASSERT_TRUE(sent.has_sent());
  EXPECT_EQ(sent.sent().kv_bytes(), 50 * prefill_->runtime->model().config.KvBytesPerToken());
  EXPECT_GT(sent.sent().messages(), 0);
  EXPECT_GT(sent.sent().header_bytes(), 0);
  EXPECT_GT(sent.sent().compute_ms(), 0);

  for (int index = 0; index < 12; ++index) {
    ASSERT_TRUE(decoded->Read(&event)) << index << " " << decoded->Finish().error_message();
    EXPECT_EQ(event.token().index(), index);
    EXPECT_TRUE(event.token().has_logprob());
    EXPECT_EQ(event.token().top_size(), 1);
    EXPECT_EQ(event.token().finish_reason(), index == 11 ? "length" : "");
    if (index > 0) continue;
    EXPECT_EQ(event.token().SerializeAsString(), first.first_token().SerializeAsString());
  }
  EXPECT_FALSE(decoded->Read(&event));
  EXPECT_TRUE(decoded->Finish().ok());
  EXPECT_TRUE(prefill_->WaitAllFree());
  EXPECT_TRUE(decode_->WaitAllFree());
  const std::string page = decode_->runtime->metrics().Text();
  EXPECT_NE(page.find("trivium_requests_total{outcome=\"ok\"} 1"), std::string::npos) << page;
  EXPECT_NE(page.find("trivium_steps_total 11"), std::string::npos) << page;
  EXPECT_NE(page.find("trivium_kv_received_bytes_total"), std::string::npos);
}

// Before their KV has landed: each ends with the token that comes with it.
TEST_F(ServiceTest, ChoicesCanBeEnded) {
  auto decode = Fill<v1::DecodeRequest>(50, 12);
  decode.set_choices(2);
  auto decode_context = Context();
  auto decoded = decode_stub_->Decode(decode_context.get(), decode);
  v1::DecodeEvent event;
  ASSERT_TRUE(decoded->Read(&event)) << decoded->Finish().error_message();
  const auto end = [&](int32_t choice, const std::string& secret, const std::string& token) {
    v1::EndChoiceRequest request;
    *request.mutable_key() = decode.key();
    request.mutable_key()->set_secret(secret);
    request.set_choice(choice);
    v1::EndChoiceResponse response;
    auto context = Context(token);
    return decode_stub_->EndChoice(context.get(), request, &response).error_code();
  };
  const std::string& secret = decode.key().secret();
  EXPECT_EQ(end(0, secret, ""), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(end(0, "short", kToken), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(end(0, std::string(16, 'x'), kToken), grpc::StatusCode::OK) << "another's";
  EXPECT_EQ(end(1, secret, kToken), grpc::StatusCode::OK);

  auto prefill = Fill<v1::PrefillRequest>(50, 12);
  prefill.set_choices(2);
  *prefill.mutable_ticket() = event.ticket();
  auto prefill_context = Context();
  auto prefilled = prefill_stub_->Prefill(prefill_context.get(), prefill);
  for (v1::PrefillEvent skipped; prefilled->Read(&skipped);) {
  }
  EXPECT_TRUE(prefilled->Finish().ok());
  std::map<int32_t, int> tokens;
  while (decoded->Read(&event)) ++tokens[event.token().choice()];
  EXPECT_TRUE(decoded->Finish().ok());
  EXPECT_EQ(tokens, (std::map<int32_t, int>{{0, 12}, {1, 1}}));
}

TEST_F(ServiceTest, TheClusterTokenIsNeeded) {
  for (const std::string token : {"", "another-token-as-long-as-this"}) {
    EXPECT_EQ(DecodeStatus(Fill<v1::DecodeRequest>(5, 4), token).error_code(),
              grpc::StatusCode::UNAUTHENTICATED);
    EXPECT_EQ(PrefillStatus(Fill<v1::PrefillRequest>(5, 4), token).error_code(),
              grpc::StatusCode::UNAUTHENTICATED);
    auto context = Context(token);
    auto reader = v1::Worker::NewStub(decode_->channel)->Watch(context.get(), {});
    v1::WorkerState state;
    EXPECT_FALSE(reader->Read(&state));
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
  }
}

TEST_F(ServiceTest, BadRequestsAreRefusedByField) {
  auto decode = Fill<v1::DecodeRequest>(5, 4);
  decode.set_fingerprint("another");
  ExpectRefused(DecodeStatus(decode), grpc::StatusCode::FAILED_PRECONDITION, "fingerprint");
  decode = Fill<v1::DecodeRequest>(5, 4);
  decode.set_token_ids(3, 320);
  ExpectRefused(DecodeStatus(decode), grpc::StatusCode::INVALID_ARGUMENT, "token_ids[3]");
  decode = Fill<v1::DecodeRequest>(5, 4);
  decode.set_numerics_class("fast/avx2");
  ExpectRefused(DecodeStatus(decode), grpc::StatusCode::FAILED_PRECONDITION, "numerics_class");
  decode = Fill<v1::DecodeRequest>(2000, 49);
  ExpectRefused(DecodeStatus(decode), grpc::StatusCode::INVALID_ARGUMENT, "sampling.max_tokens");

  auto prefill = Fill<v1::PrefillRequest>(5, 4);
  ExpectRefused(PrefillStatus(prefill), grpc::StatusCode::INVALID_ARGUMENT, "ticket.address");
  prefill.mutable_sampling()->set_top_p(2);
  ExpectRefused(PrefillStatus(prefill), grpc::StatusCode::INVALID_ARGUMENT, "sampling.top_p");
  prefill = Fill<v1::PrefillRequest>(5, 4);
  v1::LandingTicket& ticket = *prefill.mutable_ticket();
  ticket.set_address("nowhere");
  ticket.set_wire_format(1);
  ticket.set_token_end(5);
  ticket.set_layers(4);
  ticket.set_row_elems(31);  // 2 heads of 16 here
  ticket.set_block_tokens(16);
  EXPECT_EQ(PrefillStatus(prefill).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(decode_->runtime->pool().counts().free, decode_->runtime->pool().counts().total);
  EXPECT_TRUE(prefill_->WaitAllFree());
}

TEST_F(ServiceTest, ACancelledCallGivesItsBlocksBack) {
  for (int round = 0; round < 20; ++round) {
    auto context = Context();
    auto reader = decode_stub_->Decode(context.get(), Fill<v1::DecodeRequest>(20, 4));
    v1::DecodeEvent event;
    ASSERT_TRUE(reader->Read(&event)) << reader->Finish().error_message();
    EXPECT_LT(decode_->runtime->pool().counts().free, decode_->runtime->pool().counts().total);
    context->TryCancel();
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
    ASSERT_TRUE(decode_->WaitAllFree());
  }
}

TEST_F(ServiceTest, WatchTellsTheStateAndTheDrain) {
  auto stub = v1::Worker::NewStub(decode_->channel);
  auto context = Context();
  auto watch = stub->Watch(context.get(), {});
  v1::WorkerState state;
  ASSERT_TRUE(watch->Read(&state));
  EXPECT_EQ(state.sequence(), 1u);
  EXPECT_EQ(state.worker_id(), "worker-0");
  EXPECT_EQ(state.role(), "decode");
  EXPECT_EQ(state.fingerprint(), decode_->runtime->model().fingerprint);
  EXPECT_EQ(state.numerics_class(), "batch_invariant/reference");
  EXPECT_GT(state.blocks_total(), 0);
  EXPECT_EQ(state.blocks_free(), state.blocks_total());
  EXPECT_EQ(state.requests_max(), 8);
  EXPECT_NE(state.epoch(), 0u);

  auto decode_context = Context();
  auto decode = decode_stub_->Decode(decode_context.get(), Fill<v1::DecodeRequest>(20, 4));
  v1::DecodeEvent event;
  ASSERT_TRUE(decode->Read(&event));
  uint64_t sequence = 1;
  do {
    ASSERT_TRUE(watch->Read(&state));
    EXPECT_EQ(state.sequence(), ++sequence);
  } while (state.requests_waiting() == 0);
  EXPECT_EQ(state.blocks_used(), 2);

  decode_->server->Shutdown();
  do {
    ASSERT_TRUE(watch->Read(&state));
  } while (!state.draining());
  EXPECT_EQ(state.requests_waiting(), 1) << "the watch outlives what still runs";
  decode_context->TryCancel();
  decode->Finish();
  while (watch->Read(&state)) EXPECT_TRUE(state.draining());
  EXPECT_TRUE(watch->Finish().ok());
  EXPECT_EQ(state.requests_waiting(), 0);
}

}  // namespace
}  // namespace trivium::stages

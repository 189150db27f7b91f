// The decode stage fed by hand: a sender that holds the right ticket and says what the test wants.
#include "services/decode/step_loop.h"

#include <gtest/gtest.h>

#include <future>

#include "common/engine/test_setup.h"
#include "common/worker/convert.h"

namespace trivium::decode {
namespace {

constexpr int32_t kBlocks = 8;

class IgnoringProbe final : public worker::LoopProbe {
 public:
  void OnStep(const worker::StepRecord&) override {}
  void OnFirstToken(double) override {}
  void OnTokenGap(double) override {}
  void OnPrompt(const worker::PromptRecord&) override {}
  void OnEnd(const absl::Status&) override {}
};

class Sink final : public DecodeSink {
 public:
  void OnPrefilled(const PrefillReport&) override {}
  void OnToken(const worker::OutputToken& token) override { tokens.push_back(token); }
  void OnEnd(absl::Status status) override { ended.set_value(std::move(status)); }
  absl::Status Wait() { return ended.get_future().get(); }

  std::vector<worker::OutputToken> tokens;  // complete after Wait
  std::promise<absl::Status> ended;
};

struct Side {
  explicit Side(uint64_t epoch)
      : engine(engine::MakeTestEngine({.isa = kernels::Isa::kReference}, kBlocks)) {
    transfer::TransportOptions options;
    options.storage = engine.storage;
    options.epoch = {epoch};
    transport = *transfer::MakeInProcessTransport(std::move(options));
  }
  engine::TestEngine engine;
  kv::BlockPool pool{kBlocks, [this](BlockId block) { engine.storage->Scrub(block); }};
  std::unique_ptr<transfer::Transport> transport;
};

class StepLoopTest : public testing::Test {
 protected:
  StepLoopTest()
      : loop_({.engine = decode_.engine.engine.get(),
               .pool = &decode_.pool,
               .transport = decode_.transport.get(),
               .board = &board_,
               .probe = &probe_,
               .step_tokens = 16,
               .requests_max = 100}) {}

  static worker::StageRequest Request(int32_t max_tokens) {
    return {.key = {.request = {"r"}, .attempt = {1}},
            .token_ids = std::vector<int32_t>(20, 7),
            .output_index = 1,
            .sampling = {.max_tokens = max_tokens, .ignore_eos = true}};
  }
  static std::string Tail(int32_t index, int32_t id, engine::FinishReason finish) {
    worker::OutputToken token{.index = index, .finish = finish};
    token.token.id = id;
    return worker::SerializeTail({&token, 1});
  }

  // Lands zeros as KV, and the tail.
  absl::Status Land(const std::string& tail, bool kv_complete, Sink& sink) {
    const worker::StageRequest request = Request(5);
    const auto landing = loop_.Submit(request, &sink);
    TRIVIUM_CHECK(landing.ok(), "{}", Message(landing.status()));
    const auto blocks = prefill_.pool.Reserve(2);
    std::promise<void> delivered;
    auto sender = prefill_.transport->Open(
        *landing->ticket, request.key,
        {{blocks->blocks().begin(), blocks->blocks().end()}, blocks->Lease()},
        [&delivered](const auto&) { delivered.set_value(); });
    TRIVIUM_CHECK(sender.ok(), "{}", Message(sender.status()));
    const int32_t layers = landing->ticket->layers;
    if (kv_complete) (*sender)->Send({0, layers, 0, 20});
    (*sender)->Finish(tail, kv_complete);
    delivered.get_future().wait();
    return sink.Wait();
  }
  absl::Status Land(const std::string& tail, bool kv_complete) {
    Sink sink;
    return Land(tail, kv_complete, sink);
  }

  Side prefill_{1}, decode_{2};
  worker::LoadBoard board_;
  IgnoringProbe probe_;
  StepLoop loop_;
};

using engine::FinishReason;

TEST_F(StepLoopTest, WrongTailsAreRefused) {
  EXPECT_TRUE(absl::IsDataLoss(Land("\xff\xff\xff", true)));
  EXPECT_TRUE(absl::IsDataLoss(Land(Tail(0, 5, FinishReason::kNone), true))) << "wrong index";
  EXPECT_TRUE(absl::IsDataLoss(Land(Tail(1, 1 << 20, FinishReason::kNone), true))) << "wrong id";
  EXPECT_TRUE(absl::IsDataLoss(Land(Tail(1, 5, FinishReason::kNone), false))) << "KV is missing";
  loop_.Stop();
  EXPECT_EQ(decode_.pool.counts().used, 0);
}

TEST_F(StepLoopTest, TokensCountFromTheOutputIndex) {
  Sink sink;
  const absl::Status status = Land(Tail(1, 5, FinishReason::kNone), true, sink);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(sink.tokens.size(), 4u);  // of five, one was emitted by an earlier attempt
  for (int32_t i = 0; i < 4; ++i) {
    EXPECT_EQ(sink.tokens[static_cast<size_t>(i)].index, i + 1);
    EXPECT_EQ(sink.tokens[static_cast<size_t>(i)].finish,
              i == 3 ? FinishReason::kLength : FinishReason::kNone);
  }
  EXPECT_EQ(sink.tokens[0].token.id, 5);
}

TEST_F(StepLoopTest, AFinishedRequestNeedsNoKv) {
  Sink sink;
  EXPECT_TRUE(Land(Tail(1, 5, FinishReason::kStop), false, sink).ok());
  ASSERT_EQ(sink.tokens.size(), 1u);
  EXPECT_EQ(sink.tokens[0].finish, FinishReason::kStop);
  EXPECT_EQ(board_.Get().steps, 0u);
}

TEST_F(StepLoopTest, RequestsAreBoundedByTheRowsOfAStep) {
  EXPECT_EQ(board_.Get().requests_max, 16);
}

}  // namespace
}  // namespace trivium::decode

// Prompts beside answers, in chunks of tokens and in groups of layers: what the steps held, told by
// their log, and that the text is that of a lone engine all the same.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "tests/stages/reuse_fixture.h"

namespace trivium::stages {
namespace {

using worker::PrefillPolicy;

constexpr int kLayers = 4;  // of the tiny model
// Nothing fits into so little time: steps hold the least that goes on.
constexpr double kNoTime = 1e-9;

class ScheduleTest : public ReuseTest, public testing::WithParamInterface<PrefillPolicy> {
 protected:
  static RigOptions Options(double step_target_s, int32_t step_tokens = 512) {
    RigOptions options;
    options.step_tokens = step_tokens;
    options.prefill_policy = GetParam();
    options.step_target_s = step_target_s;
    return options;
  }
  static bool is_layered() { return GetParam() == PrefillPolicy::kLayered; }

  worker::StageRequest Local(Rig& rig, size_t tokens, int32_t max_tokens) {
    auto request = rig.Request(rig.RandomPrompt(random_, tokens), Seeded(random_(), max_tokens));
    request.prefills = true;
    return request;
  }
};

// How many layers each token of each prompt has passed; a step's tokens pass them in order, and
// all in the same group.
class Passed {
 public:
  void Take(const StepLog::Step& step, const std::map<uint64_t, int32_t>& prompts) {
    std::set<std::pair<int, int>> groups;
    for (const worker::RangeRecord& range : step.ranges) {
      if (range.position >= prompts.at(range.request)) continue;
      groups.insert({range.layer_begin, range.layer_end});
      auto& tokens = passed_[range.request];
      tokens.resize(static_cast<size_t>(prompts.at(range.request)));
      for (int32_t i = range.position; i < range.position + range.rows; ++i) {
        EXPECT_EQ(tokens.at(static_cast<size_t>(i)), range.layer_begin);
        tokens[static_cast<size_t>(i)] = range.layer_end;
      }
    }
    EXPECT_LE(groups.size(), 1u);
    EXPECT_EQ(step.limit.has_value(), !groups.empty());
  }
  bool IsThrough(uint64_t request) const {
    const auto found = passed_.find(request);
    return found != passed_.end() &&
           std::ranges::all_of(found->second, [](int layers) { return layers == kLayers; });
  }

 private:
  std::map<uint64_t, std::vector<int>> passed_;
};

// Exactly one row through all layers for every answer from its first step to its last.
void CheckAnswers(const std::vector<StepLog::Step>& steps,
                  const std::map<uint64_t, int32_t>& prompts) {
  std::map<uint64_t, int32_t> next;
  std::map<uint64_t, size_t> last_step;
  for (size_t i = 0; i < steps.size(); ++i) {
    for (const worker::RangeRecord& range : steps[i].ranges) {
      const int32_t prompt = prompts.at(range.request);
      if (range.position < prompt) continue;
      EXPECT_EQ(range.rows, 1);
      EXPECT_EQ(range.layer_begin, 0);
      EXPECT_EQ(range.layer_end, kLayers);
      const auto [position, is_first] = next.emplace(range.request, prompt);
      EXPECT_EQ(range.position, position->second++);
      if (!is_first) {
        EXPECT_EQ(i, last_step[range.request] + 1) << "an answer was left out of a step";
      }
      last_step[range.request] = i;
    }
  }
}

TEST_P(ScheduleTest, EveryAnswerGetsATokenInEveryStepWhateverArrives) {
  Rig rig(Options(kNoTime));
  std::vector<worker::StageRequest> requests;
  std::vector<std::unique_ptr<Flight>> flights;
  std::map<uint64_t, int32_t> prompts;
  const auto launch = [&](size_t tokens, int32_t max_tokens) {
    requests.push_back(Local(rig, tokens, max_tokens));
    flights.push_back(rig.Launch(requests.back()));
    prompts[flights.back()->decode_number] = static_cast<int32_t>(tokens);
  };
  for (int i = 0; i < 4; ++i) launch(20, 60);
  for (auto& flight : flights) flight->decode.WaitTokens(3);
  for (const size_t tokens : {150, 7, 300, 33}) launch(tokens, 5);
  for (size_t i = 0; i < flights.size(); ++i) {
    ASSERT_TRUE(flights[i]->decode.Wait().ok());
    ExpectRight(rig, requests[i], flights[i]->decode.tokens());
  }
  const std::vector<StepLog::Step> steps = rig.decode_parts.log.steps();
  CheckAnswers(steps, prompts);
  Passed passed;
  for (const StepLog::Step& step : steps) passed.Take(step, prompts);
  for (const auto& [number, tokens] : prompts) EXPECT_TRUE(passed.IsThrough(number));
  EXPECT_EQ(rig.decode_parts.log.gaps(), 4 * 59 + 4 * 4);
  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
}

// Without time to spare a step goes on by one block, or by one layer, while answers run.
TEST_P(ScheduleTest, StepsHoldTheLeastWhereThereIsNoTime) {
  Rig rig(Options(kNoTime));
  const auto answer = rig.Launch(Local(rig, 20, 200));
  answer->decode.WaitTokens(1);
  const auto prompt = rig.Launch(Local(rig, 64, 2));
  ASSERT_TRUE(prompt->decode.Wait().ok());
  ASSERT_TRUE(answer->decode.Wait().ok());
  int steps = 0;
  for (const StepLog::Step& step : rig.decode_parts.log.steps()) {
    const worker::RangeRecord& last = step.ranges.back();
    if (step.ranges.size() < 2 || last.position >= 64) continue;
    ++steps;
    EXPECT_EQ(last.rows, is_layered() ? 64 : 16);
    EXPECT_EQ(last.layer_end - last.layer_begin, is_layered() ? 1 : kLayers);
    EXPECT_EQ(step.load.rows, 17);
  }
  EXPECT_EQ(steps, 4);
}

// A block is found by others as soon as it is through all layers, and not before.
TEST_P(ScheduleTest, APromptIsPublishedWhenItIsThrough) {
  Rig rig(Options(kNoTime));
  const auto shared = In({DomainOf(1)}, Local(rig, 100, 2));
  std::unique_ptr<Flight> behind;
  rig.decode_parts.log.on_step = [&](const StepLog::Step& step) {
    if (behind == nullptr && step.limit == worker::PromptStep::Limit::kSeconds) {
      behind = rig.Launch(shared);
    }
  };
  const auto answer = rig.Launch(Local(rig, 20, 300));
  answer->decode.WaitTokens(1);
  const auto first = rig.Launch(shared);
  ASSERT_TRUE(first->decode.Wait().ok());
  ASSERT_NE(behind, nullptr);
  ASSERT_TRUE(behind->decode.Wait().ok());
  EXPECT_EQ(first->decode.sent().cached_tokens, 0);
  EXPECT_EQ(behind->decode.sent().cached_tokens, is_layered() ? 0 : 16) << "one block was through";
  const auto last = rig.Launch(shared);
  ASSERT_TRUE(last->decode.Wait().ok());
  EXPECT_EQ(last->decode.sent().cached_tokens, 96);
  for (const Flight* flight : {first.get(), behind.get(), last.get()}) {
    ExpectRight(rig, shared, flight->decode.tokens());
  }
  EXPECT_TRUE(answer->decode.Wait().ok());
}

// Half-way through, a prompt goes away; those that share its steps do not notice.
TEST_P(ScheduleTest, CancelledHalfWayNothingIsHeldAndTheOthersGoOn) {
  Rig rig(Options(kNoTime));
  std::set<uint64_t> cancelled;
  rig.decode_parts.log.on_step = [&](const StepLog::Step& step) {
    if (!cancelled.empty() || step.limit != worker::PromptStep::Limit::kSeconds) return;
    cancelled.insert(step.ranges.back().request);
    rig.decode->Cancel(step.ranges.back().request);
  };
  const auto answer = Local(rig, 20, 100);
  const auto running = rig.Launch(answer);
  running->decode.WaitTokens(1);
  std::vector<worker::StageRequest> requests;
  std::vector<std::unique_ptr<Flight>> flights;
  for (int i = 0; i < 3; ++i) {
    requests.push_back(Local(rig, 90, 3));
    flights.push_back(rig.Launch(requests.back()));
  }
  for (size_t i = 0; i < flights.size(); ++i) {
    const absl::Status status = flights[i]->decode.Wait();
    if (cancelled.contains(flights[i]->decode_number)) {
      EXPECT_TRUE(absl::IsCancelled(status)) << status;
      EXPECT_TRUE(flights[i]->decode.tokens().empty());
    } else {
      ExpectRight(rig, requests[i], flights[i]->decode.tokens());
    }
  }
  EXPECT_EQ(cancelled.size(), 1u);
  ASSERT_TRUE(running->decode.Wait().ok());
  ExpectRight(rig, answer, running->decode.tokens());
  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
  ExpectRight(rig, requests[0], rig.Run(requests[0]));
}

// The same at the prefill worker, where rows of the first layers are on their way already.
TEST_P(ScheduleTest, APrefillWorkerLosesAPromptOrItsReceiverHalfWay) {
  for (const bool loses_receiver : {false, true}) {
    SCOPED_TRACE(loses_receiver);
    RigOptions options = Options(kNoTime);
    options.timeout_scale = 0.5;
    Rig rig(options);
    bool is_lost = false;
    rig.prefill_parts.log.on_step = [&](const StepLog::Step& step) {
      if (is_lost || step.limit != worker::PromptStep::Limit::kSeconds) return;
      is_lost = true;
      constexpr uint64_t kFirst = 1;
      loses_receiver ? rig.decode->Cancel(kFirst) : rig.prefill->Cancel(kFirst);
    };
    const auto request = rig.Request(rig.RandomPrompt(random_, 200), Seeded(random_(), 4));
    const auto flight = rig.Launch(request);
    const absl::Status prefilled = flight->prefill.Wait(), decoded = flight->decode.Wait();
    EXPECT_EQ(loses_receiver, absl::IsCancelled(decoded)) << decoded;
    EXPECT_EQ(loses_receiver, absl::IsUnavailable(prefilled)) << prefilled;
    EXPECT_FALSE(decoded.ok() || prefilled.ok());
    EXPECT_TRUE(rig.prefill_parts.WaitAllFree());
    EXPECT_TRUE(rig.decode_parts.WaitAllFree());
    ExpectRight(rig, request, rig.Run(request));
  }
}

// Rows leave for the decode worker behind every group of layers, and what lands is complete.
TEST_P(ScheduleTest, PromptsAtThePrefillWorkerEqualTheirSoloRun) {
  for (const double target : {0.0, kNoTime}) {
    Rig rig(Options(target, 256));
    std::vector<worker::StageRequest> requests;
    std::vector<std::unique_ptr<Flight>> flights;
    std::map<uint64_t, int32_t> prompts;
    for (int i = 0; i < 12; ++i) {
      const size_t tokens = i == 0 ? 700 : 1 + random_() % 150;
      engine::SamplingParams sampling = Seeded(random_(), 8);
      if (i % 4 == 3) sampling.prompt_logprobs = 1;
      requests.push_back(rig.Request(rig.RandomPrompt(random_, tokens), sampling));
      flights.push_back(rig.Launch(requests.back()));
      prompts[flights.back()->prefill_number] = static_cast<int32_t>(tokens);
    }
    for (size_t i = 0; i < flights.size(); ++i) {
      ASSERT_TRUE(flights[i]->prefill.Wait().ok());
      ASSERT_TRUE(flights[i]->decode.Wait().ok());
      ExpectRight(rig, requests[i], flights[i]->decode.tokens());
      EXPECT_EQ(flights[i]->prefill.sent().transfer.kv_bytes,
                requests[i].prompt_tokens() * rig.prefill_parts.engine.config().KvBytesPerToken());
    }
    Passed passed;
    for (const StepLog::Step& step : rig.prefill_parts.log.steps()) {
      passed.Take(step, prompts);
      EXPECT_LE(step.load.rows, 256);
    }
    for (const auto& [number, tokens] : prompts) EXPECT_TRUE(passed.IsThrough(number));
    EXPECT_TRUE(rig.prefill_parts.WaitAllFree());
    EXPECT_TRUE(rig.decode_parts.WaitAllFree());
  }
}

using ShortPromptTest = ReuseTest;

// A long prompt is on its way when a short one comes.
TEST_F(ShortPromptTest, OvertakesALongOneAtThePrefillWorker) {
  Rig rig({.step_tokens = 64});
  std::unique_ptr<Flight> behind;
  const auto shorter = rig.Request(rig.RandomPrompt(random_, 20), Seeded(random_(), 2));
  rig.prefill_parts.log.on_step = [&](const StepLog::Step&) {
    if (behind == nullptr) behind = rig.Launch(shorter);
  };
  const auto longer = rig.Launch(rig.Request(rig.RandomPrompt(random_, 900), Seeded(random_(), 2)));
  for (Outcome* outcome : {&longer->prefill, &longer->decode}) ASSERT_TRUE(outcome->Wait().ok());
  // Launched by the loop, before the longer one ended.
  for (Outcome* outcome : {&behind->prefill, &behind->decode}) ASSERT_TRUE(outcome->Wait().ok());
  const std::vector<StepLog::Step> steps = rig.prefill_parts.log.steps();
  ASSERT_EQ(steps[1].ranges.size(), 2u);
  EXPECT_EQ(steps[1].ranges[1].rows, 20);
  EXPECT_EQ(steps[1].ranges[0].rows, 32);
}

INSTANTIATE_TEST_SUITE_P(Policies, ScheduleTest,
                         testing::Values(PrefillPolicy::kChunked, PrefillPolicy::kLayered),
                         [](const auto& policy) {
                           return policy.param == PrefillPolicy::kLayered ? "layered" : "chunked";
                         });

}  // namespace
}  // namespace trivium::stages

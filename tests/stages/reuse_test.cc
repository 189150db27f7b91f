// What one request leaves in the pools serves the next of the same domain, and never another: told
// by the rows that the engines computed, not by what a cache claims. The text stays what it is
// without reuse, bit for bit.
#include "tests/stages/reuse_fixture.h"

namespace trivium::stages {
namespace {

TEST_F(ReuseTest, TheSameDomainHitsAndAnotherNever) {
  Rig rig;
  const std::vector<int32_t> ids = rig.RandomPrompt(random_, 100);
  const auto ask = [&](std::vector<kv::Domain> domains) {
    return Computed(rig, In(std::move(domains), rig.Request(ids, Seeded(random_(), 5))));
  };
  EXPECT_EQ(ask({DomainOf(1)}), 100);
  EXPECT_EQ(ask({DomainOf(1)}), 4);  // the last of seven blocks is not full
  EXPECT_EQ(ask({DomainOf(2)}), 100);
  EXPECT_EQ(ask({DomainOf(2)}), 4);
  EXPECT_EQ(ask({}), 100) << "without a domain nothing is found";
  EXPECT_EQ(ask({}), 100) << "nor kept";
  const worker::PromptRecord at_decode = rig.decode_parts.log.prompts();
  EXPECT_EQ(at_decode.cached, 2 * 96);
  EXPECT_EQ(at_decode.received, 6 * 100 - 2 * 96);
  EXPECT_TRUE(rig.prefill_parts.WaitAllFree());
  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
}

// An adapter makes another model of it, with another fingerprint.
TEST_F(ReuseTest, AnotherModelAdapterNumericsOrFormatFindsNothing) {
  Rig rig;
  const std::vector<int32_t> ids = rig.RandomPrompt(random_, 100);
  std::vector<kv::KeySpace> spaces(5, Space());
  spaces[1].model = "tinz";
  spaces[2].model = "tiny with an adapter";
  spaces[3].numerics_class = "fast/avx512";
  spaces[4].kv_format = 2;
  for (const int64_t rows : {100, 4}) {
    for (const kv::KeySpace& space : spaces) {
      const auto request = In({DomainOf(1)}, rig.Request(ids, Seeded(random_(), 5)), space);
      EXPECT_EQ(Computed(rig, request), rows)
          << space.model << ", " << space.numerics_class << ", " << space.kv_format;
    }
  }
}

// The tokens that stand for a picture are the same for all pictures.
TEST_F(ReuseTest, AnotherPictureFindsWhatStandsBeforeItAndNothingBehind) {
  Rig rig;
  const std::vector<int32_t> ids = rig.RandomPrompt(random_, 100);
  const auto ask = [&](uint8_t digest) {
    kv::MediaSpan picture{.position = 40, .tokens = 30};
    picture.digest.fill(digest);
    return Computed(rig,
                    In({DomainOf(1)}, rig.Request(ids, Seeded(random_(), 5)), Space(), {picture}));
  };
  EXPECT_EQ(ask(1), 100);
  EXPECT_EQ(ask(2), 100 - 32) << "the blocks before the picture's first token are the same";
  EXPECT_EQ(ask(1), 4);
  EXPECT_EQ(ask(2), 4);
}

TEST_F(ReuseTest, TenantsShareWhatIsPublicAndNothingBehindIt) {
  Rig rig;
  const std::vector<int32_t> common = rig.RandomPrompt(random_, 64);
  const std::vector<int32_t> own = rig.RandomPrompt(random_, 48);
  const auto ask = [&](uint8_t tenant) {
    return Computed(rig, In({DomainOf(9, 64), DomainOf(tenant)},
                            rig.Request(Joined(common, own), Seeded(random_(), 3))));
  };
  EXPECT_EQ(ask(1), 112);
  EXPECT_EQ(ask(2), 48) << "the same private text, but another tenant's";
  EXPECT_EQ(ask(1), 16) << "of a prompt of full blocks, the last is computed";
}

TEST_F(ReuseTest, ManyAtOnceComputeASharedPrefixOnce) {
  constexpr int kTenants = 100;
  Rig rig({.prefill_blocks = 2048,
           .decode_blocks = 8192,  // all land at once: nothing is shared there yet
           .step_tokens = 128,
           .requests_max = 128});
  const std::vector<int32_t> common = rig.RandomPrompt(random_, 1000);
  std::vector<worker::StageRequest> requests;
  std::vector<std::unique_ptr<Flight>> flights;
  for (int tenant = 0; tenant < kTenants; ++tenant) {
    kv::Domain own = DomainOf(1);
    own.key.bytes[0] = static_cast<uint8_t>(tenant);
    requests.push_back(
        In({DomainOf(255, 992), own},
           rig.Request(Joined(common, rig.RandomPrompt(random_, 24)), Seeded(random_(), 2))));
    flights.push_back(rig.Launch(requests.back()));
  }
  for (int tenant = 0; tenant < kTenants; ++tenant) {
    Flight& flight = *flights[static_cast<size_t>(tenant)];
    ASSERT_TRUE(flight.prefill.Wait().ok());
    ASSERT_TRUE(flight.decode.Wait().ok());
    if (tenant % 20 == 0) {
      ExpectRight(rig, requests[static_cast<size_t>(tenant)], flight.decode.tokens());
    }
  }
  EXPECT_EQ(RowsOf(rig.prefill_parts), 992 + kTenants * (8 + 24));
}

// The answer's KV was made by the decode worker and has never been anywhere else.
TEST_F(ReuseTest, TheNextTurnFindsTheLastAnswer) {
  Rig rig;
  const std::vector<int32_t> first = rig.RandomPrompt(random_, 50);
  const auto turn = In({DomainOf(1)}, rig.Request(first, Seeded(random_(), 40)));
  const auto answer = rig.Run(turn);
  ExpectRight(rig, turn, answer);
  std::vector<int32_t> ids = first;
  for (const worker::OutputToken& token : *answer) ids.push_back(token.token.id);
  ids = Joined(ids, rig.RandomPrompt(random_, 30));
  const int64_t before = RowsOf(rig.decode_parts);
  worker::StageRequest next = In({DomainOf(1)}, rig.Request(ids, Seeded(random_(), 10)));
  next.prefills = true;
  ExpectRight(rig, next, rig.Run(next));
  // Of 50 + 40 tokens the last one's KV was never needed: five full blocks.
  EXPECT_EQ(RowsOf(rig.decode_parts) - before, 120 - 80 + 9);
  EXPECT_EQ(RowsOf(rig.prefill_parts), 50);
  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
}

TEST_F(ReuseTest, PromptsPrefilledInTheDecodeBatchEqualTheirSoloRun) {
  Rig rig({.step_tokens = 48, .requests_max = 40});
  std::vector<worker::StageRequest> requests;
  std::vector<std::unique_ptr<Flight>> flights;
  for (int i = 0; i < 24; ++i) {
    auto request = In({DomainOf(1)}, rig.Request(rig.RandomPrompt(random_, 1 + random_() % 150),
                                                 Seeded(random_(), 12)));
    request.prefills = i % 3 != 0;
    requests.push_back(std::move(request));
    flights.push_back(rig.Launch(requests.back()));
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    ASSERT_TRUE(flights[i]->decode.Wait().ok());
    ExpectRight(rig, requests[i], flights[i]->decode.tokens());
    ASSERT_TRUE(flights[i]->prefill.Wait().ok());
  }
  for (const StepLog::Step& step : rig.decode_parts.log.steps()) EXPECT_LE(step.load.rows, 48);
}

TEST_F(ReuseTest, AScoredPromptIsComputedWhole) {
  Rig rig;
  engine::SamplingParams sampling = Seeded(random_(), 3);
  const std::vector<int32_t> ids = rig.RandomPrompt(random_, 70);
  Computed(rig, In({DomainOf(1)}, rig.Request(ids, sampling)));
  sampling.prompt_logprobs = 0;
  EXPECT_EQ(Computed(rig, In({DomainOf(1)}, rig.Request(ids, sampling))), 70);
}

// Choices of one request share what was found, and what they make is found again.
TEST_F(ReuseTest, ChoicesShareWhatWasFound) {
  Rig rig;
  const std::vector<int32_t> ids = rig.RandomPrompt(random_, 90);
  auto request = In({DomainOf(1)}, rig.Request(ids, Seeded(random_(), 20)));
  Computed(rig, request);
  request = In({DomainOf(1)}, rig.Request(ids, Seeded(random_(), 20)));
  request.choices = 4;
  const std::unique_ptr<Flight> flight = rig.Launch(request);
  ASSERT_TRUE(flight->prefill.Wait().ok());
  ASSERT_TRUE(flight->decode.Wait().ok());
  std::vector<std::vector<worker::OutputToken>> choices(4);
  for (const auto& token : flight->decode.tokens()) {
    choices[static_cast<size_t>(token.choice)].push_back(token);
  }
  for (int32_t choice = 0; choice < 4; ++choice) {
    worker::StageRequest alone = request;
    alone.choices = 1;
    alone.sampling = request.SamplingOf(choice);
    ExpectRight(rig, alone, choices[static_cast<size_t>(choice)]);
  }
  EXPECT_EQ(rig.prefill_parts.log.prompts().cached, 80);
  EXPECT_EQ(rig.decode_parts.log.prompts().cached, 80);
}

// Pools far too small for what goes through them: blocks are evicted, found, evicted again.
TEST_F(ReuseTest, UnderPressureEveryTextIsRight) {
  Rig rig({.prefill_blocks = 24, .decode_blocks = 40, .requests_max = 16});
  RunUnderPressure(rig);
  EXPECT_GT(rig.prefill_parts.log.prompts().cached + rig.decode_parts.log.prompts().cached, 0);
}

}  // namespace
}  // namespace trivium::stages

// The whole chain of penalties, bias and cuts against an oracle that computes in double precision
// with full sorts, from the formulas of the papers.
#include "common/engine/token_cuts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "common/engine/sampler.h"

namespace trivium::engine {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Request {
  std::vector<float> logits;
  std::vector<int32_t> ids;  // prompt and output
  int32_t output_tokens = 0;
  SamplingParams params;

  SampledToken Sample(int32_t index) const {
    return engine::Sample(logits, params, index, {}, TokenHistory(params, ids, output_tokens));
  }
};

using Probabilities = std::map<int32_t, double>;

void Normalise(Probabilities* p) {
  double total = 0;
  for (const auto& [id, value] : *p) total += value;
  for (auto& [id, value] : *p) value /= total;
}

// Keeps the fewest first ones of `order` whose probabilities reach `share`.
void KeepShare(const std::vector<int32_t>& order, double share, Probabilities* p) {
  Probabilities kept;
  double reached = 0;
  for (int32_t id : order) {
    kept[id] = (*p)[id];
    reached += (*p)[id];
    if (reached >= share * (1 - 1e-12)) break;
  }
  *p = kept;
  Normalise(p);
}

std::vector<int32_t> OrderBy(const Probabilities& p, const std::function<double(int32_t)>& key) {
  std::vector<int32_t> ids;
  for (const auto& [id, value] : p) ids.push_back(id);
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return key(a) < key(b); });
  return ids;
}

std::vector<double> EditedOracle(const Request& request) {
  const SamplingParams& params = request.params;
  std::vector<double> logits(request.logits.begin(), request.logits.end());
  const auto at = request.ids.end() - request.output_tokens;
  for (size_t id = 0; id < logits.size(); ++id) {
    const auto in_all = std::count(request.ids.begin(), request.ids.end(), static_cast<int>(id));
    const auto in_output = std::count(at, request.ids.end(), static_cast<int>(id));
    double& logit = logits[id];
    if (in_all > 0) {
      logit = logit < 0 ? logit * double{params.repetition_penalty}
                        : logit / double{params.repetition_penalty};
    }
    logit -= static_cast<double>(in_output) * double{params.frequency_penalty};
    if (in_output > 0) logit -= double{params.presence_penalty};
    for (const auto& [biased, bias] : params.logit_bias) {
      if (biased == static_cast<int>(id)) logit += double{bias};
    }
    logit = static_cast<float>(logit);
  }
  return logits;
}

Probabilities Oracle(const Request& request) {
  const SamplingParams& params = request.params;
  const std::vector<double> logits = EditedOracle(request);
  const double highest = *std::max_element(logits.begin(), logits.end());
  Probabilities p;
  for (size_t id = 0; id < logits.size(); ++id) {
    const double weight = std::exp((logits[id] - highest) / double{params.temperature});
    if (weight > 0) p[static_cast<int32_t>(id)] = weight;
  }
  Normalise(&p);
  const auto unlikely = [&](int32_t id) { return -logits[static_cast<size_t>(id)]; };
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < p.size()) {
    std::vector<int32_t> order = OrderBy(p, unlikely);
    order.resize(static_cast<size_t>(params.top_k));
    KeepShare(order, 2, &p);
  }
  if (params.typical_p < 1) {
    double entropy = 0;
    for (const auto& [id, value] : p) entropy -= value * std::log(value);
    KeepShare(OrderBy(p, [&](int32_t id) { return std::abs(-std::log(p[id]) - entropy); }),
              double{params.typical_p}, &p);
  }
  if (params.top_p < 1) KeepShare(OrderBy(p, unlikely), double{params.top_p}, &p);
  double most = 0;
  for (const auto& [id, value] : p) most = std::max(most, value);
  std::erase_if(p, [&](const auto& one) { return one.second < double{params.min_p} * most; });
  Normalise(&p);
  return p;
}

Request RandomRequest(std::mt19937& random, size_t vocab) {
  const auto below = [&](uint32_t bound) { return static_cast<uint32_t>(random()) % bound; };
  const auto part = [&] { return static_cast<float>(below(1000)) / 1000.0f; };
  Request request;
  std::normal_distribution<float> normal(0, 0.5f + 3 * part());
  for (size_t i = 0; i < vocab; ++i) request.logits.push_back(normal(random));
  for (uint32_t i = 0, count = 1 + below(60); i < count; ++i) {
    request.ids.push_back(static_cast<int32_t>(below(static_cast<uint32_t>(vocab))));
  }
  request.output_tokens = static_cast<int32_t>(below(static_cast<uint32_t>(request.ids.size())));
  SamplingParams& params = request.params;
  params.temperature = 0.3f + 1.5f * part();
  params.seed = random();
  params.max_tokens = 1 << 30;
  if (below(3) == 0) params.top_k = static_cast<int32_t>(1 + below(static_cast<uint32_t>(vocab)));
  if (below(2) == 0) params.typical_p = 0.05f + 0.9f * part();
  if (below(2) == 0) params.top_p = 0.05f + 0.9f * part();
  if (below(2) == 0) params.min_p = 0.3f * part();
  if (below(2) == 0) params.repetition_penalty = 0.5f + 2 * part();
  if (below(2) == 0) params.presence_penalty = 4 * part() - 2;
  if (below(2) == 0) params.frequency_penalty = 4 * part() - 2;
  for (uint32_t i = 0, count = below(4); i < count; ++i) {
    params.logit_bias.emplace_back(static_cast<int32_t>(i * 2), 10 * part() - 5);
  }
  return request;
}

class ChainTest : public testing::Test {
 protected:
  ChainTest() {
    const uint32_t seed = std::random_device()();
    std::printf("seed %u\n", seed);
    random_.seed(seed);
  }
  std::mt19937 random_;
};

// What is kept is compared as a set. A token may differ only where the oracle's own rounding leaves
// the cut open; continuous random logits make that rarer than any run will see.
TEST_F(ChainTest, KeepsWhatTheOracleKeeps) {
  for (int round = 0; round < 400; ++round) {
    SCOPED_TRACE(round);
    Request request = RandomRequest(random_, round % 4 == 0 ? 4000 : 5 + random_() % 200);
    const Probabilities want = Oracle(request);
    const std::vector<double> edited = EditedOracle(request);
    const std::vector<float> logits(edited.begin(), edited.end());
    const Softmax softmax(Highest(logits), request.params.temperature);
    std::set<int32_t> kept, wanted;
    for (const Candidate& one : KeepByCuts(logits, softmax, request.params)) kept.insert(one.id);
    for (const auto& [id, value] : want) wanted.insert(id);
    ASSERT_EQ(kept, wanted);
    for (int i = 0; i < 20; ++i) ASSERT_TRUE(wanted.contains(request.Sample(i).id));
    request.params.temperature = 0;
    ASSERT_EQ(edited[static_cast<size_t>(request.Sample(0).id)],
              *std::max_element(edited.begin(), edited.end()));
  }
}

// Pearson's statistic over the cells that expect at least five draws, the rest in one.
TEST_F(ChainTest, DrawsFollowTheOraclesDistribution) {
  constexpr int kDraws = 6000;
  for (int round = 0; round < 25; ++round) {
    SCOPED_TRACE(round);
    const Request request = RandomRequest(random_, 40);
    std::map<int32_t, int> seen;
    for (int i = 0; i < kDraws; ++i) ++seen[request.Sample(i).id];
    double statistic = 0, rest = 0;
    int cells = 0, rest_seen = kDraws;
    for (const auto& [id, value] : Oracle(request)) {
      if (value * kDraws < 5) {
        rest += value * kDraws;
        continue;
      }
      ++cells;
      statistic += std::pow(seen[id] - value * kDraws, 2) / (value * kDraws);
      rest_seen -= seen[id];
    }
    if (rest >= 1) {
      ++cells;
      statistic += std::pow(rest_seen - rest, 2) / rest;
    }
    const double freedom = std::max(1, cells - 1);
    // About one in a million of correct runs exceeds this.
    EXPECT_LT(statistic, freedom + 7 * std::sqrt(2 * freedom) + 12) << cells << " cells";
  }
}

// All tokens are equally typical: the lowest ids up to the share remain.
TEST_F(ChainTest, TypicalOfAUniformDistributionKeepsTheShare) {
  const std::vector<float> logits(200, -3.25f);
  const SamplingParams params{.temperature = 0.7f, .typical_p = 0.25f};
  const auto kept = KeepByCuts(logits, Softmax(-3.25f, 0.7f), params);
  ASSERT_EQ(kept.size(), 50u);
  EXPECT_EQ(kept.back().id, 49);
}

// 0.4 of the mass lies on one token and the rest on a thousand: the entropy is near to the content
// of the thousand, so the likeliest token is the untypical one.
TEST_F(ChainTest, TypicalMayDropTheLikeliest) {
  std::vector<float> logits(1001, 0.0f);
  logits[500] = std::log(0.4f / 0.6f * 1000);
  const SamplingParams params{.temperature = 1, .typical_p = 0.3f};
  const auto kept = KeepByCuts(logits, Softmax(Highest(logits), 1), params);
  EXPECT_NEAR(static_cast<double>(kept.size()), 500, 1);
  for (const Candidate& one : kept) EXPECT_NE(one.id, 500);
}

TEST_F(ChainTest, MinPKeepsTiesAndTheLikeliest) {
  const std::vector<float> logits = {1, 3, 2, 3, 1, kNan, -kInf};
  for (const float min_p : {1.0f, 0.9f}) {
    const auto kept = KeepByCuts(logits, Softmax(3, 1), {.temperature = 1, .min_p = min_p});
    ASSERT_EQ(kept.size(), 2u);
    EXPECT_EQ(kept[0].id, 1);
    EXPECT_EQ(kept[1].id, 3);
  }
  // e^-1 = 0.3679 of the likeliest.
  EXPECT_EQ(KeepByCuts(logits, Softmax(3, 1), {.temperature = 1, .min_p = 0.367f}).size(), 3u);
  EXPECT_EQ(KeepByCuts(logits, Softmax(3, 1), {.temperature = 1, .min_p = 0.368f}).size(), 2u);
}

TEST_F(ChainTest, OddLogitsLeaveEveryCutSomethingToDraw) {
  const std::vector<std::vector<float>> cases = {{kNan, 1, kNan},
                                                 {-kInf, 1, -kInf},
                                                 {-3e38f, 3e38f, -1},
                                                 {-5, kInf, 3},
                                                 {kNan, -3e38f, -kInf}};
  for (const auto& logits : cases) {
    for (const float temperature : {0.0f, 1e-44f, 1.0f}) {
      SamplingParams params{.temperature = temperature,
                            .top_p = 0.9f,
                            .min_p = 0.5f,
                            .typical_p = 0.2f,
                            .repetition_penalty = 10,
                            .presence_penalty = 2,
                            .logit_bias = {{0, 100.0f}, {2, -100.0f}}};
      const std::vector<int32_t> ids = {0, 2, 0, 2};
      EXPECT_EQ(Sample(logits, params, 0, {}, TokenHistory(params, ids, 3)).id, 1);
    }
  }
  const std::vector<float> nothing(4, -kInf);
  EXPECT_EQ(Sample(nothing, {.temperature = 1, .min_p = 0.1f, .typical_p = 0.5f}, 0, {}).id, 0);
}

TEST_F(ChainTest, ABiasForcesAndBans) {
  std::vector<float> logits(300);
  std::normal_distribution<float> normal(0, 3);
  for (float& logit : logits) logit = normal(random_);
  const auto best =
      static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  const int32_t other = (best + 123) % 300;
  for (const float temperature : {0.0f, 0.5f, 1.0f}) {
    for (int i = 0; i < 200; ++i) {
      SamplingParams params{.temperature = temperature, .seed = 3, .logit_bias = {{other, 100.0f}}};
      EXPECT_EQ(Sample(logits, params, i, {}).id, other);
      params.logit_bias = {{best, -100.0f}};
      EXPECT_NE(Sample(logits, params, i, {}).id, best);
    }
  }
}

// A bias cannot bring back an end that min_tokens holds back.
TEST_F(ChainTest, MinTokensOutweighsTheBias) {
  std::vector<float> logits(10, 0.0f);
  SamplingParams params{
      .min_tokens = 2, .stop_token_ids = {4}, .logit_bias = {{3, 100.0f}, {4, 50}}};
  const std::vector<int32_t> ends = {3};
  for (const float temperature : {0.0f, 1.0f}) {
    params.temperature = temperature;
    for (int index : {0, 1}) {
      const int32_t id = Sample(logits, params, index, ends).id;
      EXPECT_TRUE(id != 3 && id != 4) << id;
    }
    EXPECT_EQ(Sample(logits, params, 2, ends).id, 3);
  }
}

TEST_F(ChainTest, LogprobsAreThoseBeforePenaltiesAndBias) {
  Request request = RandomRequest(random_, 100);
  request.params.repetition_penalty = 2;
  request.params.logit_bias = {{7, 100.0f}};
  request.params.logprobs = 5;
  const SampledToken got = request.Sample(0);
  EXPECT_EQ(got.id, 7);
  const SampledToken want = Score(request.logits, 7, 5);
  EXPECT_EQ(got.logprob, want.logprob);
  EXPECT_EQ(got.top, want.top);
  double total = 0;
  for (float logit : request.logits) total += std::exp(double{logit});
  EXPECT_NEAR(got.logprob, double{request.logits[7]} - std::log(total), 1e-5);
}

// Whoever counts from ids and whoever has followed the tokens hold the same.
TEST_F(ChainTest, AHistoryFromIdsEqualsOneThatGrew) {
  const SamplingParams params{.presence_penalty = 1};
  std::vector<int32_t> ids;
  for (int i = 0; i < 50; ++i) ids.push_back(static_cast<int32_t>(random_() % 20));
  TokenHistory grown(params, ids, 0);
  for (int32_t outputs = 1; outputs <= 300; ++outputs) {
    ids.push_back(static_cast<int32_t>(random_() % 64));
    grown.Add(ids.back());
    const TokenHistory counted(params, ids, outputs);
    ASSERT_EQ(grown.counts().size(), counted.counts().size());
    for (size_t i = 0; i < grown.counts().size(); ++i) {
      const TokenHistory::Count& count = grown.counts()[i];
      ASSERT_EQ(count.id, counted.counts()[i].id);
      ASSERT_EQ(count.in_output, counted.counts()[i].in_output);
      ASSERT_EQ(count.in_output, std::count(ids.begin() + 50, ids.end(), count.id));
    }
  }
  EXPECT_LE(grown.counts().size(), 64u);
  EXPECT_TRUE(TokenHistory({}, ids, 300).counts().empty()) << "counts without a reader";
}

}  // namespace
}  // namespace trivium::engine

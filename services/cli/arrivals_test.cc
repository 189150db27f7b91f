#include "services/cli/arrivals.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

namespace trivium::cli {
namespace {

using testing::HasSubstr;

// Of an exponential gap, mean and standard deviation are both 1 / rate; of counts in a window, mean
// and variance are equal. Bounds of five standard errors.
TEST(PoissonClockTest, MeanAndVarianceOfGapsAndCounts) {
  constexpr int kGaps = 100000;
  for (const uint64_t seed : {1, 2, 3}) {
    for (const double rate : {0.5, 20.0}) {
      PoissonClock clock(rate, seed);
      double before = 0, sum = 0, squares = 0;
      std::vector<int> counts(static_cast<size_t>(0.9 * kGaps / 10));  // windows of 10 / rate
      for (int i = 0; i < kGaps; ++i) {
        const double now = clock.Next(), gap = (now - before) * rate;
        ASSERT_GE(gap, 0);
        sum += gap;
        squares += gap * gap;
        const auto window = static_cast<size_t>(now * rate / 10);
        if (window < counts.size()) ++counts[window];
        before = now;
      }
      const double mean = sum / kGaps;
      EXPECT_NEAR(mean, 1, 5 / std::sqrt(kGaps)) << "seed " << seed;
      EXPECT_NEAR(squares / kGaps - mean * mean, 1, 5 * std::sqrt(8.0 / kGaps)) << "seed " << seed;
      double variance = 0;
      for (const int count : counts) variance += (count - 10.0) * (count - 10.0);
      variance /= static_cast<double>(counts.size());
      EXPECT_NEAR(variance, 10, 10 * 5 * std::sqrt(2.1 / static_cast<double>(counts.size())));
    }
  }
}

TEST(PoissonClockTest, FixedBySeedAndScaledByRate) {
  PoissonClock a(2, 7), b(2, 7), other(2, 8), faster(4, 7);
  for (int i = 0; i < 100; ++i) {
    const double at = a.Next();
    EXPECT_EQ(b.Next(), at);
    EXPECT_NE(other.Next(), at);
    EXPECT_NEAR(faster.Next(), at / 2, 1e-9 * at);
  }
}

TEST(TraceTest, BothSpellingsCountedFromTheFirst) {
  const auto trace = ParseTrace(
      "{\"timestamp\": 27482, \"input_length\": 6955, \"output_length\": 52, \"hash_ids\": [46, "
      "47]}\n"
      "\r\n"
      "{\"timestamp\": 30535.5, \"prompt_tokens\": 1, \"output_tokens\": 1000000}",
      10);
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->size(), 2u);
  EXPECT_EQ((*trace)[0].at_s, 0);
  EXPECT_EQ((*trace)[0].prompt_tokens, 6955);
  EXPECT_EQ((*trace)[0].output_tokens, 52);
  EXPECT_NEAR((*trace)[1].at_s, 3.0535, 1e-9);
  EXPECT_EQ((*trace)[1].prompt_tokens, 1);
  EXPECT_EQ((*trace)[1].output_tokens, 1000000);
}

TEST(TraceTest, StopsAtTheBound) {
  const std::string line = "{\"timestamp\": 1, \"input_length\": 1, \"output_length\": 1}\n";
  EXPECT_EQ(ParseTrace(line + line + line + "rubbish", 2)->size(), 2u);
}

TEST(TraceTest, HostileLinesAreNamed) {
  const std::string good = "{\"timestamp\": 5, \"input_length\": 1, \"output_length\": 1}\n";
  const std::pair<std::string, const char*> table[] = {
      {"rubbish", "no JSON object"},
      {"[1]", "no JSON object"},
      {"{\"timestamp\": 5", "no JSON object"},
      {std::string(100000, '['), "no JSON object"},
      {std::string(2 << 20, '{'), "longer than"},
      {"{\"input_length\": 1, \"output_length\": 1}", "timestamp is missing"},
      {"{\"timestamp\": \"5\", \"input_length\": 1, \"output_length\": 1}", "timestamp is no"},
      {"{\"timestamp\": -1, \"input_length\": 1, \"output_length\": 1}", "timestamp is no"},
      {"{\"timestamp\": 1e300, \"input_length\": 1, \"output_length\": 1}", "timestamp is no"},
      {"{\"timestamp\": 1e999, \"input_length\": 1, \"output_length\": 1}", "line 2"},
      {"{\"timestamp\": 4, \"input_length\": 1, \"output_length\": 1}", "before"},
      {"{\"timestamp\": 5, \"output_length\": 1}", "input_length (or prompt_tokens) is missing"},
      {"{\"timestamp\": 5, \"input_length\": 0, \"output_length\": 1}", "from 1 to"},
      {"{\"timestamp\": 5, \"input_length\": 1.5, \"output_length\": 1}", "from 1 to"},
      {"{\"timestamp\": 5, \"input_length\": 18446744073709551615, \"output_length\": 1}",
       "from 1"},
      {"{\"timestamp\": 5, \"input_length\": 1, \"output_length\": 1000001}",
       "output_length is no"},
      {"{\"timestamp\": 5, \"input_length\": 1, \"prompt_tokens\": 1, \"output_length\": 1}",
       "both"},
  };
  for (const auto& [line, why] : table) {
    const auto trace = ParseTrace(good + line, 10);
    ASSERT_FALSE(trace.ok()) << line.substr(0, 100);
    EXPECT_THAT(Message(trace.status()), HasSubstr("line 2: ")) << line.substr(0, 100);
    EXPECT_THAT(Message(trace.status()), HasSubstr(why)) << line.substr(0, 100);
  }
  EXPECT_FALSE(ParseTrace("", 10).ok());
  EXPECT_FALSE(ParseTrace("\n\n", 10).ok());
}

TEST(TraceTest, Files) {
  EXPECT_THAT(Message(ReadTrace("/nowhere", 1).status()), HasSubstr("/nowhere: No such file"));
  EXPECT_FALSE(ReadTrace("/dev/zero", 1).ok());  // endless
  EXPECT_FALSE(ReadTrace(testing::TempDir(), 1).ok());
}

}  // namespace
}  // namespace trivium::cli

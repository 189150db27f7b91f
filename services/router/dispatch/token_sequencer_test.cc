#include "services/router/dispatch/token_sequencer.h"

#include <gtest/gtest.h>

#include <vector>

namespace trivium::router {
namespace {

using Verdict = TokenSequencer::Verdict;
constexpr int32_t kMaxTokens = 3, kVocab = 2;
const char* const kReasons[] = {"", "stop", "length", "bored"};

v1::StageToken Token(int32_t index, int32_t id, const std::string& reason) {
  v1::StageToken token;
  token.set_index(index);
  token.set_id(id);
  token.set_finish_reason(reason);
  return token;
}

// The rules once more, in the plainest words, over everything that was offered.
struct Oracle {
  std::vector<int32_t> ids;
  bool is_finished = false;

  Verdict Offer(const v1::StageToken& t) {
    const int32_t size = static_cast<int32_t>(ids.size());
    const bool is_last = t.finish_reason() != "";
    if (t.index() < 0 || t.index() > kMaxTokens - 1 || t.id() < 0 || t.id() > kVocab - 1 ||
        t.finish_reason() == "bored") {
      return Verdict::kMalformed;
    }
    if (t.index() < size && ids[t.index()] == t.id()) return Verdict::kDuplicate;
    if (t.index() < size) return Verdict::kMismatch;
    if (is_finished) return Verdict::kMalformed;
    if (t.index() != size) return Verdict::kGap;
    if (t.index() == kMaxTokens - 1 && !is_last) return Verdict::kMalformed;
    ids.push_back(t.id());
    is_finished = is_last;
    return Verdict::kNew;
  }
};

// Every sequence of offers up to a depth, over every token that can be told apart.
void Explore(const TokenSequencer& sequencer, const Oracle& oracle, int depth, int64_t* offers) {
  if (depth == 0) return;
  for (int32_t index = -1; index <= kMaxTokens; ++index) {
    for (int32_t id = -1; id <= kVocab; ++id) {
      for (const char* reason : kReasons) {
        TokenSequencer next = sequencer;
        Oracle expected = oracle;
        const v1::StageToken token = Token(index, id, reason);
        const Verdict verdict = next.Offer(token);
        ASSERT_EQ(verdict, expected.Offer(token)) << token.ShortDebugString();
        ASSERT_EQ(std::vector<int32_t>(next.ids().begin(), next.ids().end()), expected.ids);
        ASSERT_EQ(next.is_finished(), expected.is_finished);
        ++*offers;
        // What changed nothing leads nowhere new.
        if (verdict == Verdict::kNew) Explore(next, expected, depth - 1, offers);
      }
    }
  }
}

TEST(TokenSequencerTest, EverySequenceOfOffersGivesEachIndexOnce) {
  int64_t offers = 0;
  Explore(TokenSequencer(kMaxTokens, kVocab), Oracle(), kMaxTokens + 1, &offers);
  EXPECT_GT(offers, 1000);
}

}  // namespace
}  // namespace trivium::router

// Byte pair encoding of one word: the merge of lowest rank first, the leftmost among equals. The
// rules are immutable once built; a Merger holds scratch and belongs to one thread.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace trivium::model {

class MergeRules {
 public:
  struct Result {
    int32_t rank;
    int32_t id;
  };

  void Reserve(size_t count) { rules_.reserve(count); }
  size_t size() const { return rules_.size(); }
  // False when the pair has a rule already.
  bool Add(int32_t left, int32_t right, Result result) {
    return rules_.emplace(Key(left, right), result).second;
  }
  const Result* Find(int32_t left, int32_t right) const {
    auto rule = rules_.find(Key(left, right));
    return rule == rules_.end() ? nullptr : &rule->second;
  }

 private:
  static uint64_t Key(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  struct Hash {
    size_t operator()(uint64_t key) const { return (key ^ key >> 29) * 0x9E3779B97F4A7C15u >> 7; }
  };

  std::unordered_map<uint64_t, Result, Hash> rules_;
};

class Merger {
 public:
  explicit Merger(const MergeRules& rules) : rules_(rules) {}

  // Appends what is left of the symbols (ids, none negative) when no rule applies any more.
  // O(n log n) time, O(n) memory.
  void Merge(std::span<const int32_t> symbols, std::vector<int32_t>& out);

 private:
  static constexpr int32_t kNone = -1;  // no neighbour

  struct Symbol {
    int32_t id;  // kNone: merged into its left neighbour
    int32_t previous;
    int32_t next;
  };
  // A merge that was possible when it was queued; the ids tell whether it still is.
  struct Candidate {
    int32_t rank;
    int32_t position;
    int32_t left_id;
    int32_t right_id;
  };
  // Orders a heap so that the lowest rank, then the leftmost position, is on top.
  struct Later {
    bool operator()(const Candidate& a, const Candidate& b) const {
      return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
    }
  };

  void Queue(int32_t position);
  void Apply(const Candidate& candidate);

  const MergeRules& rules_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
};

}  // namespace trivium::model

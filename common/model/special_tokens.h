// The tokens that stand in a text as they are written, found in one pass: a trie over their bytes.
// Immutable once built; then safe from any thread.
#pragma once

#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace trivium::model {

class SpecialTokens {
 public:
  struct Match {
    int32_t id = -1;  // -1: nothing matches
    size_t size = 0;
  };

  // A token of more than kMaxBytes bytes or without any is left out: it is never found in a text.
  void Add(std::string_view text, int32_t id);

  // The longest token that starts where `text` starts. At most kMaxBytes steps.
  Match MatchAt(std::string_view text) const;

  bool empty() const { return ids_.size() == 1; }

  static constexpr size_t kMaxBytes = 256;

 private:
  std::unordered_map<uint64_t, uint32_t> children_;  // node << 8 | byte → node
  std::vector<int32_t> ids_ = {-1};                  // of the token that ends in a node
};

}  // namespace trivium::model

// The tokens that stand in a text as they are written: the longest one at a place.
// Immutable once built; then safe from any thread.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>

namespace trivium::model {

class SpecialTokens {
 public:
  struct Match {
    int32_t id = -1;  // -1: nothing matches
    size_t size = 0;
  };

  // A token of more than kMaxBytes bytes or without any is left out: it is never found in a text.
  void Add(std::string_view text, int32_t id);

  // The longest token that starts where `text` starts. One look at its first byte where no token
  // begins so, a few comparisons of texts elsewhere.
  Match MatchAt(std::string_view text) const;

  bool empty() const { return ids_.empty(); }

  static constexpr size_t kMaxBytes = 256;

 private:
  std::map<std::string, int32_t, std::less<>> ids_;
  std::array<bool, 256> begins_{};  // whether a token begins with the byte
};

}  // namespace trivium::model

#include "common/model/special_tokens.h"

#include <algorithm>
#include <iterator>

namespace trivium::model {

void SpecialTokens::Add(std::string_view text, int32_t id) {
  if (text.empty() || text.size() > kMaxBytes) return;
  ids_[std::string(text)] = id;
  begins_[static_cast<uint8_t>(text[0])] = true;
}

// A token that `text` begins with stands before `text` in order. So does whatever else lies between
// the longest such token and `text`, but it leaves `text` before the end: all tokens that `text`
// begins with are then as short as what the two share, which is the next thing to look for.
SpecialTokens::Match SpecialTokens::MatchAt(std::string_view text) const {
  if (text.empty() || !begins_[static_cast<uint8_t>(text[0])]) return {};
  size_t size = std::min(text.size(), kMaxBytes);
  while (size > 0) {
    const auto after = ids_.upper_bound(text.substr(0, size));
    if (after == ids_.begin()) return {};
    const auto& [token, id] = *std::prev(after);
    const auto differs = std::mismatch(token.begin(), token.end(), text.begin(), text.end()).first;
    size = static_cast<size_t>(differs - token.begin());
    if (size == token.size()) return {id, size};
  }
  return {};
}

}  // namespace trivium::model

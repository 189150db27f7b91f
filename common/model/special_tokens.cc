#include "common/model/special_tokens.h"

namespace trivium::model {
namespace {

uint64_t Edge(uint32_t node, char byte) { return uint64_t{node} << 8 | static_cast<uint8_t>(byte); }

}  // namespace

void SpecialTokens::Add(std::string_view text, int32_t id) {
  if (text.empty() || text.size() > kMaxBytes) return;
  uint32_t node = 0;
  for (char byte : text) {
    auto [edge, added] = children_.emplace(Edge(node, byte), static_cast<uint32_t>(ids_.size()));
    if (added) ids_.push_back(-1);
    node = edge->second;
  }
  ids_[node] = id;
}

SpecialTokens::Match SpecialTokens::MatchAt(std::string_view text) const {
  Match longest;
  uint32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    auto edge = children_.find(Edge(node, text[i]));
    if (edge == children_.end()) break;
    node = edge->second;
    if (ids_[node] >= 0) longest = {ids_[node], i + 1};
  }
  return longest;
}

}  // namespace trivium::model

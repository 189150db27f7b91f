#include "common/kv/block_index.h"

#include <algorithm>

#include "common/base/status.h"

namespace trivium::kv {

BlockIndex::BlockIndex(int32_t blocks) : entries_(static_cast<size_t>(blocks)) {
  by_key_.reserve(entries_.size());  // so that no step waits for it to grow
}

std::optional<BlockId> BlockIndex::Find(const BlockKey& key) const {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return std::nullopt;
  return found->second;
}

bool BlockIndex::Holds(BlockId block, const KeyedBlock& wanted) const {
  const Entry& entry = At(block);
  return entry.key == wanted.key && std::equal(entry.tokens.begin(), entry.tokens.end(),
                                               wanted.tokens.begin(), wanted.tokens.end());
}

void BlockIndex::Add(BlockId block, const KeyedBlock& content, std::optional<BlockId> parent) {
  Entry& entry = At(block);
  const bool is_new = by_key_.emplace(content.key, block).second;
  TRIVIUM_CHECK(is_new && !entry.key, "block {} is published twice", block.value);
  entry.key = content.key;
  entry.tokens.assign(content.tokens.begin(), content.tokens.end());
  entry.parent = parent;
  if (parent) ++At(*parent).children;
}

std::optional<BlockId> BlockIndex::Remove(BlockId block) {
  Entry& entry = At(block);
  TRIVIUM_CHECK(entry.key && entry.children == 0, "block {} is removed before its children",
                block.value);
  by_key_.erase(*entry.key);
  entry.key.reset();
  std::fill(entry.tokens.begin(), entry.tokens.end(), 0);  // somebody's text
  if (entry.parent && --At(*entry.parent).children == 0) return entry.parent;
  return std::nullopt;
}

}  // namespace trivium::kv

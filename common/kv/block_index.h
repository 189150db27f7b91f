// Finds published blocks by their keys, and knows which follows which. Guarded by the pool's lock.
//
// Invariants: a key stands for one block; the parent of a block is there as long as the block is.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <unordered_map>
#include <vector>

#include "common/base/ids.h"
#include "common/kv/block_key.h"

namespace trivium::kv {

class BlockIndex {
 public:
  explicit BlockIndex(int32_t blocks);

  std::optional<BlockId> Find(const BlockKey& key) const;
  // Whether a block that was found holds these very tokens, too.
  bool Holds(BlockId block, const KeyedBlock& wanted) const;
  bool Contains(BlockId block) const { return At(block).key.has_value(); }

  // `parent`: the block with the key that `content` names so; none for the first of a sequence.
  void Add(BlockId block, const KeyedBlock& content, std::optional<BlockId> parent);
  // Of a block that is there; valid until it is removed.
  BlockContent ContentOf(BlockId block) const { return {*At(block).key, At(block).tokens}; }
  // Forgets a block without children. Returns its parent if that has none now.
  std::optional<BlockId> Remove(BlockId block);

 private:
  // A key is a keyed hash of which nobody outside knows the key; any word of it will do.
  struct Hash {
    size_t operator()(const BlockKey& key) const {
      size_t word;
      std::memcpy(&word, key.bytes.data(), sizeof(word));
      return word;
    }
  };
  struct Entry {
    std::optional<BlockKey> key;  // none: not published
    std::vector<int32_t> tokens;
    std::optional<BlockId> parent;
    int32_t children = 0;
  };
  Entry& At(BlockId block) { return entries_[static_cast<size_t>(block.value)]; }
  const Entry& At(BlockId block) const { return entries_[static_cast<size_t>(block.value)]; }

  std::unordered_map<BlockKey, BlockId, Hash> by_key_;
  std::vector<Entry> entries_;  // by block
};

}  // namespace trivium::kv

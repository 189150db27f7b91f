// Names for what KV blocks hold: a chain of keyed hashes over the tokens of a prompt, so that equal
// keys mean equal keys and values, in one sharing domain.
//
// Key of a block = BLAKE2b-256, keyed with its domain's secret, over the parent's key, the block's
// token ids and the digests of the pictures inside it; the first parent is the KeySpace, all that
// two caches must have in common to exchange KV. Every part is typed and length-prefixed. A domain
// may end and another begin at any block border, so that tenants can share what stands before it
// and nothing after.
//
// Thread-safety: plain values and pure functions; a BlockChain belongs to one thread.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/ids.h"
#include "common/base/status.h"

namespace trivium::kv {

struct BlockKey {
  std::array<uint8_t, 32> bytes{};
  friend auto operator<=>(const BlockKey&, const BlockKey&) = default;
};

// A key's first 128 bits: for indexes that would rather be small. Two blocks of one cluster never
// share them by chance, and a worker compares the whole key and the tokens before it uses a block.
struct CutKey {
  uint64_t high = 0, low = 0;
  friend auto operator<=>(const CutKey&, const CutKey&) = default;
};
CutKey Cut(const BlockKey& key);
// Its 16 bytes, as messages carry them.
void AppendBytes(const CutKey& key, std::string* out);
CutKey CutKeyFrom(std::string_view bytes);  // 16

// The secret of a sharing domain. Never logged, stored or shown.
struct DomainKey {
  std::array<uint8_t, 32> bytes{};
  friend bool operator==(const DomainKey&, const DomainKey&) = default;
};
// Names a domain where its secret has no business: in accounts and tests. One-way.
using DomainTag = StrongInt<struct DomainTagTag, uint64_t>;

// `epoch` rises when an operator wants all that is cached to be out of reach. `master`: at least 32
// bytes, else INVALID_ARGUMENT.
absl::StatusOr<DomainKey> DeriveDomainKey(std::string_view master, std::string_view domain_id,
                                          uint64_t epoch);
DomainTag TagOf(const DomainKey& key);

// What the KV of two workers must have in common before a block of one may stand in for a block of
// the other.
struct KeySpace {
  std::string model;           // fingerprint: weights, tokenizer, RoPE and attention settings
  std::string numerics_class;  // mode and instruction-set path
  uint32_t kv_format = 0;      // transfer::WireFormat
  int32_t block_tokens = 16;
};

// Whose the blocks of a prompt are, up to a border. Shares are of a worker's blocks.
struct Domain {
  DomainKey key;
  int32_t token_end = 0;  // of the tokens from the last domain's end; a multiple of block_tokens.
                          // INT32_MAX for the last
  float quota = 1;        // that its cached blocks may take at most
  float floor = 0;        // that eviction for other domains leaves it
  int32_t pin_s = 0;      // no eviction for so long after a use: public prefixes
};

// A picture inside a prompt: the digest of its decoded pixels stands for the `tokens` placeholders
// from `position` on.
struct MediaSpan {
  int32_t position = 0, tokens = 0;
  std::array<uint8_t, 32> digest{};
  int32_t end() const { return position + tokens; }
};

// What makes a block the one that is wanted. The tokens are somebody else's.
struct BlockContent {
  BlockKey key;
  std::span<const int32_t> tokens;
};

// One full block of a sequence. The tokens are the chain's, valid as long as it is unchanged.
struct KeyedBlock {
  BlockKey key, parent;
  DomainTag domain;
  std::span<const int32_t> tokens;
};

// The full blocks of a sequence that grows at its end.
class BlockChain {
 public:
  // INVALID_ARGUMENT unless the domains' ends rise, lie on block borders, and the last is
  // INT32_MAX; no domains at all is a chain that stays empty. `media`: sorted by position, none
  // over another, else INVALID_ARGUMENT too; as for blocks of less than 1 or more than 4096 tokens.
  static absl::StatusOr<BlockChain> Create(const KeySpace& space, std::vector<Domain> domains,
                                           std::vector<MediaSpan> media = {});
  BlockChain() = default;  // stays empty

  void Append(std::span<const int32_t> tokens);
  // Those that are full.
  int32_t size() const { return static_cast<int32_t>(keys_.size()); }
  KeyedBlock block(int32_t index) const;
  const Domain& domain(int32_t index) const;  // of a block
  std::span<const BlockKey> keys() const { return keys_; }
  // The last domain, whose owner the sequence is; nothing for a chain without domains.
  std::optional<DomainTag> owner() const {
    return tags_.empty() ? std::nullopt : std::optional(tags_.back());
  }

 private:
  BlockKey NextKey();
  size_t DomainIndex(int32_t block) const;

  int32_t block_tokens_ = 0;
  BlockKey root_;
  std::vector<Domain> domains_;
  std::vector<DomainTag> tags_;  // by domain
  std::vector<MediaSpan> media_;
  size_t media_begin_ = 0;  // those before it lie in full blocks
  std::vector<int32_t> tokens_;
  std::vector<BlockKey> keys_;
};

// How many leading blocks two chains have in common.
int32_t CommonBlocks(const BlockChain& a, const BlockChain& b);

}  // namespace trivium::kv

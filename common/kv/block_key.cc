#include "common/kv/block_key.h"

#include <algorithm>
#include <bit>
#include <climits>
#include <ranges>
#include <utility>

#include "common/kv/keyed_hash.h"

namespace trivium::kv {
namespace {

static_assert(std::endian::native == std::endian::little, "keys are made of little-endian words");

using Bytes32 = std::array<uint8_t, 32>;
constexpr int32_t kBlockTokensMax = 4096;

// What a hash is for.
constexpr char kForMaster[] = "trivium.master  ";
constexpr char kForDomain[] = "trivium.domain  ";
constexpr char kForTag[] = "trivium.tag     ";
constexpr char kForSpace[] = "trivium.kvspace ";
constexpr char kForBlock[] = "trivium.kvblock ";
// For what is no secret.
constexpr std::string_view kPublicKey = "trivium";

std::string_view ViewOf(const Bytes32& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// A message of typed parts: a letter, the length as 4 bytes, the bytes.
class Parts {
 public:
  void Clear() { bytes_.clear(); }
  void Add(char type, const void* data, size_t size) {
    const auto length = static_cast<uint32_t>(size);
    bytes_.push_back(type);
    bytes_.append(reinterpret_cast<const char*>(&length), sizeof(length));
    bytes_.append(static_cast<const char*>(data), size);
  }
  void Add(char type, std::string_view text) { Add(type, text.data(), text.size()); }
  template <typename T>
  void AddInt(char type, T value) {
    Add(type, &value, sizeof(value));
  }
  std::string_view bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

BlockKey RootOf(const KeySpace& space) {
  Parts parts;
  parts.Add('m', space.model);
  parts.Add('n', space.numerics_class);
  parts.AddInt<uint32_t>('f', space.kv_format);
  parts.AddInt<int32_t>('b', space.block_tokens);
  return {KeyedHash(kForSpace)(kPublicKey, parts.bytes())};
}

absl::Status CheckDomains(std::span<const Domain> domains, int32_t block_tokens) {
  if (domains.empty()) return absl::OkStatus();
  int32_t begin = 0;
  for (const Domain& domain : domains.first(domains.size() - 1)) {
    if (domain.token_end <= begin || domain.token_end % block_tokens != 0) {
      return InvalidArgument(
          "a domain of the tokens {} to {}: it must end on a border of blocks of {}", begin,
          domain.token_end, block_tokens);
    }
    begin = domain.token_end;
  }
  if (domains.back().token_end == INT32_MAX) return absl::OkStatus();
  return InvalidArgument("the last domain ends at token {}", domains.back().token_end);
}

absl::Status CheckMedia(std::span<const MediaSpan> media) {
  int32_t begin = 0;
  for (const MediaSpan& span : media) {
    if (span.position < begin || span.tokens < 1 || span.tokens > INT32_MAX - span.position) {
      return InvalidArgument("a picture of {} tokens at {}, where those before it end at {}",
                             span.tokens, span.position, begin);
    }
    begin = span.position + span.tokens;
  }
  return absl::OkStatus();
}

}  // namespace

CutKey Cut(const BlockKey& key) {
  CutKey cut;
  std::memcpy(&cut.high, key.bytes.data(), sizeof(cut.high));
  std::memcpy(&cut.low, key.bytes.data() + sizeof(cut.high), sizeof(cut.low));
  return cut;
}

void AppendBytes(const CutKey& key, std::string* out) {
  static_assert(sizeof(key) == 16);
  out->append(reinterpret_cast<const char*>(&key), sizeof(key));
}

CutKey CutKeyFrom(std::string_view bytes) {
  TRIVIUM_CHECK(bytes.size() == sizeof(CutKey), "a cut key of {} bytes", bytes.size());
  CutKey key;
  std::memcpy(&key, bytes.data(), sizeof(key));
  return key;
}

absl::StatusOr<DomainKey> DeriveDomainKey(std::string_view master, std::string_view domain_id,
                                          uint64_t epoch) {
  if (master.size() < 32) {
    return InvalidArgument("a master key of {} bytes, at least 32 are needed", master.size());
  }
  // A key of BLAKE2b has at most 64 bytes, a file may have more.
  const Bytes32 key = KeyedHash(kForMaster)(kPublicKey, master);
  Parts parts;
  parts.Add('d', domain_id);
  parts.AddInt<uint64_t>('e', epoch);
  return DomainKey{KeyedHash(kForDomain)(ViewOf(key), parts.bytes())};
}

DomainTag TagOf(const DomainKey& key) {
  thread_local KeyedHash hasher(kForTag);
  const Bytes32 hash = hasher(ViewOf(key.bytes), {});
  DomainTag tag;
  std::memcpy(&tag.value, hash.data(), sizeof(tag.value));
  return tag;
}

absl::StatusOr<BlockChain> BlockChain::Create(const KeySpace& space, std::vector<Domain> domains,
                                              std::vector<MediaSpan> media) {
  if (space.block_tokens < 1 || space.block_tokens > kBlockTokensMax) {
    return InvalidArgument("blocks of {} tokens", space.block_tokens);
  }
  RETURN_IF_ERROR(CheckDomains(domains, space.block_tokens));
  RETURN_IF_ERROR(CheckMedia(media));
  BlockChain chain;
  if (domains.empty()) return chain;
  chain.block_tokens_ = space.block_tokens;
  chain.root_ = RootOf(space);
  for (const Domain& domain : domains) chain.tags_.push_back(TagOf(domain.key));
  chain.domains_ = std::move(domains);
  chain.media_ = std::move(media);
  return chain;
}

void BlockChain::Append(std::span<const int32_t> tokens) {
  if (domains_.empty()) return;
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  const size_t full = tokens_.size() / static_cast<size_t>(block_tokens_);
  while (keys_.size() < full) keys_.push_back(NextKey());
}

BlockKey BlockChain::NextKey() {
  thread_local KeyedHash hasher(kForBlock);
  thread_local Parts parts;
  const int32_t begin = size() * block_tokens_, end = begin + block_tokens_;
  const BlockKey& parent = keys_.empty() ? root_ : keys_.back();
  parts.Clear();
  parts.Add('p', ViewOf(parent.bytes));
  parts.Add('t', tokens_.data() + begin, static_cast<size_t>(block_tokens_) * sizeof(int32_t));
  for (; media_begin_ < media_.size(); ++media_begin_) {
    const MediaSpan& span = media_[media_begin_];
    if (span.position >= end) break;
    // Which part of the picture lies where in this block.
    parts.AddInt<int32_t>('o', span.position - begin);
    parts.AddInt<int32_t>('l', span.tokens);
    parts.Add('i', ViewOf(span.digest));
    if (span.position + span.tokens > end) break;  // goes on in the next block
  }
  return {hasher(ViewOf(domain(size()).key.bytes), parts.bytes())};
}

size_t BlockChain::DomainIndex(int32_t index) const {
  const int64_t begin = int64_t{index} * block_tokens_;
  size_t i = 0;
  while (domains_[i].token_end <= begin) ++i;
  return i;
}

KeyedBlock BlockChain::block(int32_t index) const {
  const auto at = static_cast<size_t>(index), width = static_cast<size_t>(block_tokens_);
  return {.key = keys_[at],
          .parent = index == 0 ? root_ : keys_[at - 1],
          .domain = tags_[DomainIndex(index)],
          .tokens = std::span(tokens_).subspan(at * width, width)};
}

const Domain& BlockChain::domain(int32_t index) const { return domains_[DomainIndex(index)]; }

int32_t CommonBlocks(const BlockChain& a, const BlockChain& b) {
  const auto keys = a.keys().first(static_cast<size_t>(std::min(a.size(), b.size())));
  const auto indices = std::views::iota(size_t{0}, keys.size());
  // A key names all before it: where one differs, all behind it do.
  const auto differs = std::ranges::partition_point(
      indices, [&](size_t i) { return keys[i] == b.keys()[i]; });
  return static_cast<int32_t>(differs - indices.begin());
}

}  // namespace trivium::kv

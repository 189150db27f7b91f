#include "common/media/media_pool.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <utility>
#include <vector>

namespace trivium::media {
namespace {

kernels::KvLayout LayoutOf(int32_t hidden) {
  return {.block_tokens = kBlockTokens, .kv_heads = 1, .head_dim = hidden};
}

// Visits the two halves of each row: where one lies, and where it is in the rows.
template <typename F>
void ForEachHalf(const kv::KvStorage& storage, std::span<const BlockId> blocks, int32_t begin,
                 int32_t count, F&& visit) {
  const int64_t words = storage.layout().RowWords();
  for (int32_t i = 0; i < count; ++i) {
    const int32_t token = begin + i, slot = token % kBlockTokens;
    uint16_t* page = storage.page(0, blocks[static_cast<size_t>(token / kBlockTokens)]);
    for (int half = 0; half < 2; ++half) {
      visit(page + (int64_t{half} * kBlockTokens + slot) * words,
            (int64_t{i} * 2 + half) * words / 2);
    }
  }
}

}  // namespace

absl::StatusOr<MediaPool> MakeMediaPool(MediaPoolOptions options,
                                        const TransportFactory& make_transport) {
  if (options.hidden < 2 || options.hidden % 2 != 0) {
    return InvalidArgument("multimedia tokens of {} values", options.hidden);
  }
  const kernels::KvLayout layout = LayoutOf(options.hidden);
  const int64_t blocks = options.memory_bytes / layout.PageBytes();
  if (blocks < 1 || blocks > INT32_MAX) {
    return InvalidArgument("pictures.memory_bytes {} holds {} blocks of {} bytes",
                           options.memory_bytes, blocks, layout.PageBytes());
  }
  MediaPool pool;
  ASSIGN_OR_RETURN(pool.storage, kv::KvStorage::Create(layout, 1, static_cast<int32_t>(blocks)));
  pool.blocks = std::make_unique<kv::BlockPool>(
      static_cast<int32_t>(blocks), [storage = pool.storage](BlockId b) { storage->Scrub(b); });
  options.transport.storage = pool.storage;
  ASSIGN_OR_RETURN(pool.transport, make_transport(std::move(options.transport)));
  return pool;
}

void WriteRows(const kv::KvStorage& storage, std::span<const BlockId> blocks, int32_t begin,
               std::span<const float> rows) {
  const int32_t hidden = storage.layout().head_dim;
  const auto bytes = static_cast<size_t>(hidden) / 2 * sizeof(float);
  ForEachHalf(storage, blocks, begin, static_cast<int32_t>(std::ssize(rows) / hidden),
              [&](uint16_t* half, int64_t at) { std::memcpy(half, rows.data() + at, bytes); });
}

void ReadRows(const kv::KvStorage& storage, std::span<const BlockId> blocks, int32_t begin,
              std::span<float> rows) {
  const int32_t hidden = storage.layout().head_dim;
  const auto bytes = static_cast<size_t>(hidden) / 2 * sizeof(float);
  ForEachHalf(
      storage, blocks, begin, static_cast<int32_t>(std::ssize(rows) / hidden),
      [&](const uint16_t* half, int64_t at) { std::memcpy(rows.data() + at, half, bytes); });
}

// The pool's blocks are full in its books, also where the last one holds fewer tokens: each counts
// as kBlockTokens times the number of the slice.
absl::StatusOr<kv::BlockChain> ChainOf(const kv::DomainKey& domain, std::string_view picture,
                                       int32_t slice, int32_t tokens, float quota, float floor) {
  kv::MediaSpan span{.position = 0, .tokens = tokens};
  if (picture.size() != span.digest.size()) {
    return InvalidArgument("the key of a picture has {} bytes", picture.size());
  }
  std::copy(picture.begin(), picture.end(), span.digest.begin());
  ASSIGN_OR_RETURN(
      kv::BlockChain chain,
      kv::BlockChain::Create(
          {.model = "multimedia tokens", .numerics_class = "", .block_tokens = kBlockTokens},
          {{.key = domain, .token_end = INT32_MAX, .quota = quota, .floor = floor}}, {span}));
  chain.Append(std::vector<int32_t>(
      static_cast<size_t>(BlocksFor(tokens)) * static_cast<size_t>(kBlockTokens), slice));
  return chain;
}

}  // namespace trivium::media

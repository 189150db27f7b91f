// Blocks of multimedia tokens, kept and moved by the same means as those of KV: a KvStorage of one
// layer, whose row is the float32 embedding of one token, a BlockPool for the accounting and a
// Transport that lands in it. So leases, scrubbing, generations, eviction by domain and every check
// of the wire are those of KV, and there is nothing here but what a row means.
//
// A row of float32 [hidden] lies in the two halves of a page as KvLayout has them: its first half
// where the keys are, its second where the values are.
//
// Thread-safety: as its parts, which are safe from any thread; who may touch which block is decided
// by the pool. Members go in reverse order: the transport before what it writes to.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "common/base/status.h"
#include "common/kv/block_pool.h"
#include "common/kv/kv_storage.h"
#include "common/media/blocks.h"
#include "common/transfer/transport.h"

namespace trivium::media {

struct MediaPool {
  std::shared_ptr<kv::KvStorage> storage;
  std::unique_ptr<kv::BlockPool> blocks;
  std::unique_ptr<transfer::Transport> transport;

  int32_t hidden() const { return storage->layout().head_dim; }
};

struct MediaPoolOptions {
  int32_t hidden = 0;  // even
  int64_t memory_bytes = 0;
  transfer::TransportOptions transport;  // all but the storage
};

using TransportFactory =
    std::function<absl::StatusOr<std::unique_ptr<transfer::Transport>>(transfer::TransportOptions)>;

// Backs the memory at once. INVALID_ARGUMENT for less than a block, or an odd row.
absl::StatusOr<MediaPool> MakeMediaPool(MediaPoolOptions options,
                                        const TransportFactory& make_transport);

// Rows of the tokens from `begin` on: into blocks, and out of them. rows: [count, hidden].
void WriteRows(const kv::KvStorage& storage, std::span<const BlockId> blocks, int32_t begin,
               std::span<const float> rows);
void ReadRows(const kv::KvStorage& storage, std::span<const BlockId> blocks, int32_t begin,
              std::span<float> rows);

// The blocks of one slice of a picture, by name: whoever holds this key holds these tokens.
// `picture`: of vision::PictureKey, 32 bytes; `domain`: whose they are.
absl::StatusOr<kv::BlockChain> ChainOf(const kv::DomainKey& domain, std::string_view picture,
                                       int32_t slice, int32_t tokens, float quota, float floor);

}  // namespace trivium::media

// The bytes of a worker's KV cache: for each layer an array of pages (kernels/ops.h, KvLayout), so
// that one layer of a block can be sent alone. Allocated once, page-aligned, zeroed, excluded from
// core dumps. Thread-safety: hands out pointers; who may touch which block is decided by BlockPool.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "common/base/ids.h"
#include "common/base/status.h"
#include "kernels/ops.h"

namespace trivium::kv {

class KvStorage {
 public:
  // Backs the memory at once. RESOURCE_EXHAUSTED naming the bytes when they can't be had,
  // INVALID_ARGUMENT for sizes below 1 or absurd ones.
  static absl::StatusOr<std::unique_ptr<KvStorage>> Create(kernels::KvLayout layout, int layers,
                                                           int32_t blocks);
  ~KvStorage();
  KvStorage(const KvStorage&) = delete;
  KvStorage& operator=(const KvStorage&) = delete;

  const kernels::KvLayout& layout() const { return layout_; }
  int layers() const { return layers_; }
  int32_t blocks() const { return blocks_; }
  size_t bytes() const { return bytes_; }

  uint16_t* layer(int layer) const {
    return base_ + int64_t{layer} * blocks_ * layout_.PageWords();
  }
  uint16_t* page(int layer_index, BlockId block) const {
    return layer(layer_index) + block.value * layout_.PageWords();
  }
  // Overwrites every layer of a block with zeros; what a BlockPool's scrubber calls.
  void Scrub(BlockId block);
  // Copies the keys and values of the first `rows` tokens of a block, in every layer, to another.
  void CopyRows(BlockId from, BlockId to, int32_t rows);

 private:
  KvStorage() = default;
  kernels::KvLayout layout_;
  int layers_ = 0;
  int32_t blocks_ = 0;
  uint16_t* base_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace trivium::kv

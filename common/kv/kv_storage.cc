#include "common/kv/kv_storage.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

namespace trivium::kv {
namespace {

constexpr int kMaxBlockTokens = 4096;
constexpr int kMaxRowElems = 1 << 20;

absl::StatusOr<size_t> BytesNeeded(const kernels::KvLayout& layout, int layers, int32_t blocks) {
  if (layout.block_tokens < 1 || layout.block_tokens > kMaxBlockTokens || layout.kv_heads < 1 ||
      layout.head_dim < 1 || layout.RowElems() > kMaxRowElems) {
    return InvalidArgument("a KV layout of {} tokens, {} heads of size {}", layout.block_tokens,
                           layout.kv_heads, layout.head_dim);
  }
  if (layers < 1 || blocks < 1) {
    return InvalidArgument("a KV storage of {} layers and {} blocks", layers, blocks);
  }
  int64_t bytes = 0;
  if (__builtin_mul_overflow(int64_t{layers} * blocks, layout.PageBytes(), &bytes)) {
    return ResourceExhausted("{} KV blocks of {} layers exceed the address space", blocks, layers);
  }
  return static_cast<size_t>(bytes);
}

}  // namespace

absl::StatusOr<std::unique_ptr<KvStorage>> KvStorage::Create(kernels::KvLayout layout, int layers,
                                                             int32_t blocks) {
  ASSIGN_OR_RETURN(const size_t bytes, BytesNeeded(layout, layers, blocks));
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return ResourceExhausted("{} bytes of KV memory: {}", bytes, std::strerror(errno));
  }
  std::unique_ptr<KvStorage> storage(new KvStorage);
  storage->layout_ = layout;
  storage->layers_ = layers;
  storage->blocks_ = blocks;
  storage->base_ = static_cast<uint16_t*>(memory);
  storage->bytes_ = bytes;
  if (madvise(memory, bytes, MADV_DONTDUMP) != 0) {
    return FailedPrecondition("KV memory can't be kept out of core dumps: {}",
                              std::strerror(errno));
  }
  // Large pages are an optimisation that a kernel may lack.
  (void)madvise(memory, bytes, MADV_HUGEPAGE);
#ifdef MADV_POPULATE_WRITE
  // Backed now, so that a lack of memory shows at start and not in the middle of a request.
  if (madvise(memory, bytes, MADV_POPULATE_WRITE) != 0 && errno == ENOMEM) {
    return ResourceExhausted("{} bytes of KV memory: {}", bytes, std::strerror(errno));
  }
#endif
  return storage;
}

KvStorage::~KvStorage() {
  if (base_ != nullptr) munmap(base_, bytes_);
}

void KvStorage::Scrub(BlockId block) {
  TRIVIUM_CHECK(block.value >= 0 && block.value < blocks_, "block {} of {}", block.value, blocks_);
  for (int i = 0; i < layers_; ++i) {
    std::memset(page(i, block), 0, static_cast<size_t>(layout_.PageBytes()));
  }
}

void KvStorage::CopyRows(BlockId from, BlockId to, int32_t rows) {
  for (BlockId block : {from, to}) {
    TRIVIUM_CHECK(block.value >= 0 && block.value < blocks_, "block {} of {}", block.value,
                  blocks_);
  }
  TRIVIUM_CHECK(rows >= 0 && rows <= layout_.block_tokens, "{} rows of a block of {}", rows,
                layout_.block_tokens);
  const auto bytes = static_cast<size_t>(rows * layout_.RowWords()) * sizeof(uint16_t);
  for (int i = 0; i < layers_; ++i) {
    for (const int64_t half : {int64_t{0}, layout_.PageWords() / 2}) {
      std::memcpy(page(i, to) + half, page(i, from) + half, bytes);
    }
  }
}

}  // namespace trivium::kv

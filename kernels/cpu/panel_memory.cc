#include "kernels/cpu/panel_memory.h"

#include <sys/mman.h>

#include <algorithm>

#include "kernels/check.h"

namespace trivium::kernels {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kLargePage = int64_t{2} << 20;
// Only what is written to becomes resident.
constexpr int64_t kChunkBytes = int64_t{64} << 20;

int64_t RoundUp(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

// Begins at a large page.
std::shared_ptr<uint8_t> Map(int64_t bytes) {
  const int64_t mapped = bytes + kLargePage;
  void* memory = mmap(nullptr, static_cast<size_t>(mapped), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  KERNELS_CHECK(memory != MAP_FAILED);
  const auto address = reinterpret_cast<intptr_t>(memory);
  auto* begin = static_cast<uint8_t*>(memory) + (RoundUp(address, kLargePage) - address);
  (void)madvise(begin, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  return {begin, [memory, mapped](uint8_t*) { munmap(memory, static_cast<size_t>(mapped)); }};
}

}  // namespace

std::shared_ptr<uint8_t> PanelMemory::Take(int64_t bytes) {
  bytes = RoundUp(bytes, kLine);
  if (size_ - used_ < bytes) {
    size_ = RoundUp(std::max(bytes, kChunkBytes), kLargePage);
    chunk_ = Map(size_);
    used_ = 0;
  }
  std::shared_ptr<uint8_t> taken(chunk_, chunk_.get() + used_);
  used_ += bytes;
  return taken;
}

}  // namespace trivium::kernels

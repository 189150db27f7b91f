// Equal pieces of memory, named by 32-bit numbers: half the size of a pointer, and no header of an
// allocator's on each. Pieces that are given back are handed out again; the pool's own memory goes
// back when it is emptied or its owner moves the pieces that are left to another one.
// Thread-safety: none; the owner's lock covers it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace trivium::router {

template <typename T, uint32_t kPiecesAtOnce>
class FixedPool {
 public:
  // A piece is `length` values of T.
  explicit FixedPool(size_t length) : length_(length) {}

  uint32_t Take() {
    if (free_.empty()) Grow();
    const uint32_t piece = free_.back();
    free_.pop_back();
    ++used_;
    return piece;
  }
  void Give(uint32_t piece) {
    free_.push_back(piece);
    if (--used_ > 0) return;
    chunks_ = std::vector<std::unique_ptr<T[]>>();
    free_ = std::vector<uint32_t>();
  }
  T* At(uint32_t piece) const {
    return chunks_[piece / kPiecesAtOnce].get() + piece % kPiecesAtOnce * length_;
  }
  size_t length() const { return length_; }
  size_t bytes() const {
    return chunks_.size() * kPiecesAtOnce * length_ * sizeof(T) +
           chunks_.capacity() * sizeof(chunks_[0]) + free_.capacity() * sizeof(free_[0]);
  }

 private:
  void Grow() {
    const auto first = static_cast<uint32_t>(chunks_.size()) * kPiecesAtOnce;
    chunks_.push_back(std::make_unique<T[]>(kPiecesAtOnce * length_));
    for (uint32_t i = kPiecesAtOnce; i > 0; --i) free_.push_back(first + i - 1);
  }

  size_t length_;
  std::vector<std::unique_ptr<T[]>> chunks_;
  std::vector<uint32_t> free_;
  uint32_t used_ = 0;
};

}  // namespace trivium::router

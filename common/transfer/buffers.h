// A bounded set of message buffers. Wire operations own the buffer they use, so memory that a late
// message may still touch is never handed out again; KV pages are touched by copies only.
// Thread-safety: all methods, any thread. Buffers may outlive the pool object.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

namespace trivium::transfer {

namespace internal {
struct BufferState {
  std::mutex mutex;
  size_t buffer_bytes = 0;
  int made = 0, limit = 0;
  std::vector<std::unique_ptr<uint8_t[]>> free;
};
}  // namespace internal

// Owns one buffer of the pool, with the size that is in use. Move-only; empty when default-made.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept { Swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer(std::move(other)).Swap(*this);
    return *this;
  }
  ~Buffer();

  std::span<uint8_t> bytes() { return {memory_.get(), size_}; }
  std::span<const uint8_t> bytes() const { return {memory_.get(), size_}; }
  bool empty() const { return memory_ == nullptr; }

 private:
  friend class BufferPool;
  void Swap(Buffer& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(size_, other.size_);
    std::swap(state_, other.state_);
  }

  std::unique_ptr<uint8_t[]> memory_;
  size_t size_ = 0;
  std::shared_ptr<internal::BufferState> state_;
};

class BufferPool {
 public:
  // Memory is taken at first use, at most buffer_bytes * limit.
  BufferPool(size_t buffer_bytes, int limit);

  // An empty buffer when all are out. size <= buffer_bytes.
  Buffer Take(size_t size);
  int outstanding() const;

 private:
  std::shared_ptr<internal::BufferState> state_;
};

}  // namespace trivium::transfer

#include "common/transfer/buffers.h"

#include "common/base/status.h"

namespace trivium::transfer {

Buffer::~Buffer() {
  if (memory_ == nullptr) return;
  std::lock_guard lock(state_->mutex);
  state_->free.push_back(std::move(memory_));
}

BufferPool::BufferPool(size_t buffer_bytes, int limit)
    : state_(std::make_shared<internal::BufferState>()) {
  state_->buffer_bytes = buffer_bytes;
  state_->limit = limit;
}

Buffer BufferPool::Take(size_t size) {
  TRIVIUM_CHECK(size <= state_->buffer_bytes, "{} bytes asked of buffers of {}", size,
                state_->buffer_bytes);
  Buffer buffer;
  std::lock_guard lock(state_->mutex);
  if (!state_->free.empty()) {
    buffer.memory_ = std::move(state_->free.back());
    state_->free.pop_back();
  } else if (state_->made < state_->limit) {
    buffer.memory_ = std::make_unique_for_overwrite<uint8_t[]>(state_->buffer_bytes);
    ++state_->made;
  } else {
    return buffer;
  }
  buffer.size_ = size;
  buffer.state_ = state_;
  return buffer;
}

int BufferPool::outstanding() const {
  std::lock_guard lock(state_->mutex);
  return state_->made - static_cast<int>(state_->free.size());
}

}  // namespace trivium::transfer

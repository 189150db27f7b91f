#include "common/kv/tiers/offload.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace trivium::kv {

int64_t Offload::BlockBytes(const KvStorage& storage) {
  return int64_t{storage.layers()} * storage.layout().PageBytes();
}

Offload::Offload(std::shared_ptr<KvStorage> storage, std::unique_ptr<DiskTier> tier)
    : storage_(std::move(storage)), tier_(std::move(tier)), writer_([this] { Run(); }) {}

Offload::~Offload() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  writer_.join();
}

void Offload::Save(BlockId block, const BlockContent& content) {
  if (tier_->Contains(content.key)) return;
  {
    // Counted before it is copied, so that no more copies than that are ever held.
    std::lock_guard lock(mutex_);
    if (pending_ >= kQueueMax) {
      ++dropped_;
      return;
    }
    ++pending_;
  }
  Copy copy{.key = content.key,
            .tokens = {content.tokens.begin(), content.tokens.end()},
            .kv = std::vector<uint8_t>(static_cast<size_t>(BlockBytes(*storage_)))};
  const auto page_bytes = static_cast<size_t>(storage_->layout().PageBytes());
  for (int layer = 0; layer < storage_->layers(); ++layer) {
    std::memcpy(copy.kv.data() + static_cast<size_t>(layer) * page_bytes,
                storage_->page(layer, block), page_bytes);
  }
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(copy));
  }
  changed_.notify_all();
}

int32_t Offload::Load(const BlockChain& chain, int32_t begin, std::span<const BlockId> blocks) {
  std::vector<uint8_t> kv(static_cast<size_t>(BlockBytes(*storage_)));
  const auto page_bytes = static_cast<size_t>(storage_->layout().PageBytes());
  const auto most = std::min<int64_t>(std::ssize(blocks), chain.size() - begin);
  for (int32_t i = 0; i < most; ++i) {
    const KeyedBlock wanted = chain.block(begin + i);
    if (!tier_->Get({wanted.key, wanted.tokens}, kv)) return i;
    for (int layer = 0; layer < storage_->layers(); ++layer) {
      std::memcpy(storage_->page(layer, blocks[static_cast<size_t>(i)]),
                  kv.data() + static_cast<size_t>(layer) * page_bytes, page_bytes);
    }
  }
  return static_cast<int32_t>(std::max<int64_t>(most, 0));
}

void Offload::Flush() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return pending_ == 0; });
}

int64_t Offload::dropped() const {
  std::lock_guard lock(mutex_);
  return dropped_;
}

void Offload::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    const Copy& copy = queue_.front();  // stays where it is while others are added
    lock.unlock();
    tier_->Put({copy.key, copy.tokens}, copy.kv);
    lock.lock();
    queue_.pop_front();
    if (--pending_ == 0) changed_.notify_all();
  }
}

}  // namespace trivium::kv

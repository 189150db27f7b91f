#include "common/kv/tiers/offload.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/kv/tiers/disk_tier.h"
#include "common/kv/tiers/memory_tier.h"

namespace trivium::kv {
namespace {

constexpr int64_t kQueueBytes = int64_t{128} << 20;
constexpr int64_t kQueueMin = 64, kQueueMax = 4096;
// What each new block takes of the weight of those before it.
constexpr double kForgets = 1.0 / 256;
constexpr double kDoubt = 63.0 / 64;

}  // namespace

int64_t Offload::BlockBytes(const KvStorage& storage) {
  return int64_t{storage.layers()} * storage.layout().PageBytes();
}

absl::StatusOr<std::unique_ptr<Offload>> Offload::Open(std::shared_ptr<KvStorage> storage,
                                                       OffloadOptions options) {
  const int64_t block_bytes = BlockBytes(*storage);
  std::unique_ptr<Offload> offload(new Offload(std::move(storage)));
  BlockTier* disk = nullptr;
  if (!options.disk_path.empty()) {
    ASSIGN_OR_RETURN(auto tier,
                     DiskTier::Open({.path = std::move(options.disk_path),
                                     .secret = std::move(options.disk_secret),
                                     .bytes_max = options.disk_bytes,
                                     .block_bytes = block_bytes,
                                     .block_tokens = offload->storage_->layout().block_tokens,
                                     .events = options.events}));
    disk = tier.get();
    offload->tiers_[static_cast<size_t>(Tier::kDisk)] = std::move(tier);
  }
  if (options.memory_bytes > 0) {
    MemoryTierOptions memory{
        .bytes_max = options.memory_bytes, .block_bytes = block_bytes, .events = options.events};
    if (disk != nullptr) {
      memory.overflow = [disk](const BlockContent& block, std::span<const uint8_t> kv) {
        disk->Put(block, kv);
      };
    }
    ASSIGN_OR_RETURN(offload->tiers_[static_cast<size_t>(Tier::kMemory)],
                     MemoryTier::Create(std::move(memory)));
  } else if (disk == nullptr) {
    return InvalidArgument("no tier to offload to");
  }
  offload->thread_ = std::thread([raw = offload.get()] { raw->Run(); });
  return offload;
}

Offload::Offload(std::shared_ptr<KvStorage> storage)
    : storage_(std::move(storage)),
      queue_max_(static_cast<size_t>(
          std::clamp(kQueueBytes / BlockBytes(*storage_), kQueueMin, kQueueMax))),
      staging_(static_cast<size_t>(BlockBytes(*storage_))) {}

Offload::~Offload() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

// ---- Saving ----

void Offload::Save(BlockId block, const BlockContent& content) {
  const auto first = std::ranges::find_if(tiers_, [](const auto& tier) { return tier != nullptr; });
  if ((*first)->Contains(content.key)) return;
  {
    // Counted before it is copied, so that no more copies than that are ever held.
    std::lock_guard lock(mutex_);
    if (pending_ >= queue_max_) {
      ++dropped_saves_;
      return;
    }
    ++pending_;
  }
  Copy copy{.key = content.key, .tokens = {content.tokens.begin(), content.tokens.end()}, .kv = {}};
  copy.kv.resize(staging_.size());
  const auto page_bytes = static_cast<size_t>(storage_->layout().PageBytes());
  for (int layer = 0; layer < storage_->layers(); ++layer) {
    std::memcpy(copy.kv.data() + static_cast<size_t>(layer) * page_bytes,
                storage_->page(layer, block), page_bytes);
  }
  {
    std::lock_guard lock(mutex_);
    saves_.push_back(std::move(copy));
  }
  changed_.notify_all();
}

// ---- Loading ----

std::vector<Tier> Offload::Find(const BlockChain& chain, int32_t begin, int32_t end) const {
  std::vector<Tier> found;
  for (int32_t i = begin; i < std::min(end, chain.size()); ++i) {
    const BlockKey& key = chain.keys()[static_cast<size_t>(i)];
    const auto tier = std::find_if(tiers_.begin(), tiers_.end(), [&key](const auto& one) {
      return one != nullptr && one->Contains(key);
    });
    if (tier == tiers_.end()) break;
    found.push_back(static_cast<Tier>(tier - tiers_.begin()));
  }
  return found;
}

void Offload::Load(Wanted wanted) {
  TRIVIUM_CHECK(wanted.keys.size() == wanted.into.size() &&
                    wanted.tokens.size() ==
                        wanted.keys.size() * static_cast<size_t>(storage_->layout().block_tokens),
                "{} keys for {} blocks", wanted.keys.size(), wanted.into.size());
  {
    std::lock_guard lock(mutex_);
    if (loads_.size() < kLoadsMax) {
      blocks_waiting_ += std::ssize(wanted.keys);
      loads_.push_back(std::move(wanted));
      changed_.notify_all();
      return;
    }
    ++dropped_loads_;
  }
  wanted.done(0);
}

void Offload::Write(BlockId block, std::span<const uint8_t> kv) {
  const auto page_bytes = static_cast<size_t>(storage_->layout().PageBytes());
  for (int layer = 0; layer < storage_->layers(); ++layer) {
    std::memcpy(storage_->page(layer, block), kv.data() + static_cast<size_t>(layer) * page_bytes,
                page_bytes);
  }
}

void Offload::Speed::Observe(double taken_s) {
  seconds = seconds * (1 - kForgets) + taken_s;
  blocks = blocks * (1 - kForgets) + 1;
  total_s += taken_s;
}

bool Offload::LoadBlock(const BlockContent& content, BlockId into) {
  for (size_t tier = 0; tier < tiers_.size(); ++tier) {
    if (tiers_[tier] == nullptr || !tiers_[tier]->Contains(content.key)) continue;
    const TimePoint begin = Clock::Real().Now();
    if (!tiers_[tier]->Get(content, staging_)) continue;
    Write(into, staging_);
    const std::chrono::duration<double> taken = Clock::Real().Now() - begin;
    std::lock_guard lock(mutex_);
    speeds_[tier].Observe(taken.count());
    return true;
  }
  return false;
}

void Offload::LoadNow(Wanted& wanted) {
  const auto block_tokens = static_cast<size_t>(storage_->layout().block_tokens);
  size_t loaded = 0;
  while (loaded < wanted.keys.size() && !wanted.asker.expired()) {
    const auto tokens = std::span(wanted.tokens).subspan(loaded * block_tokens, block_tokens);
    if (!LoadBlock({wanted.keys[loaded], tokens}, wanted.into[loaded])) break;
    ++loaded;
  }
  wanted.done(static_cast<int32_t>(loaded));
}

// ---- Both ----

void Offload::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !saves_.empty() || !loads_.empty(); });
    if (stopping_) return;
    // The first of a queue stays where it is while others are added.
    if (!loads_.empty()) {
      Wanted& wanted = loads_.front();
      lock.unlock();
      LoadNow(wanted);
      wanted.lease.reset();  // outside the lock: the blocks may have to be scrubbed
      lock.lock();
      blocks_waiting_ -= std::ssize(wanted.keys);
      loads_.pop_front();
    } else {
      const Copy& copy = saves_.front();
      lock.unlock();
      for (const auto& tier : tiers_) {
        if (tier == nullptr) continue;
        tier->Put({copy.key, copy.tokens}, copy.kv);
        break;
      }
      lock.lock();
      saves_.pop_front();
      --pending_;
    }
    changed_.notify_all();
  }
}

void Offload::Flush() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return pending_ == 0 && loads_.empty(); });
}

double Offload::load_s(Tier tier) const {
  std::lock_guard lock(mutex_);
  const Speed& speed = speeds_[static_cast<size_t>(tier)];
  return speed.blocks > 0 ? speed.seconds / speed.blocks : 0;
}

void Offload::Doubt(Tier tier) {
  std::lock_guard lock(mutex_);
  speeds_[static_cast<size_t>(tier)].seconds *= kDoubt;
}

int64_t Offload::blocks_waiting() const {
  std::lock_guard lock(mutex_);
  return blocks_waiting_;
}

Offload::Counts Offload::counts() const {
  Counts counts;
  for (size_t tier = 0; tier < tiers_.size(); ++tier) {
    if (tiers_[tier] != nullptr) counts.tiers[tier] = tiers_[tier]->counts();
  }
  std::lock_guard lock(mutex_);
  for (size_t tier = 0; tier < tiers_.size(); ++tier) counts.load_s[tier] = speeds_[tier].total_s;
  counts.dropped_saves = dropped_saves_;
  counts.dropped_loads = dropped_loads_;
  return counts;
}

}  // namespace trivium::kv

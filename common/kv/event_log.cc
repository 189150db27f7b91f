#include "common/kv/event_log.h"

#include <algorithm>

#include "common/base/status.h"

namespace trivium::kv {

EventLog::EventLog(int32_t blocks) { slot_of_.front().resize(static_cast<size_t>(blocks)); }

uint32_t& EventLog::SlotOf(BlockId block, Tier tier) {
  std::vector<uint32_t>& slots = slot_of_[static_cast<size_t>(tier)];
  const auto at = static_cast<size_t>(block.value);
  if (at >= slots.size()) slots.resize(at + 1);
  return slots[at];
}

void EventLog::Stored(BlockId block, const CutKey& key, Tier tier) {
  std::lock_guard lock(mutex_);
  if (slots_.size() >= 64 && slots_.size() >= 2 * stored_) Compact();
  SlotOf(block, tier) = static_cast<uint32_t>(slots_.size());
  slots_.push_back({key, block, tier});
  ++stored_;
  Append({.stored = true, .key = key, .tier = tier});
}

void EventLog::Removed(BlockId block, Tier tier) {
  std::lock_guard lock(mutex_);
  Slot& slot = slots_[SlotOf(block, tier)];
  TRIVIUM_CHECK(slot.block == block && slot.tier == tier, "block {} is removed, but not stored",
                block.value);
  slot.block = BlockId{-1};
  --stored_;
  Append({.stored = false, .key = slot.key, .tier = tier});
}

void EventLog::Append(const KvChange& change) {
  if (recent_.size() == kEventsMax) recent_.pop_front();
  recent_.push_back(change);
  ++next_;
}

// Keeps the order of storing. At least half of the slots go, so that this is paid for by their
// removals.
void EventLog::Compact() {
  std::erase_if(slots_, [](const Slot& slot) { return slot.block.value < 0; });
  for (size_t i = 0; i < slots_.size(); ++i) {
    SlotOf(slots_[i].block, slots_[i].tier) = static_cast<uint32_t>(i);
  }
}

EventLog::Reading EventLog::Read(uint64_t next, size_t most) const {
  std::lock_guard lock(mutex_);
  Reading reading;
  const uint64_t oldest = next_ - recent_.size();
  if (next < oldest || next > next_ || next == 0) {
    reading.is_snapshot = true;
    reading.next = next_;
    reading.changes.reserve(stored_);
    for (const Slot& slot : slots_) {
      if (slot.block.value < 0) continue;
      reading.changes.push_back({.stored = true, .key = slot.key, .tier = slot.tier});
    }
    return reading;
  }
  const auto begin = recent_.begin() + static_cast<std::ptrdiff_t>(next - oldest);
  const auto left = static_cast<size_t>(recent_.end() - begin);
  const size_t count = std::min(most, left);
  reading.changes.assign(begin, begin + static_cast<std::ptrdiff_t>(count));
  reading.next = next + count;
  return reading;
}

}  // namespace trivium::kv

#include "services/router/prefix_index/block_table.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

namespace trivium::router {
namespace {

HolderId HolderOf(uint16_t entry) { return static_cast<HolderId>(entry >> kTiers); }
uint8_t TiersOfEntry(uint16_t entry) { return entry & ((1 << kTiers) - 1); }
uint16_t MakeEntry(HolderId holder, uint8_t tiers) {
  return static_cast<uint16_t>(holder << kTiers | tiers);
}

// The tiers that count at each level.
constexpr uint8_t kTiersOfLevel[kLevels] = {kHot, kHot | kExpected, kHot | kExpected | kMemory,
                                            kHot | kExpected | kMemory | kDisk};

bool HasBit(std::span<const uint64_t> mask, size_t bit) { return mask[bit / 64] >> bit % 64 & 1; }

}  // namespace

BlockTable::BlockTable(size_t holders)
    : words_((holders + 63) / 64), lists_(kMany), masks_(kTiers * words_) {}

size_t BlockTable::HomeOf(const kv::CutKey& key, size_t slots) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<size_t>(Wide{key.high} * slots >> 64);
}

void BlockTable::Prefetch(const kv::CutKey& key) const {
  const Slot* const slots = prefetch_slots_.load(std::memory_order_relaxed);
  const size_t size = prefetch_size_.load(std::memory_order_relaxed);
  __builtin_prefetch(reinterpret_cast<const char*>(slots) + HomeOf(key, size) * sizeof(Slot));
}

size_t BlockTable::Probe(const kv::CutKey& key) const {
  size_t slot = HomeOf(key, slots_.size());
  while (!slots_[slot].is_empty() && slots_[slot].key != key) slot = Next(slot);
  return slot;
}

template <typename Pool>
void BlockTable::MovePiece(Slot& slot, const Pool& from, Pool& to) {
  const auto* const piece = from.At(slot.piece());
  slot.set_piece(to.Take());
  std::copy_n(piece, from.length(), to.At(slot.piece()));
}

void BlockTable::Resize(size_t slots) {
  std::vector<Slot> old(slots);
  old.swap(slots_);
  Lists lists(lists_.length());
  Masks masks(masks_.length());
  for (Slot& slot : old) {
    if (slot.is_empty()) continue;
    if (slot.few[0] == kListForm) MovePiece(slot, lists_, lists);
    if (slot.few[0] == kMaskForm) MovePiece(slot, masks_, masks);
    slots_[Probe(slot.key)] = slot;
  }
  prefetch_slots_.store(slots_.data(), std::memory_order_relaxed);
  prefetch_size_.store(slots_.size(), std::memory_order_relaxed);
  lists_ = std::move(lists);
  masks_ = std::move(masks);
}

void BlockTable::ShrinkIfSparse() {
  if (slots_.size() > kSlotsMin && used_ * 10 < slots_.size() * 4) {
    Resize(std::max(kSlotsMin, used_ * 10 / 6 + 1));
  }
}

void BlockTable::Erase(size_t slot) {
  --used_;
  size_t hole = slot;
  for (size_t i = Next(hole); !slots_[i].is_empty(); i = Next(i)) {
    // A key stays if its home lies behind the hole, on the way from there to it.
    const size_t home = HomeOf(slots_[i].key, slots_.size());
    const bool stays = hole < i ? hole < home && home <= i : hole < home || home <= i;
    if (!stays) slots_[std::exchange(hole, i)] = slots_[i];
  }
  slots_[hole] = {};
  ShrinkIfSparse();
}

// ---- The holders of one slot ----

std::span<const BlockTable::Entry> BlockTable::EntriesOf(const Slot& slot) const {
  if (slot.few[0] == kMaskForm) return {};
  if (slot.few[0] == kListForm) return {lists_.At(slot.piece()), kMany};
  return slot.few;
}

uint8_t BlockTable::TiersInMask(const uint64_t* mask, HolderId holder) const {
  uint8_t tiers = 0;
  for (size_t tier = 0; tier < kTiers; ++tier) {
    tiers |= HasBit({mask + tier * words_, words_}, holder) << tier;
  }
  return tiers;
}

uint8_t BlockTable::TiersIn(const Slot& slot, HolderId holder) const {
  if (slot.few[0] == kMaskForm) return TiersInMask(masks_.At(slot.piece()), holder);
  for (const Entry entry : EntriesOf(slot)) {
    if (entry == 0) break;
    if (HolderOf(entry) == holder) return TiersOfEntry(entry);
  }
  return 0;
}

void BlockTable::SetTiers(Slot& slot, HolderId holder, uint8_t tiers) {
  slot.few[0] == kMaskForm ? SetInMask(slot, holder, tiers) : SetInEntries(slot, holder, tiers);
}

void BlockTable::SetInEntries(Slot& slot, HolderId holder, uint8_t tiers) {
  const bool is_list = slot.few[0] == kListForm;
  const std::span<Entry> entries =
      is_list ? std::span(lists_.At(slot.piece()), kMany) : std::span<Entry>(slot.few);
  const auto end = std::find(entries.begin(), entries.end(), 0);
  const auto it =
      std::find_if(entries.begin(), end, [&](Entry entry) { return HolderOf(entry) == holder; });
  const bool is_new = it == end;
  if (is_new && tiers == 0) return;
  if (it == entries.end()) {
    ChangeForm(slot, is_list ? kMaskForm : kListForm);
    return SetTiers(slot, holder, tiers);
  }
  pairs_ += is_new - (tiers == 0);
  if (is_list) slot.few[1] += is_new - (tiers == 0);
  *it = MakeEntry(holder, tiers);
  if (tiers != 0) return;
  *it = *(end - 1);
  *(end - 1) = 0;
  if (is_list && slot.few[1] <= kBackToFew) ChangeForm(slot, 0);
}

void BlockTable::SetInMask(Slot& slot, HolderId holder, uint8_t tiers) {
  uint64_t* mask = masks_.At(slot.piece());
  const bool was_there = TiersInMask(mask, holder) != 0;
  const uint64_t bit = uint64_t{1} << holder % 64;
  for (size_t tier = 0; tier < kTiers; ++tier) {
    uint64_t& word = mask[tier * words_ + holder / 64];
    word = tiers >> tier & 1 ? word | bit : word & ~bit;
  }
  pairs_ += (tiers != 0) - was_there;
  slot.few[1] += (tiers != 0) - was_there;
  if (was_there && tiers == 0 && slot.few[1] <= kBackToList) ChangeForm(slot, kListForm);
}

template <typename Visit>
void BlockTable::ForEachHolder(const Slot& slot, Visit visit) const {
  for (const Entry entry : EntriesOf(slot)) {
    if (entry != 0) visit(HolderOf(entry), TiersOfEntry(entry));
  }
  if (slot.few[0] != kMaskForm) return;
  const uint64_t* mask = masks_.At(slot.piece());
  for (size_t i = 0; i < words_; ++i) {
    uint64_t left = 0;
    for (size_t tier = 0; tier < kTiers; ++tier) left |= mask[tier * words_ + i];
    for (; left != 0; left &= left - 1) {
      const auto holder = static_cast<HolderId>(i * 64 + std::countr_zero(left));
      visit(holder, TiersInMask(mask, holder));
    }
  }
}

void BlockTable::ChangeForm(Slot& slot, Entry form) {
  std::array<Entry, kMany> all;
  size_t count = 0;
  ForEachHolder(slot,
                [&](HolderId holder, uint8_t tiers) { all[count++] = MakeEntry(holder, tiers); });
  if (slot.few[0] == kListForm) lists_.Give(slot.piece());
  if (slot.few[0] == kMaskForm) masks_.Give(slot.piece());
  std::fill(slot.few, slot.few + kFew, 0);
  if (form != 0) {
    const uint32_t piece = form == kListForm ? lists_.Take() : masks_.Take();
    if (form == kListForm) std::fill_n(lists_.At(piece), kMany, 0);
    if (form == kMaskForm) std::fill_n(masks_.At(piece), kTiers * words_, 0);
    slot.few[0] = form;
    slot.set_piece(piece);
  }
  pairs_ -= count;
  for (size_t i = 0; i < count; ++i) SetTiers(slot, HolderOf(all[i]), TiersOfEntry(all[i]));
}

// ---- The table ----

BlockTable::Change BlockTable::Set(const kv::CutKey& key, HolderId holder, uint8_t add,
                                   uint8_t remove, bool may_grow) {
  if (slots_.empty()) Resize(kSlotsMin);
  size_t at = Probe(key);
  const bool is_known = !slots_[at].is_empty();
  const uint8_t before = is_known ? TiersIn(slots_[at], holder) : 0;
  const auto after = static_cast<uint8_t>((before | add) & ~remove);
  if (after == before) return Change::kNone;
  if (before == 0 && !may_grow) return Change::kRefused;
  if (!is_known) {
    if ((used_ + 1) * 4 > slots_.size() * 3) {
      Resize(slots_.size() + slots_.size() / 2);
      at = Probe(key);
    }
    slots_[at].key = key;
    ++used_;
  }
  SetTiers(slots_[at], holder, after);
  if (slots_[at].is_empty()) Erase(at);
  return after == 0 ? Change::kPairEnded : before == 0 ? Change::kPairBegan : Change::kTiersAlone;
}

uint8_t BlockTable::TiersOf(const kv::CutKey& key, HolderId holder) const {
  if (slots_.empty()) return 0;
  const Slot& slot = slots_[Probe(key)];
  return slot.is_empty() ? 0 : TiersIn(slot, holder);
}

bool BlockTable::Find(const kv::CutKey& key, LevelMasks* masks) const {
  if (slots_.empty()) return false;
  const Slot& slot = slots_[Probe(key)];
  if (slot.is_empty()) return false;
  for (auto& level : masks->words) std::fill_n(level, words_, 0);
  if (slot.few[0] == kMaskForm) {
    const uint64_t* mask = masks_.At(slot.piece());
    for (size_t i = 0; i < words_; ++i) {
      const auto word = [&](size_t tier) { return mask[tier * words_ + i]; };
      masks->words[kLevelStored][i] = word(std::countr_zero(uint8_t{kHot}));
      masks->words[kLevelHot][i] =
          masks->words[kLevelStored][i] | word(std::countr_zero(uint8_t{kExpected}));
      masks->words[kLevelMemory][i] =
          masks->words[kLevelHot][i] | word(std::countr_zero(uint8_t{kMemory}));
      masks->words[kLevelDisk][i] =
          masks->words[kLevelMemory][i] | word(std::countr_zero(uint8_t{kDisk}));
    }
    return true;
  }
  for (const Entry entry : EntriesOf(slot)) {
    if (entry == 0) break;
    const HolderId holder = HolderOf(entry);
    for (size_t level = 0; level < kLevels; ++level) {
      const bool counts = TiersOfEntry(entry) & kTiersOfLevel[level];
      masks->words[level][holder / 64] |= uint64_t{counts} << holder % 64;
    }
  }
  return true;
}

void BlockTable::Purge(std::span<const uint64_t> holders, std::span<int64_t> gone) {
  const size_t before = used_;
  std::vector<HolderId> going;
  for (Slot& slot : slots_) {
    if (slot.is_empty()) continue;
    going.clear();
    ForEachHolder(slot, [&](HolderId holder, uint8_t) {
      if (HasBit(holders, holder)) going.push_back(holder);
    });
    for (const HolderId holder : going) {
      ++gone[holder];
      SetTiers(slot, holder, 0);
    }
    used_ -= slot.is_empty();
  }
  // Holes break the ways to the keys behind them: all are put in anew.
  if (used_ < before) Resize(std::clamp(used_ * 10 / 6 + 1, kSlotsMin, slots_.size()));
}

size_t BlockTable::bytes() const {
  return slots_.capacity() * sizeof(Slot) + lists_.bytes() + masks_.bytes();
}

}  // namespace trivium::router

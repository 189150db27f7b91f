#include "common/worker/promotion.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace trivium::worker {

int32_t BlocksWorthLoading(double wait_s, std::span<const double> load_s,
                           std::span<const double> compute_s) {
  double saved_s = -wait_s, best_s = 0;
  int32_t best = 0;
  for (size_t i = 0; i < load_s.size(); ++i) {
    saved_s += compute_s[i] - load_s[i];
    if (saved_s < best_s) continue;
    best_s = saved_s;
    best = static_cast<int32_t>(i) + 1;
  }
  return best;
}

std::optional<kv::Offload::Wanted> Promotion::Plan(const kv::Reservation& blocks,
                                                   const kv::PrefixUse& prefix) const {
  const int32_t begin = blocks.cached_blocks();
  const auto end = std::min(prefix.blocks_max, static_cast<int32_t>(blocks.blocks().size()));
  const std::vector<kv::Tier> found = offload_.Find(*prefix.chain, begin, end);
  if (found.empty()) return std::nullopt;
  const engine::StepCost::Coefficients cost = cost_.coefficients();
  auto count = static_cast<int32_t>(found.size());
  const auto block_tokens = static_cast<int64_t>(prefix.chain->block(begin).tokens.size());
  if (cost.observations > 0) {
    std::vector<double> load_s, compute_s;
    for (size_t i = 0; i < found.size(); ++i) {
      const int64_t position = (begin + static_cast<int64_t>(i)) * block_tokens;
      load_s.push_back(offload_.load_s(found[i]));
      compute_s.push_back(cost.b * static_cast<double>(block_tokens) +
                          cost.c *
                              static_cast<double>(engine::KeysOfRange(position, block_tokens)));
    }
    const double wait_s = static_cast<double>(offload_.blocks_waiting()) * load_s.front();
    count = BlocksWorthLoading(wait_s, load_s, compute_s);
    if (static_cast<size_t>(count) < found.size()) {
      offload_.Doubt(found[static_cast<size_t>(count)]);
    }
  }
  if (count == 0) return std::nullopt;
  kv::Offload::Wanted wanted;
  for (int32_t i = begin; i < begin + count; ++i) {
    const kv::KeyedBlock block = prefix.chain->block(i);
    wanted.keys.push_back(block.key);
    wanted.tokens.insert(wanted.tokens.end(), block.tokens.begin(), block.tokens.end());
    wanted.into.push_back(blocks.blocks()[static_cast<size_t>(i)]);
  }
  wanted.lease = blocks.Lease();
  return wanted;
}

void Promotion::Begin(kv::Offload::Wanted wanted, std::weak_ptr<const void> asker,
                      std::function<void(int32_t blocks)> done) {
  wanted.asker = std::move(asker);
  wanted.done = std::move(done);
  offload_.Load(std::move(wanted));
}

}  // namespace trivium::worker

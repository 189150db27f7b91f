// The sequences of block_pool_model_test. Immutable; safe from any thread.
#pragma once

#include <algorithm>
#include <vector>

#include "common/kv/chain_testing.h"

namespace trivium::kv {

inline constexpr int32_t kBlockTokens =
    512;  // so that depth counts against age in a pool of a few blocks
inline constexpr int32_t kChainBlocks = 8;
inline constexpr int32_t kPublicBlocks = 2;
inline constexpr int kSequences = 8, kTenants = 3;

// Sequences that are alike for a while: the first blocks in all, the next in half of them, and so
// on.
inline const std::vector<BlockChain>& Chains() {
  static const std::vector<BlockChain> chains = [] {
    std::vector<BlockChain> out;
    const Domain common =
        TestDomain("public", {.quota = 0.6f, .pin_s = 10}, kPublicBlocks * kBlockTokens);
    const std::vector<Domain> tenants = {TestDomain("a", {.quota = 0.5f, .floor = 0.3f}),
                                         TestDomain("b"), TestDomain("c", {0.2f, 0.1f, 3})};
    for (int tenant = 0; tenant < kTenants; ++tenant) {
      for (int sequence = 0; sequence < kSequences; ++sequence) {
        BlockChain chain =
            TestChain({common, tenants[static_cast<size_t>(tenant)]}, {}, kBlockTokens);
        for (int block = 0; block < kChainBlocks; ++block) {
          const int branch = block < 2 ? 0 : sequence >> std::max(0, 2 - (block - 2) / 2);
          chain.Append(std::vector<int32_t>(kBlockTokens, branch * kChainBlocks + block));
        }
        out.push_back(std::move(chain));
      }
    }
    return out;
  }();
  return chains;
}
// A sequence that another begins like, for at least 6 blocks.
inline size_t Sibling(size_t chain) { return chain ^ 1; }
inline constexpr int32_t kSiblingBlocks = 6;

}  // namespace trivium::kv

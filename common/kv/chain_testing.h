// Domains and chains for tests, in one line each. Pure functions; safe from any thread.
#pragma once

#include <climits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "common/kv/block_key.h"

namespace trivium::kv {

struct TestShares {
  float quota = 1, floor = 0;
  int32_t pin_s = 0;
};

// The secret depends on the name alone. `token_end`: see Domain.
inline Domain TestDomain(std::string_view id, TestShares shares = {},
                         int32_t token_end = INT32_MAX) {
  return {.key = *DeriveDomainKey(std::string(32, 'm'), id, 0),
          .token_end = token_end,
          .quota = shares.quota,
          .floor = shares.floor,
          .pin_s = shares.pin_s};
}

inline BlockChain TestChain(std::vector<Domain> domains, std::span<const int32_t> tokens,
                            int32_t block_tokens = 16) {
  BlockChain chain = *BlockChain::Create({"model", "fast", 1, block_tokens}, std::move(domains));
  chain.Append(tokens);
  return chain;
}

// first, first + 1, …
inline std::vector<int32_t> TestTokens(int32_t count, int32_t first = 1) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

}  // namespace trivium::kv

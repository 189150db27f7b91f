// The names under which workers may hold the beginning of a prompt: a chain of block keys for each
// KeySpace that the cluster's workers have, as they compute it themselves.
// Pure; safe from any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/kv/block_key.h"

namespace trivium::router {

struct PromptKeys {
  kv::KeySpace space;
  std::vector<kv::CutKey> keys;  // of leading whole blocks; the last token stays to be computed
};

// `media`: pictures in the prompt. No domains: no keys. Domains that make no chain in a space give
// none there.
std::vector<PromptKeys> KeysOf(std::span<const int32_t> prompt,
                               const std::vector<kv::Domain>& domains,
                               std::span<const kv::KeySpace> spaces,
                               const std::vector<kv::MediaSpan>& media = {});

}  // namespace trivium::router

// How many blocks multimedia tokens take. Plain arithmetic; safe from any thread.
#pragma once

#include <cstdint>

namespace trivium::media {

inline constexpr int32_t kBlockTokens = 16;

constexpr int32_t BlocksFor(int32_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

}  // namespace trivium::media

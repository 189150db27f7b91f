// Counter-based random numbers: the draw is a pure function of (seed, counter), the same on every
// machine. Stateless; safe from any thread.
#pragma once

#include <array>
#include <cstdint>

namespace trivium::engine {

// Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// Uniform in [0, 1) with 53 random bits.
double Uniform(uint64_t seed, uint64_t counter);

}  // namespace trivium::engine

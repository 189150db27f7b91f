// Which tokens remain to be drawn from: the cuts of sampler.h. Nothing here sorts a vocabulary
// where a part of it will do. Stateless; safe from any thread.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "common/engine/sampling_params.h"
#include "common/engine/softmax.h"

namespace trivium::engine {

// The `count` most likely, most likely first, ties by the lower id.
std::vector<Candidate> TopK(std::span<const float> logits, size_t count);

bool HasCuts(const SamplingParams& params, size_t vocab);

// What top_k, typical_p, top_p and min_p leave, by id; each cut sees what the one before it left.
// Empty when no token can be drawn.
std::vector<Candidate> KeepByCuts(std::span<const float> logits, const Softmax& softmax,
                                  const SamplingParams& params);

}  // namespace trivium::engine

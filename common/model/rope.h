// By what angles a model rotates its queries and keys, from what its file says: the base, the way
// in which the context was extended, and tensors of factors. Stateless; safe from any thread.
//
// The kinds, with f[i] = base^(-2i/dim) divided by rope_freqs.weight[i] where that tensor is there
// (Llama 3.1 writes its whole rule into it):
//   none      f
//   linear    f / factor
//   yarn      f for pairs that turn more than beta_fast times within the original context,
//             f / factor for those that turn less than beta_slow times, a linear mixture between;
//             scale 1 + 0.1 ln(factor)                          (Peng et al., arXiv:2309.00071)
//   longrope  f / rope_factors_long.weight where the context is longer than the original one, else
//             f / rope_factors_short.weight; scale sqrt(1 + ln(context / original) / ln(original))
//                                                               (Ding et al., arXiv:2402.13753)
// rope.scaling.attn_factor multiplies the scale of yarn and replaces that of longrope. The angles
// of a position never depend on the length of its sequence, so that sequences can share keys.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "common/base/status.h"
#include "common/model/gguf.h"

namespace trivium::model {

struct Rope {
  std::vector<double> frequencies;  // radians a position, of each pair; 2 * size elements rotate
  double scale = 1;                 // of the rotated elements
};

struct RopeContext {
  std::string_view architecture;  // the prefix of the keys
  int32_t head_dim = 0;
  int32_t context = 0;
  float default_base = 0;
};

// The kind "none", of `dim` elements.
Rope UnscaledRope(double base, size_t dim);

// The tensors that ReadRope uses, or refuses where they do not fit the kind of scaling.
inline constexpr std::string_view kRopeTensors[] = {"rope_freqs.weight", "rope_factors_long.weight",
                                                    "rope_factors_short.weight"};

// UNIMPLEMENTED for a kind or an option that is not known, INVALID_ARGUMENT for numbers that cannot
// be; both name the key or the tensor.
absl::StatusOr<Rope> ReadRope(const GgufFile& file, const RopeContext& context);

}  // namespace trivium::model

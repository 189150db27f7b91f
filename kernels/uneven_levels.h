// The levels of IQ4_NL, part of the format: data only, for code of every instruction set.
#pragma once

#include <cstdint>

namespace trivium::kernels {

inline constexpr int8_t kUnevenLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                             1,    13,   25,  38,  53,  69,  89,  113};

}  // namespace trivium::kernels

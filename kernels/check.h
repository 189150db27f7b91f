// KERNELS_CHECK ends the process when a precondition of kernels/ does not hold. Safe from any
// thread.
#pragma once

namespace trivium::kernels {

[[noreturn]] void CheckFailed(const char* condition, const char* file, int line);

}  // namespace trivium::kernels

#define KERNELS_CHECK(condition)                                       \
  do {                                                                 \
    if (!(condition)) {                                                \
      ::trivium::kernels::CheckFailed(#condition, __FILE__, __LINE__); \
    }                                                                  \
  } while (false)

#include "kernels/check.h"

#include <cstdio>
#include <cstdlib>

namespace trivium::kernels {

void CheckFailed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: broken precondition: %s\n", file, line, condition);
  std::abort();
}

}  // namespace trivium::kernels

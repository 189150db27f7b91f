#include "common/base/status.h"

#include <cstdio>
#include <cstdlib>

namespace trivium {

void Die(const char* file, int line, const char* condition, const std::string& message) {
  std::fprintf(stderr, "%s:%d: broken invariant (%s): %s\n", file, line, condition, message.c_str());
  std::abort();
}

}  // namespace trivium

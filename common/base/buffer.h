// Working memory that is used again. Stateless.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trivium {

// Makes room for `elems`; what is larger already stays as it is, so that nothing is allocated
// twice.
template <typename T>
void GrowTo(std::vector<T>& buffer, int64_t elems) {
  if (buffer.size() < static_cast<size_t>(elems)) buffer.resize(static_cast<size_t>(elems));
}

}  // namespace trivium

// Memory for the panels of a model's matrices, one behind the other, in large pages where the
// machine has some: a step reads all of them, and with small pages a thread reads a sixth slower.
//
// Not thread-safe. What Take gives lives as long as somebody holds it or a neighbour of its chunk.
#pragma once

#include <cstdint>
#include <memory>

namespace trivium::kernels {

class PanelMemory {
 public:
  // Aligned to a cache line; any bytes may be in it. Ends the process when there is
  // no address space; pages are taken as they are written.
  std::shared_ptr<uint8_t> Take(int64_t bytes);

 private:
  std::shared_ptr<uint8_t> chunk_;
  int64_t size_ = 0, used_ = 0;
};

}  // namespace trivium::kernels

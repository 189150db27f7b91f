// Reads a safetensors file: eight bytes of the header's size, the header as JSON (name, dtype,
// shape, place of each tensor), then the tensors' bytes.
//
// A file is not trusted: sizes are checked against the file before anything is allocated or read,
// tensors must lie within it, whole, aligned to their elements, and may not overlap.
// Thread-safety: immutable after Open; any thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/model/mapped_file.h"
#include "kernels/weights.h"

namespace trivium::embedding {

// Into the mapped file, rows outermost.
struct SafeTensor {
  kernels::WeightType type = kernels::WeightType::kF32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
};

class SafeTensorsFile {
 public:
  static constexpr uint64_t kHeaderBytesMax = 8 << 20;
  static constexpr size_t kTensorsMax = 16384, kDimensionsMax = 8;

  // INVALID_ARGUMENT names what is wrong. Tensors of integers are passed over: no weight is one.
  static absl::StatusOr<SafeTensorsFile> Open(const std::string& path);

  // INVALID_ARGUMENT unless there is one of exactly this shape.
  absl::StatusOr<SafeTensor> Tensor(const std::string& name,
                                    const std::vector<int64_t>& shape) const;
  // Null: there is none.
  const SafeTensor* Find(const std::string& name) const;
  std::span<const uint8_t> bytes() const { return file_.bytes(); }

 private:
  explicit SafeTensorsFile(model::MappedFile file) : file_(std::move(file)) {}
  absl::Status ReadHeader();

  model::MappedFile file_;
  std::map<std::string, SafeTensor> tensors_;
};

}  // namespace trivium::embedding

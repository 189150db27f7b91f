// A GGUF file (version 2 or 3, little-endian), mapped read-only: its metadata and where its tensors
// lie. A model that is split over several files is opened by the name of any of them; its metadata
// is that of the first part, its tensors those of all.
//
// Every offset, length and count is checked against the file's size with overflow-safe sums before
// use, and nothing is allocated in proportion to a number read from the file that the file's own
// size does not back: a hostile file yields an error, never a crash or a large allocation.
// Thread-safety: immutable after Open. Views stay valid as long as the GgufFile lives.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/base/status.h"
#include "kernels/weights.h"

namespace trivium::model {

struct SplitPlace;

struct GgufTensor {
  std::string name;
  kernels::WeightType type{};
  std::vector<int64_t> shape;  // as in the file: fastest dimension first
  const void* data = nullptr;
  int64_t bytes = 0;
};

class GgufFile {
 public:
  // NOT_FOUND (the file, or another part of it, by name), INVALID_ARGUMENT (what is wrong, at which
  // byte), UNIMPLEMENTED (version, tensor type).
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);
  ~GgufFile();
  GgufFile(const GgufFile&) = delete;
  GgufFile& operator=(const GgufFile&) = delete;

  // NOT_FOUND when the key is missing, INVALID_ARGUMENT when it holds another type; both name the
  // key.
  absl::StatusOr<int64_t> Int(std::string_view key) const;  // any integer type that fits
  absl::StatusOr<double> Float(std::string_view key) const;
  absl::StatusOr<bool> Bool(std::string_view key) const;
  absl::StatusOr<std::string_view> String(std::string_view key) const;
  absl::StatusOr<std::vector<std::string_view>> Strings(std::string_view key) const;
  absl::StatusOr<std::vector<int64_t>> Ints(std::string_view key) const;
  absl::StatusOr<std::vector<float>> Floats(std::string_view key) const;
  bool Has(std::string_view key) const;

  absl::StatusOr<GgufTensor> Tensor(std::string_view name) const;  // NOT_FOUND names it
  std::span<const GgufTensor> tensors() const;
  std::vector<std::span<const uint8_t>> parts() const;  // the whole content of each file
  void DropPages() const;                               // MappedFile::DropPages of each file

 private:
  GgufFile();
  static absl::StatusOr<std::unique_ptr<GgufFile>> OpenPart(const std::string& path);
  static absl::StatusOr<std::unique_ptr<GgufFile>> OpenOther(const SplitPlace& known,
                                                             int64_t number);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace trivium::model

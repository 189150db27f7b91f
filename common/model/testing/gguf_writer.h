// Writes small GGUF v3 files for tests. Not for untrusted input; one thread at a time.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/status.h"
#include "kernels/weights.h"

namespace trivium::model {

class GgufWriter {
 public:
  void AddUint32(std::string_view key, uint32_t value);
  void AddInt64(std::string_view key, int64_t value);
  void AddFloat(std::string_view key, float value);
  void AddBool(std::string_view key, bool value);
  void AddString(std::string_view key, std::string_view value);
  void AddStrings(std::string_view key, const std::vector<std::string>& values);
  void AddInt32s(std::string_view key, const std::vector<int32_t>& values);
  void AddFloats(std::string_view key, const std::vector<float>& values);
  // `value` is what follows the type in the file: for kinds that have no function here.
  void AddRaw(std::string_view key, uint32_t type, std::string_view value);

  // `shape` is fastest dimension first; `data` holds exactly the tensor's bytes.
  void AddTensor(std::string_view name, const std::vector<int64_t>& shape, kernels::WeightType type,
                 std::string data);

  // The whole file. `alignment` should equal general.alignment where that is written.
  std::string Serialize(size_t alignment = 32) const;
  absl::Status WriteFile(const std::string& path) const;

  // The files of a split model: tensors dealt out in turn, the metadata in the first one.
  std::vector<GgufWriter> Split(int parts) const;

 private:
  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
    kernels::WeightType type;
    std::string data;
  };

  void Begin(std::string_view key, uint32_t type);

  std::string metadata_;
  uint64_t metadata_count_ = 0;
  std::vector<Tensor> tensors_;
};

}  // namespace trivium::model

#include "common/model/testing/gguf_writer.h"

#include <cstring>
#include <fstream>

namespace trivium::model {
namespace {

template <typename T>
void Append(std::string& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

void AppendString(std::string& out, std::string_view text) {
  Append(out, uint64_t{text.size()});
  out.append(text);
}

size_t Padded(size_t size, size_t alignment) {
  return (size + alignment - 1) / alignment * alignment;
}

}  // namespace

void GgufWriter::Begin(std::string_view key, uint32_t type) {
  AppendString(metadata_, key);
  Append(metadata_, type);
  ++metadata_count_;
}

void GgufWriter::AddUint32(std::string_view key, uint32_t value) {
  Begin(key, 4);
  Append(metadata_, value);
}

void GgufWriter::AddInt64(std::string_view key, int64_t value) {
  Begin(key, 11);
  Append(metadata_, value);
}

void GgufWriter::AddFloat(std::string_view key, float value) {
  Begin(key, 6);
  Append(metadata_, value);
}

void GgufWriter::AddBool(std::string_view key, bool value) {
  Begin(key, 7);
  Append(metadata_, uint8_t{value});
}

void GgufWriter::AddString(std::string_view key, std::string_view value) {
  Begin(key, 8);
  AppendString(metadata_, value);
}

void GgufWriter::AddStrings(std::string_view key, const std::vector<std::string>& values) {
  Begin(key, 9);
  Append(metadata_, uint32_t{8});
  Append(metadata_, uint64_t{values.size()});
  for (const std::string& value : values) AppendString(metadata_, value);
}

void GgufWriter::AddInt32s(std::string_view key, const std::vector<int32_t>& values) {
  Begin(key, 9);
  Append(metadata_, uint32_t{5});
  Append(metadata_, uint64_t{values.size()});
  for (int32_t value : values) Append(metadata_, value);
}

void GgufWriter::AddFloats(std::string_view key, const std::vector<float>& values) {
  Begin(key, 9);
  Append(metadata_, uint32_t{6});
  Append(metadata_, uint64_t{values.size()});
  for (float value : values) Append(metadata_, value);
}

void GgufWriter::AddRaw(std::string_view key, uint32_t type, std::string_view value) {
  Begin(key, type);
  metadata_.append(value);
}

void GgufWriter::AddTensor(std::string_view name, const std::vector<int64_t>& shape,
                           kernels::WeightType type, std::string data) {
  tensors_.push_back({std::string(name), shape, type, std::move(data)});
}

std::string GgufWriter::Serialize(size_t alignment) const {
  std::string out = "GGUF";
  Append(out, uint32_t{3});
  Append(out, uint64_t{tensors_.size()});
  Append(out, metadata_count_);
  out += metadata_;
  uint64_t offset = 0;
  for (const Tensor& tensor : tensors_) {
    AppendString(out, tensor.name);
    Append(out, static_cast<uint32_t>(tensor.shape.size()));
    for (int64_t dimension : tensor.shape) Append(out, dimension);
    Append(out, static_cast<uint32_t>(tensor.type));
    Append(out, offset);
    offset += Padded(tensor.data.size(), alignment);
  }
  for (const Tensor& tensor : tensors_) {
    out.resize(Padded(out.size(), alignment));
    out += tensor.data;
  }
  return out;
}

absl::Status GgufWriter::WriteFile(const std::string& path) const {
  std::ofstream file(path, std::ios::binary);
  std::string content = Serialize();
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  file.close();
  if (!file) return InvalidArgument("cannot write {}", path);
  return absl::OkStatus();
}

std::vector<GgufWriter> GgufWriter::Split(int parts) const {
  std::vector<GgufWriter> writers(static_cast<size_t>(parts));
  writers[0].metadata_ = metadata_;
  writers[0].metadata_count_ = metadata_count_;
  for (size_t i = 0; i < writers.size(); ++i) {
    writers[i].AddUint32("split.no", static_cast<uint32_t>(i));
    writers[i].AddUint32("split.count", static_cast<uint32_t>(parts));
    writers[i].AddUint32("split.tensors.count", static_cast<uint32_t>(tensors_.size()));
  }
  for (size_t i = 0; i < tensors_.size(); ++i) {
    writers[i % writers.size()].tensors_.push_back(tensors_[i]);
  }
  return writers;
}

}  // namespace trivium::model

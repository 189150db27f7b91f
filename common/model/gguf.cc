#include "common/model/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <iterator>
#include <limits>
#include <set>

#include "common/model/gguf_split.h"
#include "common/model/gguf_value.h"
#include "common/model/mapped_file.h"

namespace trivium::model {
namespace {

using kernels::WeightType;

constexpr uint32_t kVersion2 = 2;  // laid out as 3 is
constexpr uint32_t kVersion3 = 3;
constexpr uint64_t kMaxEntries = 1 << 16;  // keys, and tensors
constexpr size_t kMaxKeyBytes = 65535;
constexpr size_t kMaxTensorNameBytes = 255;
constexpr uint32_t kMaxDimensions = 4;
constexpr int64_t kDefaultAlignment = 32;
constexpr int64_t kLeastAlignment = 8;
constexpr int64_t kMostAlignment = 1 << 16;

absl::StatusOr<WeightType> TensorType(uint32_t number, std::string_view name) {
  for (WeightType type : kernels::AllWeightTypes()) {
    if (static_cast<uint32_t>(type) == number) return type;
  }
  std::string supported;
  for (WeightType type : kernels::AllWeightTypes()) {
    supported +=
        fmt::format(" {} ({})", kernels::WeightTypeName(type), static_cast<uint32_t>(type));
  }
  return Unimplemented("tensor {} has the type number {}; supported are{}", name, number,
                       supported);
}

absl::Status CheckVersion(uint32_t version) {
  if (version == kVersion2 || version == kVersion3) return absl::OkStatus();
  const uint32_t swapped = __builtin_bswap32(version);
  if (swapped >= 1 && swapped <= kVersion3) {
    return Unimplemented("a big-endian file (GGUF version {}) is not supported", swapped);
  }
  return Unimplemented("GGUF version {} is not supported, only {} and {}", version, kVersion2,
                       kVersion3);
}

// The bytes of a tensor, or an error when its shape is impossible.
absl::StatusOr<int64_t> TensorBytes(const GgufTensor& tensor) {
  int64_t elements = 1;
  for (int64_t dimension : tensor.shape) {
    if (dimension <= 0 || __builtin_mul_overflow(elements, dimension, &elements)) {
      return InvalidArgument("tensor {}: impossible dimension {}", tensor.name, dimension);
    }
  }
  const int64_t block = kernels::BlockElems(tensor.type);
  if (tensor.shape[0] % block != 0) {
    return InvalidArgument("tensor {}: rows of {} elements are not whole blocks of {}", tensor.name,
                           tensor.shape[0], block);
  }
  int64_t bytes = 0;
  if (__builtin_mul_overflow(elements / block, kernels::BlockBytes(tensor.type), &bytes)) {
    return InvalidArgument("tensor {} is too large", tensor.name);
  }
  return bytes;
}

}  // namespace

struct GgufFile::Impl {
  explicit Impl(MappedFile mapped) : file(std::move(mapped)) {}

  absl::Status Parse();
  absl::Status ParseMetadata(GgufCursor& cursor, uint64_t count);
  absl::Status ParseTensors(GgufCursor& cursor, uint64_t count);
  absl::StatusOr<GgufTensor> ParseTensor(GgufCursor& cursor, uint64_t& offset) const;
  absl::Status Place(GgufTensor& tensor, uint64_t offset, uint64_t data_begin) const;
  absl::Status CheckApart() const;
  absl::Status IndexTensors();
  absl::Status Join(std::unique_ptr<GgufFile> part);
  absl::StatusOr<int64_t> Alignment() const;
  absl::StatusOr<const GgufValue*> Find(std::string_view key) const;
  template <typename T>
  absl::StatusOr<T> Get(std::string_view key, std::string_view wanted) const;
  absl::StatusOr<GgufArray> Array(std::string_view key) const;

  MappedFile file;
  std::map<std::string_view, GgufValue> metadata;
  std::vector<GgufTensor> tensors;
  std::map<std::string_view, size_t> tensor_index;
  std::vector<std::unique_ptr<GgufFile>> other_parts;  // of a split model, in the first one alone
};

absl::Status GgufFile::Impl::Parse() {
  GgufCursor cursor(file.bytes());
  ASSIGN_OR_RETURN(uint32_t magic, cursor.Read<uint32_t>("magic"));
  if (magic != 0x46554747) return InvalidArgument("not a GGUF file: wrong magic at byte 0");
  ASSIGN_OR_RETURN(uint32_t version, cursor.Read<uint32_t>("version"));
  RETURN_IF_ERROR(CheckVersion(version));
  ASSIGN_OR_RETURN(uint64_t tensor_count, cursor.Read<uint64_t>("tensor count"));
  ASSIGN_OR_RETURN(uint64_t metadata_count, cursor.Read<uint64_t>("metadata count"));
  if (tensor_count > kMaxEntries || metadata_count > kMaxEntries) {
    return InvalidArgument("{} tensors and {} keys at byte 8: at most {} of each are read",
                           tensor_count, metadata_count, kMaxEntries);
  }
  RETURN_IF_ERROR(ParseMetadata(cursor, metadata_count));
  return ParseTensors(cursor, tensor_count);
}

absl::Status GgufFile::Impl::ParseMetadata(GgufCursor& cursor, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    const size_t begin = cursor.position();
    ASSIGN_OR_RETURN(std::string_view key, cursor.ReadString("metadata key"));
    if (key.empty() || key.size() > kMaxKeyBytes) {
      return InvalidArgument("a metadata key of {} bytes at byte {}", key.size(), begin);
    }
    ASSIGN_OR_RETURN(uint32_t type, cursor.Read<uint32_t>(key));
    ASSIGN_OR_RETURN(GgufValue value, ReadGgufValue(cursor, type, key));
    if (!metadata.emplace(key, value).second) {
      return InvalidArgument("the key {} at byte {} comes twice", key, begin);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<GgufTensor> GgufFile::Impl::ParseTensor(GgufCursor& cursor, uint64_t& offset) const {
  const size_t begin = cursor.position();
  ASSIGN_OR_RETURN(std::string_view name, cursor.ReadString("tensor name"));
  if (name.empty() || name.size() > kMaxTensorNameBytes) {
    return InvalidArgument("a tensor name of {} bytes at byte {}", name.size(), begin);
  }
  GgufTensor tensor;
  tensor.name = std::string(name);
  ASSIGN_OR_RETURN(uint32_t dimensions, cursor.Read<uint32_t>(name));
  if (dimensions == 0 || dimensions > kMaxDimensions) {
    return InvalidArgument("tensor {} at byte {} has {} dimensions", name, begin, dimensions);
  }
  for (uint32_t i = 0; i < dimensions; ++i) {
    ASSIGN_OR_RETURN(int64_t dimension, cursor.Read<int64_t>(name));
    tensor.shape.push_back(dimension);
  }
  ASSIGN_OR_RETURN(uint32_t type, cursor.Read<uint32_t>(name));
  ASSIGN_OR_RETURN(tensor.type, TensorType(type, name));
  ASSIGN_OR_RETURN(tensor.bytes, TensorBytes(tensor));
  ASSIGN_OR_RETURN(offset, cursor.Read<uint64_t>(name));
  return tensor;
}

absl::Status GgufFile::Impl::Place(GgufTensor& tensor, uint64_t offset, uint64_t data_begin) const {
  const uint64_t file_size = file.bytes().size();
  const auto bytes = static_cast<uint64_t>(tensor.bytes);
  if (data_begin > file_size || offset > file_size - data_begin ||
      bytes > file_size - data_begin - offset) {
    return InvalidArgument(
        "tensor {}: {} bytes at offset {} of the data at byte {} run past the "
        "end of the file, {}",
        tensor.name, bytes, offset, data_begin, file_size);
  }
  tensor.data = file.bytes().data() + data_begin + offset;
  return absl::OkStatus();
}

absl::StatusOr<int64_t> GgufFile::Impl::Alignment() const {
  constexpr std::string_view kKey = "general.alignment";
  if (!metadata.contains(kKey)) return kDefaultAlignment;
  ASSIGN_OR_RETURN(uint64_t alignment, Get<uint64_t>(kKey, "an unsigned integer"));
  if (!std::has_single_bit(alignment) || alignment < kLeastAlignment ||
      alignment > kMostAlignment) {
    return InvalidArgument("{} is {}, not a power of two from {} to {}", kKey, alignment,
                           kLeastAlignment, kMostAlignment);
  }
  return static_cast<int64_t>(alignment);
}

absl::Status GgufFile::Impl::ParseTensors(GgufCursor& cursor, uint64_t count) {
  ASSIGN_OR_RETURN(int64_t signed_alignment, Alignment());
  const auto alignment = static_cast<uint64_t>(signed_alignment);
  std::vector<uint64_t> offsets;
  for (uint64_t i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(GgufTensor tensor, ParseTensor(cursor, offsets.emplace_back()));
    if (offsets.back() % alignment != 0) {
      return InvalidArgument("tensor {}: the offset {} is not aligned to {}", tensor.name,
                             offsets.back(), alignment);
    }
    tensors.push_back(std::move(tensor));
  }
  const uint64_t data_begin = (cursor.position() + alignment - 1) / alignment * alignment;
  for (size_t i = 0; i < tensors.size(); ++i) {
    RETURN_IF_ERROR(Place(tensors[i], offsets[i], data_begin));
  }
  RETURN_IF_ERROR(IndexTensors());
  return CheckApart();
}

absl::Status GgufFile::Impl::IndexTensors() {
  tensor_index.clear();
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!tensor_index.emplace(tensors[i].name, i).second) {
      return InvalidArgument("the tensor {} comes twice", tensors[i].name);
    }
  }
  return absl::OkStatus();
}

absl::Status GgufFile::Impl::Join(std::unique_ptr<GgufFile> part) {
  std::vector<GgufTensor>& theirs = part->impl_->tensors;
  if (tensors.size() + theirs.size() > kMaxEntries) {
    return InvalidArgument("the parts hold more than {} tensors", kMaxEntries);
  }
  std::move(theirs.begin(), theirs.end(), std::back_inserter(tensors));
  theirs.clear();
  part->impl_->tensor_index.clear();
  other_parts.push_back(std::move(part));
  return absl::OkStatus();
}

// Tensors are copied into other layouts one by one: if they could share bytes, a small file could
// ask for any amount of memory.
absl::Status GgufFile::Impl::CheckApart() const {
  std::vector<const GgufTensor*> places;
  for (const GgufTensor& tensor : tensors) places.push_back(&tensor);
  std::sort(places.begin(), places.end(), [](const GgufTensor* a, const GgufTensor* b) {
    return std::less<>()(a->data, b->data);
  });
  for (size_t i = 1; i < places.size(); ++i) {
    const auto* end = static_cast<const uint8_t*>(places[i - 1]->data) + places[i - 1]->bytes;
    if (end > places[i]->data) {
      return InvalidArgument("the tensors {} and {} overlap", places[i - 1]->name, places[i]->name);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<const GgufValue*> GgufFile::Impl::Find(std::string_view key) const {
  auto found = metadata.find(key);
  if (found == metadata.end()) {
    return MakeStatus(absl::StatusCode::kNotFound, "the file has no key {}", key);
  }
  return &found->second;
}

template <typename T>
absl::StatusOr<T> GgufFile::Impl::Get(std::string_view key, std::string_view wanted) const {
  ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  if (const T* held = std::get_if<T>(value)) return *held;
  return InvalidArgument("{} holds {}, not {}", key, GgufKindName(*value), wanted);
}

absl::StatusOr<GgufArray> GgufFile::Impl::Array(std::string_view key) const {
  return Get<GgufArray>(key, "an array");
}

GgufFile::GgufFile() = default;
GgufFile::~GgufFile() = default;

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::OpenPart(const std::string& path) {
  ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  std::unique_ptr<GgufFile> file(new GgufFile());
  file->impl_ = std::make_unique<Impl>(std::move(mapped));
  if (absl::Status status = file->impl_->Parse(); !status.ok()) {
    return MakeStatus(status.code(), "{}: {}", path, Message(status));
  }
  return file;
}

// Part `number` of a model of which `known` is another part.
absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::OpenOther(const SplitPlace& known,
                                                              int64_t number) {
  const std::string path = PartPath(known, number);
  absl::StatusOr<std::unique_ptr<GgufFile>> part = OpenPart(path);
  if (!part.ok()) {
    return MakeStatus(part.status().code(), "part {} of {} of a split model: {}", number + 1,
                      known.count, Message(part.status()));
  }
  ASSIGN_OR_RETURN(SplitPlace place, ReadSplitPlace(**part, path));
  if (place.number != number || place.count != known.count || place.tensors != known.tensors) {
    return InvalidArgument("{}: is part {} of {} of a model of {} tensors, not {} of {} of {}",
                           path, place.number + 1, place.count, place.tensors, number + 1,
                           known.count, known.tensors);
  }
  return part;
}

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> named, OpenPart(path));
  ASSIGN_OR_RETURN(SplitPlace place, ReadSplitPlace(*named, path));
  if (place.count == 1) return named;
  std::unique_ptr<GgufFile> first;
  for (int64_t i = 0; i < place.count; ++i) {
    std::unique_ptr<GgufFile> part;
    if (i == place.number) {
      part = std::move(named);
    } else {
      ASSIGN_OR_RETURN(part, OpenOther(place, i));
    }
    if (i == 0) {
      first = std::move(part);
    } else {
      RETURN_IF_ERROR(first->impl_->Join(std::move(part)));
    }
  }
  const auto found = static_cast<int64_t>(first->impl_->tensors.size());
  if (found != place.tensors) {
    return InvalidArgument("{}: the {} parts hold {} tensors, not {}", path, place.count, found,
                           place.tensors);
  }
  if (absl::Status status = first->impl_->IndexTensors(); !status.ok()) {
    return MakeStatus(status.code(), "{}: {}", path, Message(status));
  }
  return first;
}

absl::StatusOr<int64_t> GgufFile::Int(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, impl_->Find(key));
  if (const auto* held = std::get_if<uint64_t>(value)) {
    if (*held <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return static_cast<int64_t>(*held);
    }
    return InvalidArgument("{} is {}, which does not fit", key, *held);
  }
  return impl_->Get<int64_t>(key, "an integer");
}

absl::StatusOr<double> GgufFile::Float(std::string_view key) const {
  return impl_->Get<double>(key, "a float");
}

absl::StatusOr<bool> GgufFile::Bool(std::string_view key) const {
  return impl_->Get<bool>(key, "a bool");
}

absl::StatusOr<std::string_view> GgufFile::String(std::string_view key) const {
  return impl_->Get<std::string_view>(key, "a string");
}

absl::StatusOr<std::vector<std::string_view>> GgufFile::Strings(std::string_view key) const {
  ASSIGN_OR_RETURN(GgufArray array, impl_->Array(key));
  if (array.element != GgufType::kString) {
    return InvalidArgument("{} is not an array of strings", key);
  }
  GgufCursor cursor(impl_->file.bytes(), array.position);
  std::vector<std::string_view> strings;
  strings.reserve(array.count);
  for (uint64_t i = 0; i < array.count; ++i) {
    ASSIGN_OR_RETURN(std::string_view text, cursor.ReadString(key));
    strings.push_back(text);
  }
  return strings;
}

absl::StatusOr<std::vector<int64_t>> GgufFile::Ints(std::string_view key) const {
  ASSIGN_OR_RETURN(GgufArray array, impl_->Array(key));
  GgufCursor cursor(impl_->file.bytes(), array.position);
  std::vector<int64_t> numbers;
  for (uint64_t i = 0; i < array.count; ++i) {
    ASSIGN_OR_RETURN(GgufValue value,
                     ReadGgufValue(cursor, static_cast<uint32_t>(array.element), key));
    if (const auto* number = std::get_if<int64_t>(&value)) {
      numbers.push_back(*number);
    } else if (const auto* natural = std::get_if<uint64_t>(&value);
               natural != nullptr && *natural <= static_cast<uint64_t>(INT64_MAX)) {
      numbers.push_back(static_cast<int64_t>(*natural));
    } else {
      return InvalidArgument("{}[{}] is not an integer that fits", key, i);
    }
  }
  return numbers;
}

absl::StatusOr<std::vector<float>> GgufFile::Floats(std::string_view key) const {
  ASSIGN_OR_RETURN(GgufArray array, impl_->Array(key));
  if (array.element != GgufType::kFloat32) {
    return InvalidArgument("{} is not an array of float32", key);
  }
  std::vector<float> numbers(array.count);
  if (numbers.empty()) return numbers;
  std::memcpy(numbers.data(), impl_->file.bytes().data() + array.position,
              numbers.size() * sizeof(float));
  return numbers;
}

bool GgufFile::Has(std::string_view key) const { return impl_->metadata.contains(key); }

absl::StatusOr<GgufTensor> GgufFile::Tensor(std::string_view name) const {
  auto found = impl_->tensor_index.find(name);
  if (found == impl_->tensor_index.end()) {
    return MakeStatus(absl::StatusCode::kNotFound, "the file has no tensor {}", name);
  }
  return impl_->tensors[found->second];
}

std::span<const GgufTensor> GgufFile::tensors() const { return impl_->tensors; }

std::vector<std::span<const uint8_t>> GgufFile::parts() const {
  std::vector<std::span<const uint8_t>> parts = {impl_->file.bytes()};
  for (const auto& part : impl_->other_parts) parts.push_back(part->impl_->file.bytes());
  return parts;
}

void GgufFile::DropPages() const {
  impl_->file.DropPages();
  for (const auto& part : impl_->other_parts) part->DropPages();
}

}  // namespace trivium::model

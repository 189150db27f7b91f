#include "common/embedding/safetensors.h"

#include <fmt/ranges.h>
#include <simdjson.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "common/net/text.h"

namespace trivium::embedding {
namespace {

using kernels::WeightType;
using simdjson::dom::element;

constexpr size_t kShownMax = 80;
constexpr uint64_t kPrefixBytes = 8;

struct Place {
  uint64_t begin = 0, end = 0;
};

std::string Shown(std::string_view name) { return net::Escape(name, kShownMax); }

struct DataType {
  std::string_view name;
  uint64_t bytes;
  std::optional<WeightType> weight;
};
constexpr DataType kDataTypes[] = {
    {"F32", 4, WeightType::kF32},
    {"F16", 2, WeightType::kF16},
    {"BF16", 2, WeightType::kBF16},
    {"F64", 8, {}},
    {"I64", 8, {}},
    {"I32", 4, {}},
    {"I16", 2, {}},
    {"I8", 1, {}},
    {"U64", 8, {}},
    {"U32", 4, {}},
    {"U16", 2, {}},
    {"U8", 1, {}},
    {"BOOL", 1, {}},
};

absl::StatusOr<DataType> TypeOf(std::string_view tensor, element value) {
  std::string_view name;
  if (value["dtype"].get(name) == simdjson::SUCCESS) {
    for (const DataType& type : kDataTypes) {
      if (type.name == name) return type;
    }
  }
  return InvalidArgument("tensor {}: dtype is missing or not known", Shown(tensor));
}

// The numbers of a short array.
absl::StatusOr<std::vector<uint64_t>> Numbers(std::string_view tensor, const char* field,
                                              element value) {
  simdjson::dom::array array;
  std::vector<uint64_t> numbers;
  if (value[field].get(array) == simdjson::SUCCESS &&
      array.size() <= SafeTensorsFile::kDimensionsMax) {
    for (element item : array) {
      if (item.get(numbers.emplace_back()) != simdjson::SUCCESS) {
        return InvalidArgument("tensor {}: {} must hold whole numbers", Shown(tensor), field);
      }
    }
    return numbers;
  }
  return InvalidArgument("tensor {}: {} must be an array of at most {} numbers", Shown(tensor),
                         field, SafeTensorsFile::kDimensionsMax);
}

// Within the `data_bytes` behind the header, as large as type and shape say.
absl::StatusOr<Place> PlaceOf(std::string_view tensor, element value, const DataType& type,
                              const std::vector<uint64_t>& shape, uint64_t data_begin,
                              uint64_t data_bytes) {
  ASSIGN_OR_RETURN(const std::vector<uint64_t> offsets, Numbers(tensor, "data_offsets", value));
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data_bytes) {
    return InvalidArgument("tensor {}: data_offsets do not lie in the file", Shown(tensor));
  }
  uint64_t bytes = type.bytes;
  for (const uint64_t size : shape) {
    if (size == 0 || size > data_bytes || bytes > data_bytes / size) {
      return InvalidArgument("tensor {}: the shape does not fit the file", Shown(tensor));
    }
    bytes *= size;
  }
  if (bytes != offsets[1] - offsets[0]) {
    return InvalidArgument("tensor {}: {} bytes where its shape asks for {}", Shown(tensor),
                           offsets[1] - offsets[0], bytes);
  }
  if ((data_begin + offsets[0]) % type.bytes != 0) {
    return InvalidArgument("tensor {}: is not aligned to its elements", Shown(tensor));
  }
  return Place{offsets[0], offsets[1]};
}

absl::Status CheckApart(std::vector<Place> places) {
  std::sort(places.begin(), places.end(),
            [](const Place& a, const Place& b) { return a.begin < b.begin; });
  for (size_t i = 1; i < places.size(); ++i) {
    if (places[i].begin < places[i - 1].end) return InvalidArgument("two tensors overlap");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status SafeTensorsFile::ReadHeader() {
  const std::span<const uint8_t> bytes = file_.bytes();
  uint64_t header_bytes = 0;
  if (bytes.size() < kPrefixBytes) return InvalidArgument("ends within the size of its header");
  std::memcpy(&header_bytes, bytes.data(), kPrefixBytes);
  if (header_bytes > kHeaderBytesMax || header_bytes > bytes.size() - kPrefixBytes) {
    return InvalidArgument("a header of {} bytes; allowed: what the file holds, up to {}",
                           header_bytes, kHeaderBytesMax);
  }
  simdjson::dom::parser parser;
  simdjson::dom::object header;
  const auto* text = reinterpret_cast<const char*>(bytes.data() + kPrefixBytes);
  if (parser.parse(text, header_bytes).get(header) != simdjson::SUCCESS) {
    return InvalidArgument("the header is no JSON object");
  }
  const uint64_t data_begin = kPrefixBytes + header_bytes, data_bytes = bytes.size() - data_begin;
  std::vector<Place> places;
  for (const auto& [name, value] : header) {
    if (name == "__metadata__") continue;
    if (places.size() == kTensorsMax) return InvalidArgument("more than {} tensors", kTensorsMax);
    ASSIGN_OR_RETURN(const DataType type, TypeOf(name, value));
    ASSIGN_OR_RETURN(const std::vector<uint64_t> shape, Numbers(name, "shape", value));
    ASSIGN_OR_RETURN(const Place place, PlaceOf(name, value, type, shape, data_begin, data_bytes));
    places.push_back(place);
    if (!type.weight.has_value()) continue;
    const SafeTensor tensor{
        *type.weight, {shape.begin(), shape.end()}, bytes.data() + data_begin + place.begin};
    if (!tensors_.emplace(std::string(name), tensor).second) {
      return InvalidArgument("tensor {} is there twice", Shown(name));
    }
  }
  return CheckApart(std::move(places));
}

absl::StatusOr<SafeTensorsFile> SafeTensorsFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(model::MappedFile mapped, model::MappedFile::Open(path));
  SafeTensorsFile file(std::move(mapped));
  const absl::Status status = file.ReadHeader();
  if (!status.ok()) return MakeStatus(status.code(), "{}: {}", path, Message(status));
  return file;
}

const SafeTensor* SafeTensorsFile::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

absl::StatusOr<SafeTensor> SafeTensorsFile::Tensor(const std::string& name,
                                                   const std::vector<int64_t>& shape) const {
  const SafeTensor* tensor = Find(name);
  if (tensor == nullptr) return InvalidArgument("tensor {} is missing", name);
  if (tensor->shape == shape) return *tensor;
  return InvalidArgument("tensor {} has the shape [{}], not [{}]", name,
                         fmt::join(tensor->shape, ", "), fmt::join(shape, ", "));
}

}  // namespace trivium::embedding

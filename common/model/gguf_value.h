// Reading the pieces of a GGUF file: a cursor that cannot leave the bytes, and metadata values.
// Values are views into the file. Not shared between threads while reading.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>
#include <variant>

#include "common/base/status.h"

namespace trivium::model {

// The numbers of the file format.
enum class GgufType : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
};

// Reads forward; every read first checks that the bytes are there. Invariant: position <= size.
class GgufCursor {
 public:
  explicit GgufCursor(std::span<const uint8_t> bytes, size_t position = 0)
      : bytes_(bytes), position_(position) {}

  size_t position() const { return position_; }
  size_t remaining() const { return bytes_.size() - position_; }

  template <typename T>
  requires std::is_arithmetic_v<T> absl::StatusOr<T> Read(std::string_view what) {
    if (remaining() < sizeof(T)) return Truncated(what);
    T value;
    std::memcpy(&value, bytes_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }
  absl::StatusOr<std::string_view> ReadString(std::string_view what);
  absl::Status Skip(uint64_t size, std::string_view what);

 private:
  absl::Status Truncated(std::string_view what) const;

  std::span<const uint8_t> bytes_;
  size_t position_;
};

// An array whose elements were all checked to lie in the file, starting at byte `position`.
struct GgufArray {
  GgufType element = GgufType::kUint8;
  uint64_t count = 0;
  size_t position = 0;
};

using GgufValue = std::variant<int64_t, uint64_t, double, bool, std::string_view, GgufArray>;

// Reads a value of the given type and leaves the cursor behind it. Arrays may be nested a few
// levels.
absl::StatusOr<GgufValue> ReadGgufValue(GgufCursor& cursor, uint32_t type, std::string_view key);

// What the value is, for messages: "a string".
std::string_view GgufKindName(const GgufValue& value);

}  // namespace trivium::model

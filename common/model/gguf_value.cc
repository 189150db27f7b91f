#include "common/model/gguf_value.h"

#include <bit>

namespace trivium::model {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF values are read as they lie");

constexpr int kMaxArrayDepth = 4;

// Bytes of an element of fixed size; 0 for strings and arrays.
uint64_t FixedSize(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool:
      return 1;
    case GgufType::kUint16:
    case GgufType::kInt16:
      return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32:
      return 4;
    case GgufType::kUint64:
    case GgufType::kInt64:
    case GgufType::kFloat64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      return 0;
  }
  return 0;
}

absl::StatusOr<GgufType> CheckType(uint32_t type, std::string_view key, size_t position) {
  if (type > static_cast<uint32_t>(GgufType::kFloat64)) {
    return InvalidArgument("{}: unknown value type {} before byte {}", key, type, position);
  }
  return static_cast<GgufType>(type);
}

template <typename Wide, typename T>
absl::StatusOr<GgufValue> ReadNumber(GgufCursor& cursor, std::string_view key) {
  ASSIGN_OR_RETURN(T value, cursor.Read<T>(key));
  return GgufValue(static_cast<Wide>(value));
}

absl::StatusOr<GgufValue> ReadBool(GgufCursor& cursor, std::string_view key) {
  ASSIGN_OR_RETURN(uint8_t value, cursor.Read<uint8_t>(key));
  if (value > 1) return InvalidArgument("{}: {} is not a bool", key, value);
  return GgufValue(value == 1);
}

absl::StatusOr<GgufArray> ReadArray(GgufCursor& cursor, std::string_view key, int depth) {
  if (depth > kMaxArrayDepth) {
    return InvalidArgument("{}: arrays nested more than {} deep at byte {}", key, kMaxArrayDepth,
                           cursor.position());
  }
  ASSIGN_OR_RETURN(uint32_t number, cursor.Read<uint32_t>(key));
  ASSIGN_OR_RETURN(GgufType element, CheckType(number, key, cursor.position()));
  ASSIGN_OR_RETURN(uint64_t count, cursor.Read<uint64_t>(key));
  const GgufArray array{element, count, cursor.position()};
  if (uint64_t size = FixedSize(element); size != 0) {
    if (count > cursor.remaining() / size) {
      return InvalidArgument("{}: {} elements at byte {} run past the end of the file", key, count,
                             cursor.position());
    }
    RETURN_IF_ERROR(cursor.Skip(count * size, key));
    return array;
  }
  // Each element takes bytes of the file, so a hostile count ends at the file's end.
  for (uint64_t i = 0; i < count; ++i) {
    if (element == GgufType::kString) {
      RETURN_IF_ERROR(cursor.ReadString(key).status());
    } else {
      RETURN_IF_ERROR(ReadArray(cursor, key, depth + 1).status());
    }
  }
  return array;
}

}  // namespace

absl::Status GgufCursor::Truncated(std::string_view what) const {
  return InvalidArgument("{}: the file ends at byte {}, within this field at byte {}", what,
                         bytes_.size(), position_);
}

absl::StatusOr<std::string_view> GgufCursor::ReadString(std::string_view what) {
  ASSIGN_OR_RETURN(uint64_t size, Read<uint64_t>(what));
  if (size > remaining()) return Truncated(what);
  std::string_view text(reinterpret_cast<const char*>(bytes_.data()) + position_, size);
  position_ += size;
  return text;
}

absl::Status GgufCursor::Skip(uint64_t size, std::string_view what) {
  if (size > remaining()) return Truncated(what);
  position_ += size;
  return absl::OkStatus();
}

absl::StatusOr<GgufValue> ReadGgufValue(GgufCursor& cursor, uint32_t number, std::string_view key) {
  ASSIGN_OR_RETURN(GgufType type, CheckType(number, key, cursor.position()));
  switch (type) {
    case GgufType::kUint8:
      return ReadNumber<uint64_t, uint8_t>(cursor, key);
    case GgufType::kInt8:
      return ReadNumber<int64_t, int8_t>(cursor, key);
    case GgufType::kUint16:
      return ReadNumber<uint64_t, uint16_t>(cursor, key);
    case GgufType::kInt16:
      return ReadNumber<int64_t, int16_t>(cursor, key);
    case GgufType::kUint32:
      return ReadNumber<uint64_t, uint32_t>(cursor, key);
    case GgufType::kInt32:
      return ReadNumber<int64_t, int32_t>(cursor, key);
    case GgufType::kUint64:
      return ReadNumber<uint64_t, uint64_t>(cursor, key);
    case GgufType::kInt64:
      return ReadNumber<int64_t, int64_t>(cursor, key);
    case GgufType::kFloat32:
      return ReadNumber<double, float>(cursor, key);
    case GgufType::kFloat64:
      return ReadNumber<double, double>(cursor, key);
    case GgufType::kBool:
      return ReadBool(cursor, key);
    case GgufType::kString: {
      ASSIGN_OR_RETURN(std::string_view text, cursor.ReadString(key));
      return GgufValue(text);
    }
    case GgufType::kArray: {
      ASSIGN_OR_RETURN(GgufArray array, ReadArray(cursor, key, 1));
      return GgufValue(array);
    }
  }
  return InvalidArgument("{}: unknown value type {}", key, number);
}

std::string_view GgufKindName(const GgufValue& value) {
  constexpr std::string_view kNames[] = {"an integer", "an integer", "a float",
                                         "a bool",     "a string",   "an array"};
  return kNames[value.index()];
}

}  // namespace trivium::model

// What Python's operators do to values. INVALID_ARGUMENT where Python raises, RESOURCE_EXHAUSTED
// where the workspace is used up. Integers have 64 bits: what does not fit is an error.
#pragma once

#include <optional>
#include <span>

#include "common/model/jinja/value.h"

namespace trivium::model::jinja {

enum class Operator : uint8_t {
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,
};

bool IsTrue(const Value& value);
absl::StatusOr<bool> AreEqual(Workspace& ws, const Value& a, const Value& b, int depth = 0);
// Negative, 0 or positive, for values that have an order.
absl::StatusOr<int> Order(Workspace& ws, const Value& a, const Value& b, int depth = 0);
absl::StatusOr<bool> Contains(Workspace& ws, const Value& container, const Value& item);
absl::StatusOr<Value> Compute(Workspace& ws, Operator op, const Value& a, const Value& b);
absl::StatusOr<Value> ComputeNumbers(Operator op, const Value& a, const Value& b);
absl::StatusOr<Value> Negate(const Value& value);

// What a `for` would go through; spends an iterator.
absl::StatusOr<std::span<const Value>> Items(Workspace& ws, const Value& value);
absl::StatusOr<size_t> Length(const Value& value);

// Null where there is none. INVALID_ARGUMENT: Python could not hash the key.
absl::StatusOr<Entry*> FindEntry(Workspace& ws, const Dict& dict, const Value& key);
// value[key] and value.name; undefined where there is nothing.
absl::StatusOr<Value> GetItem(Workspace& ws, const Value& value, const Value& key);
absl::StatusOr<Value> GetAttribute(Workspace& ws, const Value& value, Text name);

struct SliceBounds {
  std::optional<int64_t> start, stop, step;
};
absl::StatusOr<Value> Slice(Workspace& ws, const Value& value, const SliceBounds& bounds);

// For whatever may not be done to what is undefined.
absl::Status UndefinedError(const Value& undefined);

}  // namespace trivium::model::jinja

#include <algorithm>

#include "common/model/jinja/builtins.h"
#include "common/model/jinja/operators.h"

namespace trivium::model::jinja {
namespace {

// As in Python a tuple is what its items are: so no key holds a list or a dictionary, and comparing
// keys ends at the bound on nested tuples.
absl::StatusOr<bool> IsHashable(Workspace& ws, const Value& key, int depth = 0) {
  if (key.kind != Kind::kTuple) {
    return key.kind != Kind::kList && key.kind != Kind::kDict && key.kind != Kind::kView;
  }
  if (depth > kValueDepthMax) return ResourceExhausted("tuples are nested too deeply");
  for (const Value& item : key.sequence->items) {
    RETURN_IF_ERROR(ws.Spend(1));
    ASSIGN_OR_RETURN(const bool hashable, IsHashable(ws, item, depth + 1));
    if (!hashable) return false;
  }
  return true;
}

bool HasItems(const Value& v) {
  return v.kind == Kind::kList || v.kind == Kind::kTuple || v.kind == Kind::kRange;
}

// Python's: negative indices count from the end. -1: outside.
int64_t Place(int64_t index, size_t size) {
  const auto count = static_cast<int64_t>(size);
  if (index < 0) index += count;
  return index >= 0 && index < count ? index : -1;
}

Value LoopAttribute(const Loop& loop, Text name) {
  const auto index = static_cast<int64_t>(loop.index);
  const auto count = static_cast<int64_t>(loop.items.size());
  if (Equal(name, "index")) return Int(index + 1);
  if (Equal(name, "index0")) return Int(index);
  if (Equal(name, "revindex")) return Int(count - index);
  if (Equal(name, "revindex0")) return Int(count - index - 1);
  if (Equal(name, "first")) return Bool(index == 0);
  if (Equal(name, "last")) return Bool(index + 1 == count);
  if (Equal(name, "length")) return Int(count);
  if (Equal(name, "depth")) return Int(1);
  if (Equal(name, "depth0")) return Int(0);
  if (Equal(name, "previtem") && index > 0) return loop.items[loop.index - 1];
  if (Equal(name, "nextitem") && index + 1 < count) return loop.items[loop.index + 1];
  return Undefined(name);
}

struct Range {
  int64_t start, step;
  size_t count;
};

// What Python's slice.indices gives.
absl::StatusOr<Range> Resolve(const SliceBounds& bounds, size_t size) {
  const int64_t step = bounds.step.value_or(1);
  if (step == 0) return InvalidArgument("a slice's step is zero");
  const auto count = static_cast<int64_t>(size);
  const int64_t low = step > 0 ? 0 : -1, high = step > 0 ? count : count - 1;
  const auto clamp = [&](int64_t at) {
    if (at < 0) at = at < -count ? low : at + count;
    return std::clamp(at, low, high);
  };
  const int64_t start = bounds.start ? clamp(*bounds.start) : step > 0 ? low : high;
  const int64_t stop = bounds.stop ? clamp(*bounds.stop) : step > 0 ? high : low;
  const int64_t distance = step > 0 ? stop - start : start - stop;
  if (distance <= 0) return Range{start, 1, 0};
  const uint64_t stride = step > 0 ? static_cast<uint64_t>(step) : 0 - static_cast<uint64_t>(step);
  const uint64_t steps = (static_cast<uint64_t>(distance) - 1) / stride + 1;
  return Range{start, steps > 1 ? step : 1, steps};
}

}  // namespace

absl::StatusOr<Entry*> FindEntry(Workspace& ws, const Dict& dict, const Value& key) {
  ASSIGN_OR_RETURN(const bool hashable, IsHashable(ws, key));
  if (!hashable) return InvalidArgument("{} cannot be a key", TypeName(key));
  RETURN_IF_ERROR(ws.Spend(1 + dict.size / 8));
  for (Entry& entry : std::span(dict.entries, dict.size)) {
    if (entry.key.kind != key.kind && !(entry.key.IsNumber() && key.IsNumber())) continue;
    if (key.IsText() && entry.key.size != key.size) continue;
    ASSIGN_OR_RETURN(const bool equal, AreEqual(ws, entry.key, key));
    if (equal) return &entry;
  }
  return nullptr;
}

absl::StatusOr<Value> GetItem(Workspace& ws, const Value& value, const Value& key) {
  if (value.IsUndefined()) return UndefinedError(value);
  if (value.kind == Kind::kDict) {
    ASSIGN_OR_RETURN(const bool hashable, IsHashable(ws, key));
    if (hashable) {
      ASSIGN_OR_RETURN(const Entry* entry, FindEntry(ws, *value.dict, key));
      if (entry != nullptr) return entry->value;
    }
  }
  if (key.IsInteger() && (value.IsText() || HasItems(value))) {
    ASSIGN_OR_RETURN(const size_t size, Length(value));
    const int64_t place = Place(key.AsInteger(), size);
    if (place < 0) return Undefined(U"item outside of the list");
    if (value.IsText()) return Borrow(value.text().substr(static_cast<size_t>(place), 1));
    return value.sequence->items[static_cast<size_t>(place)];
  }
  if (!key.IsText()) return Undefined(U"item");
  if (value.kind == Kind::kNamespace || value.kind == Kind::kLoop) {
    return GetAttribute(ws, value, key.text());
  }
  return FindMethod(ws, value, key.text());
}

absl::StatusOr<Value> GetAttribute(Workspace& ws, const Value& value, Text name) {
  if (value.IsUndefined()) return UndefinedError(value);
  ASSIGN_OR_RETURN(const Value method, FindMethod(ws, value, name));
  if (!method.IsUndefined()) return method;
  if (value.kind == Kind::kLoop) return LoopAttribute(*value.loop, name);
  if (value.kind == Kind::kDict || value.kind == Kind::kNamespace) {
    ASSIGN_OR_RETURN(const Entry* entry, FindEntry(ws, *value.dict, Borrow(name)));
    if (entry != nullptr) return entry->value;
  }
  return Undefined(name);
}

absl::StatusOr<Value> Slice(Workspace& ws, const Value& value, const SliceBounds& bounds) {
  if (value.IsUndefined()) return UndefinedError(value);
  if (!value.IsText() && !HasItems(value)) {
    return InvalidArgument("{} cannot be sliced", TypeName(value));
  }
  ASSIGN_OR_RETURN(const size_t size, Length(value));
  ASSIGN_OR_RETURN(const Range range, Resolve(bounds, size));
  RETURN_IF_ERROR(ws.Spend(1 + range.count / (range.step == 1 ? 16 : 4)));
  const auto at = [&](size_t i) {
    return static_cast<size_t>(range.start + static_cast<int64_t>(i) * range.step);
  };
  if (value.IsText()) {
    Value part = value;
    if (range.step == 1) {
      const Text text = value.text().substr(range.count == 0 ? 0 : at(0), range.count);
      part.characters = text.data();
      part.size = static_cast<uint32_t>(text.size());
      return part;
    }
    std::u32string picked(range.count, U' ');
    for (size_t i = 0; i < range.count; ++i) picked[i] = value.text()[at(i)];
    return ws.NewText(picked);
  }
  ASSIGN_OR_RETURN(const Value result, ws.NewSequence(value.kind, {}));
  if (range.step == 1) {  // lists never change: the part is shared
    result.sequence->items =
        value.sequence->items.subspan(range.count == 0 ? 0 : at(0), range.count);
    return result;
  }
  ASSIGN_OR_RETURN(result.sequence->items, ws.NewItems(range.count));
  for (size_t i = 0; i < range.count; ++i) {
    result.sequence->items[i] = value.sequence->items[at(i)];
  }
  return result;
}

}  // namespace trivium::model::jinja

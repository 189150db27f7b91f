#include "common/model/jinja/operators.h"

#include <algorithm>

#include "common/model/jinja/format.h"
#include "common/model/jinja/text_builder.h"

namespace trivium::model::jinja {
namespace {

bool IsList(const Value& v) { return v.kind == Kind::kList; }

absl::StatusOr<bool> AllEqual(Workspace& ws, std::span<const Value> a, std::span<const Value> b,
                              int depth) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    ASSIGN_OR_RETURN(const bool equal, AreEqual(ws, a[i], b[i], depth + 1));
    if (!equal) return false;
  }
  return true;
}

absl::StatusOr<bool> DictsEqual(Workspace& ws, const Dict& a, const Dict& b, int depth) {
  if (a.size != b.size) return false;
  for (const Entry& entry : std::span(a.entries, a.size)) {
    ASSIGN_OR_RETURN(const Entry* other, FindEntry(ws, b, entry.key));
    if (other == nullptr) return false;
    ASSIGN_OR_RETURN(const bool equal, AreEqual(ws, entry.value, other->value, depth + 1));
    if (!equal) return false;
  }
  return true;
}

// Python's repeated texts and lists; a negative count is none.
absl::StatusOr<Value> Repeated(Workspace& ws, const Value& value, int64_t count) {
  const size_t times = count < 0 ? 0 : static_cast<size_t>(count);
  const size_t size = value.IsText() ? value.size : value.sequence->items.size();
  if (size > 0 && times > UINT32_MAX / size) return ResourceExhausted("takes too much memory");
  RETURN_IF_ERROR(ws.SpendOnText(size * times));
  if (value.IsText()) {
    TextBuilder out(ws);
    RETURN_IF_ERROR(size == 1 ? out.Repeat(value.characters[0], times)
                              : out.AppendTimes(value.text(), size == 0 ? 0 : times));
    return out.Finish();
  }
  ASSIGN_OR_RETURN(Value result, ws.NewSequence(value.kind, {}));
  ASSIGN_OR_RETURN(result.sequence->items, ws.NewItems(size * times));
  for (size_t i = 0; i < size * times; i += size) {
    std::copy_n(value.sequence->items.begin(), size, result.sequence->items.begin() + i);
  }
  return result;
}

absl::StatusOr<Value> Joined(Workspace& ws, const Value& a, const Value& b) {
  if (a.IsText()) {
    TextBuilder out(ws);
    const bool markup = a.markup || b.markup;
    RETURN_IF_ERROR(markup && !a.markup ? AppendEscaped(out, a.text()) : out.Append(a.text()));
    RETURN_IF_ERROR(markup && !b.markup ? AppendEscaped(out, b.text()) : out.Append(b.text()));
    ASSIGN_OR_RETURN(Value text, out.Finish());
    text.markup = markup;
    return text;
  }
  const std::span<Value> first = a.sequence->items, second = b.sequence->items;
  ASSIGN_OR_RETURN(Value result, ws.NewSequence(a.kind, {}));
  ASSIGN_OR_RETURN(std::span<Value> items, ws.NewItems(first.size() + second.size()));
  std::copy(second.begin(), second.end(), std::copy(first.begin(), first.end(), items.begin()));
  result.sequence->items = items;
  return result;
}

constexpr char kSigns[][3] = {"+", "-", "*", "/", "//", "%", "**"};

}  // namespace

absl::Status UndefinedError(const Value& undefined) {
  return InvalidArgument("'{}' is undefined", Excerpt(undefined.text()));
}

bool IsTrue(const Value& v) {
  switch (v.kind) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
      return v.boolean;
    case Kind::kInt:
      return v.integer != 0;
    case Kind::kFloat:
      return v.number != 0;
    case Kind::kText:
      return v.size > 0;
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kRange:
    case Kind::kView:
      return !v.sequence->items.empty();
    case Kind::kDict:
      return v.dict->size > 0;
    default:
      return true;
  }
}

absl::StatusOr<bool> AreEqual(Workspace& ws, const Value& a, const Value& b, int depth) {
  RETURN_IF_ERROR(ws.Spend(1));
  if (depth > kValueDepthMax) return ResourceExhausted("lists are nested too deeply");
  if (a.IsInteger() && b.IsInteger()) return a.AsInteger() == b.AsInteger();
  if (a.IsNumber() && b.IsNumber()) return a.AsNumber() == b.AsNumber();
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kText:
      RETURN_IF_ERROR(ws.SpendOnText(std::min(a.size, b.size)));
      return Equal(a.text(), b.text());
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kRange:
      return AllEqual(ws, a.sequence->items, b.sequence->items, depth);
    case Kind::kDict:
      return DictsEqual(ws, *a.dict, *b.dict, depth);
    default:
      return a.dict == b.dict;  // the same object
  }
}

absl::StatusOr<int> Order(Workspace& ws, const Value& a, const Value& b, int depth) {
  RETURN_IF_ERROR(ws.Spend(1));
  if (depth > kValueDepthMax) return ResourceExhausted("lists are nested too deeply");
  if (a.IsUndefined()) return UndefinedError(a);
  if (b.IsUndefined()) return UndefinedError(b);
  if (a.IsInteger() && b.IsInteger()) {
    return a.AsInteger() < b.AsInteger() ? -1 : a.AsInteger() > b.AsInteger();
  }
  if (a.IsNumber() && b.IsNumber()) {
    return a.AsNumber() < b.AsNumber() ? -1 : a.AsNumber() > b.AsNumber();
  }
  if (a.IsText() && b.IsText()) {
    RETURN_IF_ERROR(ws.SpendOnText(std::min(a.size, b.size)));
    return Compare(a.text(), b.text());
  }
  if (a.kind != b.kind || (!IsList(a) && a.kind != Kind::kTuple)) {
    return InvalidArgument("{} and {} have no order", TypeName(a), TypeName(b));
  }
  const std::span<Value> x = a.sequence->items, y = b.sequence->items;
  for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
    ASSIGN_OR_RETURN(const bool equal, AreEqual(ws, x[i], y[i], depth + 1));
    if (!equal) return Order(ws, x[i], y[i], depth + 1);
  }
  return x.size() < y.size() ? -1 : x.size() > y.size();
}

absl::StatusOr<bool> Contains(Workspace& ws, const Value& container, const Value& item) {
  if (container.IsText()) {
    if (!item.IsText()) return InvalidArgument("{} cannot be in a str", TypeName(item));
    RETURN_IF_ERROR(ws.SpendOnSearch(container.size));
    return Find(container.text(), item.text()) != kNotFound;
  }
  if (container.kind == Kind::kDict) {
    ASSIGN_OR_RETURN(const Entry* entry, FindEntry(ws, *container.dict, item));
    return entry != nullptr;
  }
  ASSIGN_OR_RETURN(const std::span<const Value> items, Items(ws, container));
  for (const Value& candidate : items) {
    ASSIGN_OR_RETURN(const bool equal, AreEqual(ws, candidate, item));
    if (equal) return true;
  }
  return false;
}

absl::StatusOr<Value> Compute(Workspace& ws, Operator op, const Value& a, const Value& b) {
  if (a.IsUndefined()) return UndefinedError(a);
  if (op == Operator::kModulo && a.IsText()) return FormatPercent(ws, a, b);
  if (b.IsUndefined()) return UndefinedError(b);
  if (a.IsNumber() && b.IsNumber()) return ComputeNumbers(op, a, b);
  const bool joinable = a.kind == b.kind && (a.IsText() || IsList(a) || a.kind == Kind::kTuple);
  if (op == Operator::kAdd && joinable) return Joined(ws, a, b);
  if (op == Operator::kMultiply) {
    const auto repeats = [](const Value& v) {
      return v.IsText() || IsList(v) || v.kind == Kind::kTuple;
    };
    if (repeats(a) && b.IsInteger()) return Repeated(ws, a, b.AsInteger());
    if (repeats(b) && a.IsInteger()) return Repeated(ws, b, a.AsInteger());
  }
  return InvalidArgument("{} {} {} has no meaning", TypeName(a), kSigns[static_cast<int>(op)],
                         TypeName(b));
}

absl::StatusOr<std::span<const Value>> Items(Workspace& ws, const Value& value) {
  std::span<Value> items;
  switch (value.kind) {
    case Kind::kUndefined:
      return items;
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kRange:
    case Kind::kView:
      return value.sequence->items;
    case Kind::kIterator:
      if (value.sequence->spent) return items;
      value.sequence->spent = true;
      return value.sequence->items;
    case Kind::kText: {
      ASSIGN_OR_RETURN(items, ws.NewItems(value.size));
      for (size_t i = 0; i < value.size; ++i) items[i] = Borrow(value.text().substr(i, 1));
      return items;
    }
    case Kind::kDict: {
      ASSIGN_OR_RETURN(items, ws.NewItems(value.dict->size));
      for (size_t i = 0; i < items.size(); ++i) items[i] = value.dict->entries[i].key;
      return items;
    }
    default:
      return InvalidArgument("{} cannot be iterated", TypeName(value));
  }
}

absl::StatusOr<size_t> Length(const Value& value) {
  switch (value.kind) {
    case Kind::kUndefined:
      return 0;
    case Kind::kText:
      return value.size;
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kRange:
    case Kind::kView:
      return value.sequence->items.size();
    case Kind::kDict:
      return value.dict->size;
    case Kind::kLoop:
      return value.loop->items.size();
    default:
      return InvalidArgument("{} has no length", TypeName(value));
  }
}

}  // namespace trivium::model::jinja

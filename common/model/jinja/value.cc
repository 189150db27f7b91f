#include "common/model/jinja/value.h"

#include <algorithm>

#include "common/model/jinja/operators.h"

namespace trivium::model::jinja {

Value None() { return {.kind = Kind::kNone, .characters = nullptr}; }
Value Bool(bool b) { return {.kind = Kind::kBool, .boolean = b}; }
Value Int(int64_t i) { return {.kind = Kind::kInt, .integer = i}; }
Value Float(double f) { return {.kind = Kind::kFloat, .number = f}; }

Value Borrow(Text text) {
  return {
      .kind = Kind::kText, .size = static_cast<uint32_t>(text.size()), .characters = text.data()};
}

Value Undefined(Text name) {
  Value v = Borrow(name);
  v.kind = Kind::kUndefined;
  return v;
}

Workspace::Workspace(uint64_t steps_max, size_t bytes_max, std::time_t now)
    : steps_max_(steps_max),
      steps_left_(steps_max),
      // A text's size is kept in 32 bits.
      bytes_left_(std::min<size_t>(bytes_max, UINT32_MAX)),
      now_(now) {}

absl::Status Workspace::Spend(uint64_t steps) {
  if (steps > steps_left_) {
    steps_left_ = 0;
    return ResourceExhausted("takes more than {} steps", steps_max_);
  }
  steps_left_ -= steps;
  return absl::OkStatus();
}

absl::Status Workspace::Charge(size_t count, size_t bytes_each) {
  if (count > bytes_left_ / bytes_each) {
    bytes_left_ = 0;
    return ResourceExhausted("takes too much memory");
  }
  bytes_left_ -= count * bytes_each;
  return absl::OkStatus();
}

absl::StatusOr<Value> Workspace::NewText(Text text) {
  RETURN_IF_ERROR(Charge(text.size(), sizeof(char32_t)));
  if (text.empty()) return Borrow(U"");
  auto* copy =
      static_cast<char32_t*>(arena_.allocate(text.size() * sizeof(char32_t), alignof(char32_t)));
  std::copy(text.begin(), text.end(), copy);
  return Borrow({copy, text.size()});
}

absl::StatusOr<Value> Workspace::NewText(std::string_view utf8, uint32_t mark) {
  RETURN_IF_ERROR(Charge(utf8.size(), sizeof(char32_t)));
  std::u32string text;
  RETURN_IF_ERROR(AppendUtf8Text(utf8, std::min(mark, kMarkMax), text));
  return NewText(text);
}

absl::StatusOr<std::span<Value>> Workspace::NewItems(size_t count) {
  RETURN_IF_ERROR(Charge(count, sizeof(Value)));
  if (count == 0) return std::span<Value>();
  auto* items = static_cast<Value*>(arena_.allocate(count * sizeof(Value), alignof(Value)));
  std::uninitialized_fill_n(items, count, Value());
  return std::span<Value>(items, count);
}

absl::StatusOr<Value> Workspace::NewSequence(Kind kind, std::span<const Value> items) {
  ASSIGN_OR_RETURN(Sequence * sequence, New<Sequence>());
  ASSIGN_OR_RETURN(sequence->items, NewItems(items.size()));
  std::copy(items.begin(), items.end(), sequence->items.begin());
  return Value{.kind = kind, .sequence = sequence};
}

absl::StatusOr<Value> Workspace::NewDict(size_t capacity) {
  ASSIGN_OR_RETURN(Dict * dict, New<Dict>());
  RETURN_IF_ERROR(Charge(capacity, sizeof(Entry)));
  if (capacity > 0) {
    dict->entries = static_cast<Entry*>(arena_.allocate(capacity * sizeof(Entry), alignof(Entry)));
    std::uninitialized_fill_n(dict->entries, capacity, Entry());
  }
  dict->capacity = capacity;
  return Value{.kind = Kind::kDict, .dict = dict};
}

absl::Status Workspace::SetEntry(Dict& dict, const Value& key, const Value& value) {
  ASSIGN_OR_RETURN(Entry * found, FindEntry(*this, dict, key));
  if (found != nullptr) {
    found->value = value;
    return absl::OkStatus();
  }
  if (dict.size == dict.capacity) {
    ASSIGN_OR_RETURN(const Value larger, NewDict(std::max<size_t>(4, dict.capacity * 2)));
    std::copy_n(dict.entries, dict.size, larger.dict->entries);
    dict.entries = larger.dict->entries;
    dict.capacity = larger.dict->capacity;
  }
  dict.entries[dict.size++] = {key, value};
  return absl::OkStatus();
}

std::string_view TypeName(const Value& value) {
  switch (value.kind) {
    case Kind::kUndefined:
      return "undefined";
    case Kind::kNone:
      return "none";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kText:
      return "str";
    case Kind::kList:
      return "list";
    case Kind::kTuple:
      return "tuple";
    case Kind::kRange:
      return "range";
    case Kind::kView:
      return "dictionary view";
    case Kind::kIterator:
      return "iterator";
    case Kind::kDict:
      return "dict";
    case Kind::kNamespace:
      return "namespace";
    case Kind::kLoop:
      return "loop";
    case Kind::kMacro:
      return "macro";
    case Kind::kMethod:
      return "method";
    case Kind::kFunction:
      return "function";
  }
  return "";
}

}  // namespace trivium::model::jinja

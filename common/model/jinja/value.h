// What a template computes with, and the workspace that one rendering takes its memory and effort
// from.
//
// Values are small and copied freely; what they point to lies in a Workspace, is never freed before
// it, and (but for namespaces and the state of iterators) never changes. So a rendering has no
// reference counts, and its memory is the sum of all it ever made: bounded by the workspace.
// Thread-safety: a Workspace and its values belong to one thread.
#pragma once

#include <cstdint>
#include <ctime>
#include <memory_resource>
#include <span>
#include <string>

#include "common/base/status.h"
#include "common/model/jinja/text.h"

namespace trivium::model::jinja {

enum class Kind : uint8_t {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kText,
  kList,
  kTuple,
  kRange,     // a tuple that prints and adds differently
  kView,      // of a dictionary: has a length, no items by index
  kIterator,  // can be gone through once
  kDict,
  kNamespace,
  kLoop,
  kMacro,
  kMethod,
  kFunction,
};

struct Sequence;
struct Dict;
struct Loop;
struct Macro;
struct Method;
struct FunctionInfo;

struct Value {
  Kind kind = Kind::kUndefined;
  bool markup = false;  // of a text: marked as safe HTML, so that adding to it escapes
  uint32_t size = 0;    // of a text or of the name of what is undefined: characters
  union {
    const char32_t* characters = nullptr;  // kText, kUndefined
    bool boolean;
    int64_t integer;
    double number;
    Sequence* sequence;  // kList, kTuple, kRange, kView, kIterator
    Dict* dict;          // kDict, kNamespace
    Loop* loop;
    Macro* macro;
    Method* method;
    const FunctionInfo* function;
  };

  Text text() const { return {characters, size}; }
  bool IsText() const { return kind == Kind::kText; }
  bool IsUndefined() const { return kind == Kind::kUndefined; }
  bool IsNone() const { return kind == Kind::kNone; }
  bool IsInteger() const { return kind == Kind::kInt || kind == Kind::kBool; }
  bool IsNumber() const { return IsInteger() || kind == Kind::kFloat; }
  int64_t AsInteger() const { return kind == Kind::kBool ? boolean : integer; }
  double AsNumber() const {
    return kind == Kind::kFloat ? number : static_cast<double>(AsInteger());
  }
};

Value None();
Value Bool(bool b);
Value Int(int64_t i);
Value Float(double f);
// The characters must live as long as the value: in a workspace, a template or the program.
Value Borrow(Text text);
Value Undefined(Text name = {});

struct Sequence {
  std::span<Value> items;
  bool spent = false;  // of an iterator
};

struct Entry {
  Value key, value;
};

struct Dict {
  Entry* entries = nullptr;
  size_t size = 0, capacity = 0;
};

struct Loop {
  std::span<Value> items;
  size_t index = 0;
  Value last_changed;  // a tuple, once loop.changed was called
};

struct NamedValue {
  Text name;
  Value value;
};

struct Args {
  std::span<const Value> positional;
  std::span<const NamedValue> named;
};

class Workspace {
 public:
  // `now`: seconds since 1970, what strftime_now tells.
  Workspace(uint64_t steps_max, size_t bytes_max, std::time_t now);
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // RESOURCE_EXHAUSTED when the rendering has used up its share. A step stands for up to some 50 ns
  // (jinja_bench measures that): whoever loops over what a template can make long spends for it.
  absl::Status Spend(uint64_t steps);
  absl::Status SpendOnText(size_t characters) { return Spend(1 + characters / 16); }
  absl::Status SpendOnSearch(size_t characters) { return Spend(1 + characters / 8); }
  // For what looks each character up in Unicode's tables.
  absl::Status SpendOnProperties(size_t characters) { return Spend(1 + characters); }
  absl::Status Charge(size_t count, size_t bytes_each);

  absl::StatusOr<Value> NewText(Text text);
  absl::StatusOr<Value> NewText(std::string_view utf8, uint32_t mark = 0);
  absl::StatusOr<std::span<Value>> NewItems(size_t count);
  absl::StatusOr<Value> NewSequence(Kind kind, std::span<const Value> items);  // copies the items
  absl::StatusOr<Value> NewDict(size_t capacity);
  // Replaces the value of an equal key. INVALID_ARGUMENT for a key that Python could not hash.
  absl::Status SetEntry(Dict& dict, const Value& key, const Value& value);
  template <typename T>
  absl::StatusOr<T*> New() {
    RETURN_IF_ERROR(Charge(1, sizeof(T)));
    return new (arena_.allocate(sizeof(T), alignof(T))) T();
  }

  std::time_t now() const { return now_; }
  uint64_t steps_used() const { return steps_max_ - steps_left_; }

 private:
  std::pmr::monotonic_buffer_resource arena_;
  const uint64_t steps_max_;
  uint64_t steps_left_;
  size_t bytes_left_;
  const std::time_t now_;
};

// Deeper lists of lists are refused wherever they are gone through.
constexpr int kValueDepthMax = 64;

// As Python names it in an error: "str", "list"…
std::string_view TypeName(const Value& value);

}  // namespace trivium::model::jinja

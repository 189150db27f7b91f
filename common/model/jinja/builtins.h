// The filters, tests, functions and methods that templates may use. What is missing here, Jinja2
// has but no template was seen to use. Stateless tables; all bounds come from the workspace.
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "common/model/jinja/operators.h"
#include "common/model/jinja/value.h"

namespace trivium::model::jinja {

using Filter = absl::StatusOr<Value> (*)(Workspace&, const Value&, const Args&);
using Test = absl::StatusOr<bool> (*)(Workspace&, const Value&, const Args&);

// Null where there is none of the name.
Filter FindFilter(Text name);
Filter FindSequenceFilter(Text name);
Test FindTest(Text name);

struct FunctionInfo {
  std::string_view name;
  absl::StatusOr<Value> (*call)(Workspace&, const Args&);
};
std::span<const FunctionInfo> Functions();

struct MethodInfo {
  std::string_view name;
  Filter call;
};
struct Method {
  Value self;
  const MethodInfo* info = nullptr;
};
// value.name where it is a method, else undefined. Methods that would change a list or a dictionary
// do not exist: templates are run as in Jinja2's immutable sandbox.
absl::StatusOr<Value> FindMethod(Workspace& ws, const Value& value, Text name);
std::span<const MethodInfo> TextMethods();
std::span<const MethodInfo> MoreTextMethods();

// Arguments by position or name; null where one is not given. INVALID_ARGUMENT: too many, or a name
// that is not in `names`.
template <size_t N>
absl::StatusOr<std::array<const Value*, N>> Bind(const Args& args,
                                                 const std::array<std::string_view, N>& names) {
  std::array<const Value*, N> bound{};
  if (args.positional.size() > N) return InvalidArgument("has too many arguments");
  for (size_t i = 0; i < args.positional.size(); ++i) bound[i] = &args.positional[i];
  for (const NamedValue& named : args.named) {
    size_t i = 0;
    while (i < N && !Equal(named.name, names[i])) ++i;
    if (i == N || bound[i] != nullptr) {
      return InvalidArgument("has an unknown or repeated argument '{}'", Excerpt(named.name));
    }
    bound[i] = &named.value;
  }
  return bound;
}
// INVALID_ARGUMENT when it is missing or of another kind.
absl::StatusOr<Text> NeedText(const Value* argument);
absl::StatusOr<int64_t> IntegerOr(const Value* argument, int64_t fallback);

// In ascending order, equal ones as they were; `order` is negative when its first comes first.
absl::Status SortItems(std::vector<Value>& items,
                       const std::function<absl::StatusOr<int>(const Value&, const Value&)>& order);

}  // namespace trivium::model::jinja

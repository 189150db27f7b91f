#include "common/model/jinja/builtins.h"

namespace trivium::model::jinja {
namespace {

absl::StatusOr<bool> IsOrdered(Workspace& ws, const Value& a, const Args& args, int low, int high) {
  ASSIGN_OR_RETURN(const auto given, Bind<1>(args, {"other"}));
  if (given[0] == nullptr) return InvalidArgument("needs a value to compare with");
  ASSIGN_OR_RETURN(const int order, Order(ws, a, *given[0]));
  return order >= low && order <= high;
}

absl::StatusOr<bool> Divides(const Value& a, const Value* by) {
  ASSIGN_OR_RETURN(const int64_t number, IntegerOr(&a, 0));
  ASSIGN_OR_RETURN(const int64_t divisor, IntegerOr(by, 0));
  if (divisor == 0) return InvalidArgument("division by zero");
  return divisor == -1 || number % divisor == 0;
}

absl::StatusOr<bool> IsEqualTo(Workspace& ws, const Value& a, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, Bind<1>(args, {"other"}));
  if (given[0] == nullptr) return InvalidArgument("needs a value to compare with");
  return AreEqual(ws, a, *given[0]);
}

// The case of a whole text: some letter, and none of the other case.
template <Case kWanted>
absl::StatusOr<bool> HasCase(Workspace& ws, const Value& v, const Args& args) {
  RETURN_IF_ERROR(Bind<0>(args, {}).status());
  if (!v.IsText()) return false;
  RETURN_IF_ERROR(ws.SpendOnProperties(2 * size_t{v.size}));
  bool cased = false;
  for (char32_t c : v.text()) cased |= IsCased(c);
  return cased && Equal(v.text(), Text(ToCase(v.text(), kWanted)));
}

bool IsSequence(const Value& v) {
  return v.IsUndefined() || v.IsText() || v.kind == Kind::kDict || v.kind == Kind::kList ||
         v.kind == Kind::kTuple || v.kind == Kind::kRange;
}

bool IsIterable(const Value& v) {
  return IsSequence(v) || v.kind == Kind::kView || v.kind == Kind::kIterator ||
         v.kind == Kind::kLoop;
}

bool IsCallable(const Value& v) {
  return v.IsUndefined() || v.kind == Kind::kMacro || v.kind == Kind::kMethod ||
         v.kind == Kind::kFunction || v.kind == Kind::kLoop;
}

struct Row {
  std::string_view name;
  Test test;
};
#define SIMPLE_TEST(expression)                                              \
  [](Workspace&, const Value& v, const Args& args) -> absl::StatusOr<bool> { \
    RETURN_IF_ERROR(Bind<0>(args, {}).status());                             \
    return (expression);                                                     \
  }
#define ORDER_TEST(low, high) \
  [](Workspace& ws, const Value& v, const Args& args) { return IsOrdered(ws, v, args, low, high); }

constexpr Test kNotEqual = [](Workspace& ws, const Value& v,
                              const Args& args) -> absl::StatusOr<bool> {
  ASSIGN_OR_RETURN(const bool equal, IsEqualTo(ws, v, args));
  return !equal;
};

const Row kRows[] = {
    {"!=", kNotEqual},
    {"<", ORDER_TEST(INT32_MIN, -1)},
    {"<=", ORDER_TEST(INT32_MIN, 0)},
    {"==", IsEqualTo},
    {">", ORDER_TEST(1, INT32_MAX)},
    {">=", ORDER_TEST(0, INT32_MAX)},
    {"boolean", SIMPLE_TEST(v.kind == Kind::kBool)},
    {"callable", SIMPLE_TEST(IsCallable(v))},
    {"defined", SIMPLE_TEST(!v.IsUndefined())},
    {"divisibleby",
     [](Workspace&, const Value& v, const Args& args) -> absl::StatusOr<bool> {
       ASSIGN_OR_RETURN(const auto given, Bind<1>(args, {"num"}));
       return Divides(v, given[0]);
     }},
    {"eq", IsEqualTo},
    {"equalto", IsEqualTo},
    {"escaped", SIMPLE_TEST(v.markup)},
    {"even",
     [](Workspace&, const Value& v, const Args&) -> absl::StatusOr<bool> {
       const Value two = Int(2);
       return Divides(v, &two);
     }},
    {"false", SIMPLE_TEST(v.kind == Kind::kBool && !v.boolean)},
    {"filter", SIMPLE_TEST(v.IsText() && FindFilter(v.text()) != nullptr)},
    {"float", SIMPLE_TEST(v.kind == Kind::kFloat)},
    {"ge", ORDER_TEST(0, INT32_MAX)},
    {"greaterthan", ORDER_TEST(1, INT32_MAX)},
    {"gt", ORDER_TEST(1, INT32_MAX)},
    {"in",
     [](Workspace& ws, const Value& v, const Args& args) -> absl::StatusOr<bool> {
       ASSIGN_OR_RETURN(const auto given, Bind<1>(args, {"seq"}));
       if (given[0] == nullptr) return InvalidArgument("needs a sequence");
       return Contains(ws, *given[0], v);
     }},
    {"integer", SIMPLE_TEST(v.kind == Kind::kInt)},
    {"iterable", SIMPLE_TEST(IsIterable(v))},
    {"le", ORDER_TEST(INT32_MIN, 0)},
    {"lessthan", ORDER_TEST(INT32_MIN, -1)},
    {"lower", HasCase<Case::kLower>},
    {"lt", ORDER_TEST(INT32_MIN, -1)},
    {"mapping", SIMPLE_TEST(v.kind == Kind::kDict)},
    {"ne", kNotEqual},
    {"none", SIMPLE_TEST(v.IsNone())},
    {"number", SIMPLE_TEST(v.IsNumber())},
    {"odd",
     [](Workspace&, const Value& v, const Args&) -> absl::StatusOr<bool> {
       const Value two = Int(2);
       ASSIGN_OR_RETURN(const bool even, Divides(v, &two));
       return !even;
     }},
    {"sequence", SIMPLE_TEST(IsSequence(v))},
    {"string", SIMPLE_TEST(v.IsText())},
    {"test", SIMPLE_TEST(v.IsText() && FindTest(v.text()) != nullptr)},
    {"true", SIMPLE_TEST(v.kind == Kind::kBool && v.boolean)},
    {"undefined", SIMPLE_TEST(v.IsUndefined())},
    {"upper", HasCase<Case::kUpper>},
};

}  // namespace

Test FindTest(Text name) {
  for (const Row& row : kRows) {
    if (Equal(name, row.name)) return row.test;
  }
  return nullptr;
}

}  // namespace trivium::model::jinja

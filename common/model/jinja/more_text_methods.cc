// Methods of texts that search, ask, change case and pad; and those that no template was seen to
// call.
#include <algorithm>

#include "common/model/jinja/builtins.h"
#include "common/model/jinja/format.h"

namespace trivium::model::jinja {
namespace {

using Result = absl::StatusOr<Value>;

// text[start:end], with Python's rules, and where it begins; nothing where start lies behind the
// end.
struct Window {
  Text text;
  size_t begin = 0;
  bool valid = true;
};

absl::StatusOr<Window> WindowOf(const Value& self, const Value* start, const Value* end) {
  const auto size = static_cast<int64_t>(self.size);
  const auto bound = [&](const Value* given, int64_t fallback) -> absl::StatusOr<int64_t> {
    if (given == nullptr || given->IsNone()) return fallback;
    ASSIGN_OR_RETURN(const int64_t at, IntegerOr(given, fallback));
    return at < 0 ? std::max<int64_t>(at < -size ? 0 : at + size, 0) : at;
  };
  ASSIGN_OR_RETURN(const int64_t from, bound(start, 0));
  ASSIGN_OR_RETURN(const int64_t wanted_to, bound(end, size));
  const int64_t to = std::min(wanted_to, size);
  if (from > to) return Window{{}, 0, false};
  return Window{self.text().substr(static_cast<size_t>(from), static_cast<size_t>(to - from)),
                static_cast<size_t>(from), true};
}

enum class Search { kFind, kIndex, kFindLast, kIndexLast };

template <Search kSearch>
Result SearchMethod(Workspace& ws, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, (Bind<3>(args, {"sub", "start", "end"})));
  ASSIGN_OR_RETURN(const Text wanted, NeedText(given[0]));
  ASSIGN_OR_RETURN(const Window window, WindowOf(self, given[1], given[2]));
  RETURN_IF_ERROR(ws.SpendOnSearch(self.size));
  constexpr bool kLast = kSearch == Search::kFindLast || kSearch == Search::kIndexLast;
  size_t at = kNotFound;
  if (window.valid) at = kLast ? FindLast(window.text, wanted) : Find(window.text, wanted);
  if (at != kNotFound) return Int(static_cast<int64_t>(window.begin + at));
  if (kSearch == Search::kFind || kSearch == Search::kFindLast) return Int(-1);
  return InvalidArgument("does not find the text");
}

Result CountMethod(Workspace& ws, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, (Bind<3>(args, {"sub", "start", "end"})));
  ASSIGN_OR_RETURN(const Text wanted, NeedText(given[0]));
  ASSIGN_OR_RETURN(const Window window, WindowOf(self, given[1], given[2]));
  RETURN_IF_ERROR(ws.SpendOnSearch(self.size));
  if (wanted.empty()) return Int(window.valid ? static_cast<int64_t>(window.text.size()) + 1 : 0);
  int64_t count = 0;
  Text rest = window.text;
  for (size_t at = Find(rest, wanted); at != kNotFound; at = Find(rest, wanted)) {
    RETURN_IF_ERROR(ws.Spend(1));
    rest.remove_prefix(at + wanted.size());
    ++count;
  }
  return Int(count);
}

template <bool kStart>
Result AffixMethod(Workspace& ws, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, (Bind<3>(args, {"affix", "start", "end"})));
  ASSIGN_OR_RETURN(const Window window, WindowOf(self, given[1], given[2]));
  std::span<const Value> affixes(given[0], given[0] == nullptr ? 0 : 1);
  if (affixes.empty()) return InvalidArgument("needs a text");
  if (given[0]->kind == Kind::kTuple) affixes = given[0]->sequence->items;
  bool matches = false;
  for (const Value& affix : affixes) {
    ASSIGN_OR_RETURN(const Text text, NeedText(&affix));
    RETURN_IF_ERROR(ws.SpendOnText(std::min(text.size(), window.text.size())));
    matches = matches || (window.valid &&
                          (kStart ? StartsWith(window.text, text) : EndsWith(window.text, text)));
  }
  return Bool(matches);
}

template <bool kStart>
Result RemoveAffixMethod(Workspace& ws, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, Bind<1>(args, {"affix"}));
  ASSIGN_OR_RETURN(const Text affix, NeedText(given[0]));
  Text text = self.text();
  RETURN_IF_ERROR(ws.SpendOnText(std::min(text.size(), affix.size())));
  if (kStart && StartsWith(text, affix)) text.remove_prefix(affix.size());
  if (!kStart && EndsWith(text, affix)) text.remove_suffix(affix.size());
  return Borrow(text);
}

template <typename Change>
Result Changed(Workspace& ws, const Value& self, const Args& args, Change change) {
  RETURN_IF_ERROR(Bind<0>(args, {}).status());
  RETURN_IF_ERROR(ws.SpendOnProperties(self.size));
  RETURN_IF_ERROR(ws.Charge(self.size, sizeof(char32_t)));
  return ws.NewText(change(self.text()));
}

template <Case kCase>
Result CaseMethod(Workspace& ws, const Value& self, const Args& args) {
  return Changed(ws, self, args, [](Text text) { return ToCase(text, kCase); });
}

Result CapitalizeMethod(Workspace& ws, const Value& self, const Args& args) {
  return Changed(ws, self, args, Capitalized);
}

template <bool (*kIs)(char32_t)>
Result EveryMethod(Workspace& ws, const Value& self, const Args& args) {
  RETURN_IF_ERROR(Bind<0>(args, {}).status());
  RETURN_IF_ERROR(ws.SpendOnProperties(self.size));
  return Bool(self.size > 0 && std::all_of(self.text().begin(), self.text().end(), kIs));
}

bool IsDigit(char32_t c) { return IsAlnum(c) && !IsAlpha(c); }

template <Case kCase>
Result HasCaseMethod(Workspace& ws, const Value& self, const Args& args) {
  RETURN_IF_ERROR(Bind<0>(args, {}).status());
  const Test test = FindTest(kCase == Case::kUpper ? U"upper" : U"lower");
  ASSIGN_OR_RETURN(const bool has, test(ws, self, {}));
  return Bool(has);
}

enum class Side { kLeft, kRight, kZeros };

template <Side kSide>
Result PadMethod(Workspace& ws, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, (Bind<2>(args, {"width", "fillchar"})));
  ASSIGN_OR_RETURN(const int64_t width, IntegerOr(given[0], 0));
  char32_t fill = kSide == Side::kZeros ? U'0' : U' ';
  if (given[1] != nullptr) {
    ASSIGN_OR_RETURN(const Text text, NeedText(given[1]));
    if (text.size() != 1 || kSide == Side::kZeros) return InvalidArgument("needs one character");
    fill = text[0];
  }
  const auto size = static_cast<int64_t>(self.size);
  const size_t padding = width > size ? static_cast<size_t>(width - size) : 0;
  const bool sign = kSide == Side::kZeros && self.size > 0 &&
                    (Plain(self.characters[0]) == '-' || Plain(self.characters[0]) == '+');
  TextBuilder out(ws);
  if (sign) RETURN_IF_ERROR(out.Append(self.text().substr(0, 1)));
  if (kSide != Side::kRight) RETURN_IF_ERROR(out.Repeat(fill, padding));
  RETURN_IF_ERROR(out.Append(self.text().substr(sign ? 1 : 0)));
  if (kSide == Side::kRight) RETURN_IF_ERROR(out.Repeat(fill, padding));
  return out.Finish();
}

constexpr MethodInfo kMethods[] = {
    {"capitalize", CapitalizeMethod},
    {"count", CountMethod},
    {"endswith", AffixMethod<false>},
    {"find", SearchMethod<Search::kFind>},
    {"index", SearchMethod<Search::kIndex>},
    {"isalnum", EveryMethod<IsAlnum>},
    {"isalpha", EveryMethod<IsAlpha>},
    {"isdigit", EveryMethod<IsDigit>},
    {"islower", HasCaseMethod<Case::kLower>},
    {"isspace", EveryMethod<IsSpace>},
    {"isupper", HasCaseMethod<Case::kUpper>},
    {"ljust", PadMethod<Side::kRight>},
    {"lower", CaseMethod<Case::kLower>},
    {"removeprefix", RemoveAffixMethod<true>},
    {"removesuffix", RemoveAffixMethod<false>},
    {"rfind", SearchMethod<Search::kFindLast>},
    {"rindex", SearchMethod<Search::kIndexLast>},
    {"rjust", PadMethod<Side::kLeft>},
    {"startswith", AffixMethod<true>},
    {"title", CaseMethod<Case::kTitle>},
    {"upper", CaseMethod<Case::kUpper>},
    {"zfill", PadMethod<Side::kZeros>},
    // Python has these: they are defined, but cannot be called here.
    {"casefold", nullptr},
    {"center", nullptr},
    {"encode", nullptr},
    {"expandtabs", nullptr},
    {"format_map", nullptr},
    {"isascii", nullptr},
    {"isdecimal", nullptr},
    {"isidentifier", nullptr},
    {"isnumeric", nullptr},
    {"isprintable", nullptr},
    {"istitle", nullptr},
    {"maketrans", nullptr},
    {"swapcase", nullptr},
    {"translate", nullptr},
};

}  // namespace

std::span<const MethodInfo> MoreTextMethods() { return kMethods; }

}  // namespace trivium::model::jinja

// Methods of texts that take texts apart and put them together.
#include <algorithm>

#include "common/model/jinja/builtins.h"
#include "common/model/jinja/format.h"

namespace trivium::model::jinja {
namespace {

using Result = absl::StatusOr<Value>;

// Most of Python's methods take their arguments by position only.
absl::Status NoNames(const Args& args, size_t positional_max) {
  if (args.positional.size() > positional_max) return InvalidArgument("has too many arguments");
  return args.named.empty() ? absl::OkStatus() : InvalidArgument("takes no named arguments");
}

const Value* ArgumentAt(const Args& args, size_t i) {
  return i < args.positional.size() ? &args.positional[i] : nullptr;
}

template <bool kLeft, bool kRight>
Result StripMethod(Workspace& ws, const Value& self, const Args& args) {
  RETURN_IF_ERROR(NoNames(args, 1));
  Text characters;
  const bool chosen = !args.positional.empty() && !args.positional[0].IsNone();
  if (chosen) {
    ASSIGN_OR_RETURN(characters, NeedText(ArgumentAt(args, 0)));
  }
  RETURN_IF_ERROR(ws.SpendOnText(self.size * std::max<size_t>(1, characters.size())));
  const Text part = Strip(self.text(), chosen ? &characters : nullptr, kLeft, kRight);
  Value result = Borrow(part);
  result.markup = self.markup;
  return result;
}

// The parts that stand between white space.
absl::Status SplitWords(Workspace& ws, Text text, int64_t splits_max, std::vector<Value>& parts) {
  text = Strip(text, nullptr, true, false);
  while (!text.empty()) {
    RETURN_IF_ERROR(ws.Spend(1));
    size_t end = 0;
    while (end < text.size() && !IsSpace(text[end])) ++end;
    if (splits_max >= 0 && static_cast<int64_t>(parts.size()) == splits_max) {
      parts.push_back(Borrow(Strip(text, nullptr, false, true)));
      return absl::OkStatus();
    }
    parts.push_back(Borrow(text.substr(0, end)));
    text = Strip(text.substr(end), nullptr, true, false);
  }
  return absl::OkStatus();
}

Result SplitMethod(Workspace& ws, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, (Bind<2>(args, {"sep", "maxsplit"})));
  ASSIGN_OR_RETURN(const int64_t splits_max, IntegerOr(given[1], -1));
  RETURN_IF_ERROR(ws.SpendOnSearch(self.size));
  std::vector<Value> parts;
  if (given[0] == nullptr || given[0]->IsNone()) {
    RETURN_IF_ERROR(SplitWords(ws, self.text(), splits_max, parts));
    return ws.NewSequence(Kind::kList, parts);
  }
  ASSIGN_OR_RETURN(const Text separator, NeedText(given[0]));
  if (separator.empty()) return InvalidArgument("has an empty separator");
  Text rest = self.text();
  while (splits_max < 0 || static_cast<int64_t>(parts.size()) < splits_max) {
    const size_t at = Find(rest, separator);
    if (at == kNotFound) break;
    RETURN_IF_ERROR(ws.Spend(1));
    parts.push_back(Borrow(rest.substr(0, at)));
    rest.remove_prefix(at + separator.size());
  }
  parts.push_back(Borrow(rest));
  return ws.NewSequence(Kind::kList, parts);
}

Result RightSplitMethod(Workspace& ws, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, (Bind<2>(args, {"sep", "maxsplit"})));
  ASSIGN_OR_RETURN(const int64_t splits_max, IntegerOr(given[1], -1));
  if (splits_max < 0) return SplitMethod(ws, self, args);
  ASSIGN_OR_RETURN(const Text separator, NeedText(given[0]));
  if (separator.empty()) return InvalidArgument("has an empty separator");
  std::vector<Value> parts;
  Text rest = self.text();
  while (static_cast<int64_t>(parts.size()) < splits_max) {
    RETURN_IF_ERROR(ws.SpendOnSearch(rest.size()));
    const size_t at = FindLast(rest, separator);
    if (at == kNotFound) break;
    parts.push_back(Borrow(rest.substr(at + separator.size())));
    rest = rest.substr(0, at);
  }
  parts.push_back(Borrow(rest));
  std::reverse(parts.begin(), parts.end());
  return ws.NewSequence(Kind::kList, parts);
}

Result SplitLinesMethod(Workspace& ws, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, Bind<1>(args, {"keepends"}));
  const bool keeps_ends = given[0] != nullptr && IsTrue(*given[0]);
  RETURN_IF_ERROR(ws.SpendOnText(self.size));
  std::vector<Value> lines;
  const Text text = self.text();
  for (size_t begin = 0; begin < text.size();) {
    RETURN_IF_ERROR(ws.Spend(1));
    size_t end = begin;
    while (end < text.size() && !IsLineEnd(text[end])) ++end;
    size_t next = std::min(end + 1, text.size());
    if (next < text.size() && Plain(text[end]) == '\r' && Plain(text[next]) == '\n') ++next;
    lines.push_back(Borrow(text.substr(begin, (keeps_ends ? next : end) - begin)));
    begin = next;
  }
  return ws.NewSequence(Kind::kList, lines);
}

Result JoinMethod(Workspace& ws, const Value& self, const Args& args) {
  RETURN_IF_ERROR(NoNames(args, 1));
  if (args.positional.empty()) return InvalidArgument("needs a list");
  if (args.positional[0].IsUndefined()) return Borrow(U"");
  ASSIGN_OR_RETURN(const std::span<const Value> items, Items(ws, args.positional[0]));
  TextBuilder out(ws);
  for (size_t i = 0; i < items.size(); ++i) {
    RETURN_IF_ERROR(ws.Spend(1));
    if (i > 0) RETURN_IF_ERROR(out.Append(self.text()));
    ASSIGN_OR_RETURN(const Text item, NeedText(&items[i]));
    RETURN_IF_ERROR(out.Append(item));
  }
  return out.Finish();
}

Result ReplaceMethod(Workspace& ws, const Value& self, const Args& args) {
  RETURN_IF_ERROR(NoNames(args, 3));
  ASSIGN_OR_RETURN(const Text wanted, NeedText(ArgumentAt(args, 0)));
  ASSIGN_OR_RETURN(const Text replacement, NeedText(ArgumentAt(args, 1)));
  ASSIGN_OR_RETURN(const int64_t count, IntegerOr(ArgumentAt(args, 2), -1));
  RETURN_IF_ERROR(ws.SpendOnSearch(self.size));
  TextBuilder out(ws);
  Text rest = self.text();
  for (int64_t done = 0; count < 0 || done < count; ++done) {
    const size_t at = Find(rest, wanted);
    if (at == kNotFound) break;
    RETURN_IF_ERROR(ws.Spend(1));
    RETURN_IF_ERROR(out.Append(rest.substr(0, at)));
    RETURN_IF_ERROR(out.Append(replacement));
    rest.remove_prefix(at + wanted.size());
    if (!wanted.empty()) continue;
    // What is empty stands before each character and at the end.
    if (rest.empty()) return out.Finish();
    RETURN_IF_ERROR(out.Append(rest.substr(0, 1)));
    rest.remove_prefix(1);
  }
  RETURN_IF_ERROR(out.Append(rest));
  return out.Finish();
}

template <bool kLast>
Result PartitionMethod(Workspace& ws, const Value& self, const Args& args) {
  RETURN_IF_ERROR(NoNames(args, 1));
  ASSIGN_OR_RETURN(const Text separator, NeedText(ArgumentAt(args, 0)));
  if (separator.empty()) return InvalidArgument("has an empty separator");
  RETURN_IF_ERROR(ws.SpendOnSearch(self.size));
  const Text text = self.text();
  const size_t at = kLast ? FindLast(text, separator) : Find(text, separator);
  Value parts[] = {self, Borrow(U""), Borrow(U"")};
  if (at == kNotFound && kLast) std::swap(parts[0], parts[2]);
  if (at != kNotFound) {
    parts[0] = Borrow(text.substr(0, at));
    parts[1] = Borrow(text.substr(at, separator.size()));
    parts[2] = Borrow(text.substr(at + separator.size()));
  }
  return ws.NewSequence(Kind::kTuple, parts);
}

Result FormatMethod(Workspace& ws, const Value& self, const Args& args) {
  return FormatBraces(ws, self.text(), args);
}

constexpr MethodInfo kMethods[] = {
    {"format", FormatMethod},
    {"join", JoinMethod},
    {"lstrip", StripMethod<true, false>},
    {"partition", PartitionMethod<false>},
    {"replace", ReplaceMethod},
    {"rpartition", PartitionMethod<true>},
    {"rsplit", RightSplitMethod},
    {"rstrip", StripMethod<false, true>},
    {"split", SplitMethod},
    {"splitlines", SplitLinesMethod},
    {"strip", StripMethod<true, true>},
};

}  // namespace

std::span<const MethodInfo> TextMethods() { return kMethods; }

}  // namespace trivium::model::jinja

#include <algorithm>

#include "common/model/jinja/builtins.h"
#include "common/model/jinja/format.h"

namespace trivium::model::jinja {
namespace {

using Result = absl::StatusOr<Value>;

absl::StatusOr<std::vector<Value>> Copied(Workspace& ws, const Value& v) {
  ASSIGN_OR_RETURN(const std::span<const Value> items, Items(ws, v));
  RETURN_IF_ERROR(ws.Spend(1 + items.size() / 8));
  RETURN_IF_ERROR(ws.Charge(items.size(), sizeof(Value)));
  return std::vector<Value>(items.begin(), items.end());
}

// item.a.b.0 for the path "a.b.0"; the item itself without a path.
Result Lookup(Workspace& ws, Value item, const Value* path) {
  if (path == nullptr || path->IsNone()) return item;
  if (!path->IsText()) return GetItem(ws, item, *path);
  Text rest = path->text();
  RETURN_IF_ERROR(ws.SpendOnSearch(rest.size()));
  for (bool more = true; more;) {
    RETURN_IF_ERROR(ws.Spend(1));
    const size_t dot = std::min(Find(rest, U"."), rest.size());
    const Text part = rest.substr(0, dot);
    more = dot < rest.size();
    rest.remove_prefix(std::min(dot + 1, rest.size()));
    int64_t index = 0;
    bool digits = !part.empty() && part.size() < 10;
    for (char32_t c : part) {
      digits = digits && Plain(c) >= '0' && Plain(c) <= '9';
      if (digits) index = index * 10 + (Plain(c) - '0');
    }
    ASSIGN_OR_RETURN(item, GetItem(ws, item, digits ? Int(index) : Borrow(part)));
  }
  return item;
}

// What sorting and uniqueness compare: the attribute, texts in lower case unless case counts.
Result SortKey(Workspace& ws, const Value& item, const Value* path, bool case_sensitive) {
  ASSIGN_OR_RETURN(const Value key, Lookup(ws, item, path));
  if (case_sensitive || !key.IsText()) return key;
  RETURN_IF_ERROR(ws.SpendOnProperties(key.size));
  RETURN_IF_ERROR(ws.Charge(key.size, sizeof(char32_t)));
  return ws.NewText(ToCase(key.text(), Case::kLower));
}

Result LengthFilter(Workspace&, const Value& v, const Args& args) {
  RETURN_IF_ERROR(Bind<0>(args, {}).status());
  ASSIGN_OR_RETURN(const size_t length, Length(v));
  return Int(static_cast<int64_t>(length));
}

Result ListFilter(Workspace& ws, const Value& v, const Args& args) {
  RETURN_IF_ERROR(Bind<0>(args, {}).status());
  ASSIGN_OR_RETURN(const std::span<const Value> items, Items(ws, v));
  return ws.NewSequence(Kind::kList, items);
}

Result FirstFilter(Workspace& ws, const Value& v, const Args& args) {
  RETURN_IF_ERROR(Bind<0>(args, {}).status());
  if (v.IsText() && v.size > 0) return Borrow(v.text().substr(0, 1));
  ASSIGN_OR_RETURN(const std::span<const Value> items, Items(ws, v));
  return items.empty() ? Undefined(U"first item") : items.front();
}

Result LastFilter(Workspace& ws, const Value& v, const Args& args) {
  RETURN_IF_ERROR(Bind<0>(args, {}).status());
  if (v.kind == Kind::kIterator) return InvalidArgument("an iterator cannot be reversed");
  if (v.IsText() && v.size > 0) return Borrow(v.text().substr(v.size - 1));
  ASSIGN_OR_RETURN(const std::span<const Value> items, Items(ws, v));
  return items.empty() ? Undefined(U"last item") : items.back();
}

Result ItemsFilter(Workspace& ws, const Value& v, const Args& args) {
  RETURN_IF_ERROR(Bind<0>(args, {}).status());
  if (v.IsUndefined()) return ws.NewSequence(Kind::kIterator, {});
  if (v.kind != Kind::kDict) return InvalidArgument("needs a mapping");
  ASSIGN_OR_RETURN(const Value method, FindMethod(ws, v, U"items"));
  ASSIGN_OR_RETURN(Value pairs, method.method->info->call(ws, v, {}));
  pairs.kind = Kind::kIterator;
  return pairs;
}

Result JoinFilter(Workspace& ws, const Value& v, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, (Bind<2>(args, {"d", "attribute"})));
  ASSIGN_OR_RETURN(const Value separator,
                   given[0] == nullptr ? Borrow(U"") : ToText(ws, *given[0]));
  ASSIGN_OR_RETURN(const std::span<const Value> items, Items(ws, v));
  TextBuilder out(ws);
  for (size_t i = 0; i < items.size(); ++i) {
    RETURN_IF_ERROR(ws.Spend(1));
    if (i > 0) RETURN_IF_ERROR(out.Append(separator.text()));
    ASSIGN_OR_RETURN(const Value item, Lookup(ws, items[i], given[1]));
    RETURN_IF_ERROR(AppendStr(out, item));
  }
  return out.Finish();
}

Result ReverseFilter(Workspace& ws, const Value& v, const Args& args) {
  RETURN_IF_ERROR(Bind<0>(args, {}).status());
  if (v.kind == Kind::kIterator) return InvalidArgument("an iterator cannot be reversed");
  if (v.IsText()) {
    RETURN_IF_ERROR(ws.Charge(v.size, sizeof(char32_t)));
    return ws.NewText(std::u32string(v.text().rbegin(), v.text().rend()));
  }
  ASSIGN_OR_RETURN(std::vector<Value> items, Copied(ws, v));
  std::reverse(items.begin(), items.end());
  return ws.NewSequence(Kind::kIterator, items);
}

Result SortFilter(Workspace& ws, const Value& v, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, (Bind<3>(args, {"reverse", "case_sensitive", "attribute"})));
  const bool reverse = given[0] != nullptr && IsTrue(*given[0]);
  const bool case_sensitive = given[1] != nullptr && IsTrue(*given[1]);
  ASSIGN_OR_RETURN(std::vector<Value> items, Copied(ws, v));
  RETURN_IF_ERROR(SortItems(items, [&](const Value& a, const Value& b) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(const Value x, SortKey(ws, a, given[2], case_sensitive));
    ASSIGN_OR_RETURN(const Value y, SortKey(ws, b, given[2], case_sensitive));
    ASSIGN_OR_RETURN(const int order, Order(ws, x, y));
    return reverse ? -order : order;
  }));
  return ws.NewSequence(Kind::kList, items);
}

Result DictSortFilter(Workspace& ws, const Value& v, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, (Bind<3>(args, {"case_sensitive", "by", "reverse"})));
  const bool case_sensitive = given[0] != nullptr && IsTrue(*given[0]);
  Value place = Int(0);
  if (given[1] != nullptr) {
    ASSIGN_OR_RETURN(const Text by, NeedText(given[1]));
    if (!Equal(by, "key") && !Equal(by, "value")) return InvalidArgument("sorts by key or value");
    place = Int(Equal(by, "value"));
  }
  if (v.kind != Kind::kDict) return InvalidArgument("needs a mapping");
  ASSIGN_OR_RETURN(const Value pairs, ItemsFilter(ws, v, {}));
  const NamedValue named[] = {
      {U"reverse", given[2] == nullptr ? Bool(false) : *given[2]},
      {U"case_sensitive", Bool(case_sensitive)},
      {U"attribute", place},
  };
  return SortFilter(ws, pairs, {{}, named});
}

Result UniqueFilter(Workspace& ws, const Value& v, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, (Bind<2>(args, {"case_sensitive", "attribute"})));
  const bool case_sensitive = given[0] != nullptr && IsTrue(*given[0]);
  ASSIGN_OR_RETURN(const std::span<const Value> items, Items(ws, v));
  ASSIGN_OR_RETURN(const Value seen, ws.NewDict(items.size()));
  std::vector<Value> kept;
  for (const Value& item : items) {
    RETURN_IF_ERROR(ws.Spend(1));
    ASSIGN_OR_RETURN(const Value key, SortKey(ws, item, given[1], case_sensitive));
    ASSIGN_OR_RETURN(const Entry* entry, FindEntry(ws, *seen.dict, key));
    if (entry != nullptr) continue;
    RETURN_IF_ERROR(ws.SetEntry(*seen.dict, key, item));
    kept.push_back(item);
  }
  return ws.NewSequence(Kind::kIterator, kept);
}

template <int kSign>
Result ExtremeFilter(Workspace& ws, const Value& v, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, (Bind<2>(args, {"case_sensitive", "attribute"})));
  const bool case_sensitive = given[0] != nullptr && IsTrue(*given[0]);
  ASSIGN_OR_RETURN(const std::span<const Value> items, Items(ws, v));
  if (items.empty()) return Undefined(U"item of an empty list");
  Value best = items[0];
  ASSIGN_OR_RETURN(Value best_key, SortKey(ws, best, given[1], case_sensitive));
  for (const Value& item : items.subspan(1)) {
    ASSIGN_OR_RETURN(const Value key, SortKey(ws, item, given[1], case_sensitive));
    ASSIGN_OR_RETURN(const int order, Order(ws, key, best_key));
    if (order * kSign <= 0) continue;
    best = item;
    best_key = key;
  }
  return best;
}

Result SumFilter(Workspace& ws, const Value& v, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, (Bind<2>(args, {"attribute", "start"})));
  Value sum = given[1] == nullptr ? Int(0) : *given[1];
  if (sum.IsText()) return InvalidArgument("cannot add texts");
  ASSIGN_OR_RETURN(const std::span<const Value> items, Items(ws, v));
  for (const Value& item : items) {
    RETURN_IF_ERROR(ws.Spend(1));
    ASSIGN_OR_RETURN(const Value addend, Lookup(ws, item, given[0]));
    ASSIGN_OR_RETURN(sum, Compute(ws, Operator::kAdd, sum, addend));
  }
  return sum;
}

Result BatchFilter(Workspace& ws, const Value& v, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, (Bind<2>(args, {"linecount", "fill_with"})));
  ASSIGN_OR_RETURN(const int64_t count, IntegerOr(given[0], 0));
  if (count < 1) return InvalidArgument("needs a count above zero");
  ASSIGN_OR_RETURN(const std::span<const Value> items, Items(ws, v));
  std::vector<Value> batches;
  const auto size = static_cast<size_t>(count);
  for (size_t at = 0; at < items.size(); at += std::min(size, items.size() - at)) {
    RETURN_IF_ERROR(ws.Spend(4));
    const auto part = items.subspan(at, std::min(size, items.size() - at));
    std::vector<Value> batch(part.begin(), part.end());
    if (given[1] != nullptr && !given[1]->IsNone()) {
      RETURN_IF_ERROR(ws.Charge(size, sizeof(Value)));
      batch.resize(size, *given[1]);
    }
    ASSIGN_OR_RETURN(const Value list, ws.NewSequence(Kind::kList, batch));
    batches.push_back(list);
  }
  return ws.NewSequence(Kind::kIterator, batches);
}

Result AttributeFilter(Workspace& ws, const Value& v, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, Bind<1>(args, {"name"}));
  ASSIGN_OR_RETURN(const Text name, NeedText(given[0]));
  if (v.IsUndefined()) return UndefinedError(v);
  if (v.kind == Kind::kDict) return FindMethod(ws, v, name);
  return GetAttribute(ws, v, name);
}

Result MapFilter(Workspace& ws, const Value& v, const Args& args) {
  const bool by_attribute = args.positional.empty();
  std::array<const Value*, 2> given{};
  Filter filter = nullptr;
  if (by_attribute) {
    ASSIGN_OR_RETURN(given, (Bind<2>(args, {"attribute", "default"})));
    if (given[0] == nullptr) return InvalidArgument("needs a filter or an attribute");
  } else {
    // A map of maps of maps goes one list deeper for each argument.
    if (args.positional.size() > kValueDepthMax) return ResourceExhausted("has too many arguments");
    ASSIGN_OR_RETURN(const Text name, NeedText(&args.positional[0]));
    filter = FindFilter(name);
    if (filter == nullptr) return InvalidArgument("no filter named '{}'", Excerpt(name));
  }
  ASSIGN_OR_RETURN(std::vector<Value> items, Copied(ws, v));
  for (Value& item : items) {
    RETURN_IF_ERROR(ws.Spend(1));
    if (filter != nullptr) {
      ASSIGN_OR_RETURN(item, filter(ws, item, {args.positional.subspan(1), args.named}));
      continue;
    }
    ASSIGN_OR_RETURN(item, Lookup(ws, item, given[0]));
    if (item.IsUndefined() && given[1] != nullptr && !given[1]->IsNone()) item = *given[1];
  }
  return ws.NewSequence(Kind::kIterator, items);
}

template <bool kByAttribute, bool kKept>
Result ChooseFilter(Workspace& ws, const Value& v, const Args& args) {
  if (!IsTrue(v)) return ws.NewSequence(Kind::kIterator, {});
  constexpr size_t kTestAt = kByAttribute ? 1 : 0;
  if (args.positional.size() < kTestAt) return InvalidArgument("needs an attribute");
  const Value* path = kByAttribute ? &args.positional[0] : nullptr;
  Test test = nullptr;
  if (args.positional.size() > kTestAt) {
    ASSIGN_OR_RETURN(const Text name, NeedText(&args.positional[kTestAt]));
    test = FindTest(name);
    if (test == nullptr) return InvalidArgument("no test named '{}'", Excerpt(name));
  }
  ASSIGN_OR_RETURN(const std::vector<Value> items, Copied(ws, v));
  std::vector<Value> kept;
  for (const Value& item : items) {
    RETURN_IF_ERROR(ws.Spend(1));
    ASSIGN_OR_RETURN(const Value tested, Lookup(ws, item, path));
    bool passes = IsTrue(tested);
    if (test != nullptr) {
      ASSIGN_OR_RETURN(passes,
                       test(ws, tested, {args.positional.subspan(kTestAt + 1), args.named}));
    }
    if (passes == kKept) kept.push_back(item);
  }
  return ws.NewSequence(Kind::kIterator, kept);
}

struct Row {
  std::string_view name;
  Filter call;
};
constexpr Row kRows[] = {
    {"attr", AttributeFilter},
    {"batch", BatchFilter},
    {"count", LengthFilter},
    {"dictsort", DictSortFilter},
    {"first", FirstFilter},
    {"items", ItemsFilter},
    {"join", JoinFilter},
    {"last", LastFilter},
    {"length", LengthFilter},
    {"list", ListFilter},
    {"map", MapFilter},
    {"max", ExtremeFilter<1>},
    {"min", ExtremeFilter<-1>},
    {"reject", ChooseFilter<false, false>},
    {"rejectattr", ChooseFilter<true, false>},
    {"reverse", ReverseFilter},
    {"select", ChooseFilter<false, true>},
    {"selectattr", ChooseFilter<true, true>},
    {"sort", SortFilter},
    {"sum", SumFilter},
    {"unique", UniqueFilter},
};

}  // namespace

Filter FindSequenceFilter(Text name) {
  for (const Row& row : kRows) {
    if (Equal(name, row.name)) return row.call;
  }
  return nullptr;
}

}  // namespace trivium::model::jinja

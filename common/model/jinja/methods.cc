// Methods of dictionaries, lists and loops, and the lookup of all methods.
#include <algorithm>

#include "common/model/jinja/builtins.h"

namespace trivium::model::jinja {
namespace {

using Result = absl::StatusOr<Value>;

Result DictGet(Workspace& ws, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, (Bind<2>(args, {"", " "})));  // takes no names
  if (given[0] == nullptr) return InvalidArgument("needs a key");
  ASSIGN_OR_RETURN(const Entry* entry, FindEntry(ws, *self.dict, *given[0]));
  if (entry != nullptr) return entry->value;
  return given[1] == nullptr ? None() : *given[1];
}

enum class Part { kKeys, kValues, kItems };

template <Part kPart>
Result DictView(Workspace& ws, const Value& self, const Args& args) {
  RETURN_IF_ERROR(Bind<0>(args, {}).status());
  const std::span<const Entry> entries(self.dict->entries, self.dict->size);
  ASSIGN_OR_RETURN(const Value view, ws.NewSequence(Kind::kView, {}));
  ASSIGN_OR_RETURN(view.sequence->items, ws.NewItems(entries.size()));
  RETURN_IF_ERROR(ws.Spend(1 + entries.size()));
  for (size_t i = 0; i < entries.size(); ++i) {
    Value& item = view.sequence->items[i];
    if (kPart == Part::kItems) {
      const Value pair[] = {entries[i].key, entries[i].value};
      ASSIGN_OR_RETURN(item, ws.NewSequence(Kind::kTuple, pair));
    } else {
      item = kPart == Part::kKeys ? entries[i].key : entries[i].value;
    }
  }
  return view;
}

Result Itself(Workspace&, const Value& self, const Args& args) {
  RETURN_IF_ERROR(Bind<0>(args, {}).status());
  return self;
}

Result ListCount(Workspace& ws, const Value& self, const Args& args) {
  if (args.positional.size() != 1) return InvalidArgument("needs one item");
  int64_t count = 0;
  for (const Value& item : self.sequence->items) {
    ASSIGN_OR_RETURN(const bool equal, AreEqual(ws, item, args.positional[0]));
    count += equal;
  }
  return Int(count);
}

Result ListIndex(Workspace& ws, const Value& self, const Args& args) {
  if (args.positional.size() != 1) return InvalidArgument("needs one item");
  const std::span<const Value> items = self.sequence->items;
  for (size_t i = 0; i < items.size(); ++i) {
    ASSIGN_OR_RETURN(const bool equal, AreEqual(ws, items[i], args.positional[0]));
    if (equal) return Int(static_cast<int64_t>(i));
  }
  return InvalidArgument("the item is not in the list");
}

Result LoopCycle(Workspace&, const Value& self, const Args& args) {
  if (args.positional.empty()) return InvalidArgument("needs items to cycle through");
  return args.positional[self.loop->index % args.positional.size()];
}

Result LoopChanged(Workspace& ws, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Value now, ws.NewSequence(Kind::kTuple, args.positional));
  ASSIGN_OR_RETURN(const bool same, AreEqual(ws, self.loop->last_changed, now));
  self.loop->last_changed = now;
  return Bool(!same);
}

constexpr MethodInfo kDictMethods[] = {
    {"copy", Itself},
    {"get", DictGet},
    {"items", DictView<Part::kItems>},
    {"keys", DictView<Part::kKeys>},
    {"values", DictView<Part::kValues>},
};
constexpr MethodInfo kListMethods[] = {
    {"copy", Itself}, {"count", ListCount}, {"index", ListIndex}};
constexpr MethodInfo kLoopMethods[] = {{"changed", LoopChanged}, {"cycle", LoopCycle}};

const MethodInfo* FindIn(std::span<const MethodInfo> methods, Text name) {
  for (const MethodInfo& method : methods) {
    if (Equal(name, method.name)) return &method;
  }
  return nullptr;
}

const MethodInfo* FindInfo(const Value& value, Text name) {
  switch (value.kind) {
    case Kind::kDict:
      return FindIn(kDictMethods, name);
    case Kind::kList:
    case Kind::kTuple: {
      // A tuple has no copy().
      const std::span<const MethodInfo> all = kListMethods;
      return FindIn(value.kind == Kind::kList ? all : all.subspan(1), name);
    }
    case Kind::kLoop:
      return FindIn(kLoopMethods, name);
    case Kind::kText: {
      const MethodInfo* found = FindIn(TextMethods(), name);
      return found != nullptr ? found : FindIn(MoreTextMethods(), name);
    }
    default:
      return nullptr;
  }
}

}  // namespace

absl::StatusOr<Value> FindMethod(Workspace& ws, const Value& value, Text name) {
  const MethodInfo* info = FindInfo(value, name);
  if (info == nullptr) return Undefined(name);
  ASSIGN_OR_RETURN(Method * method, ws.New<Method>());
  *method = {value, info};
  return Value{.kind = Kind::kMethod, .method = method};
}

}  // namespace trivium::model::jinja

// The functions that a template finds without being given them.
#include <ctime>

#include "common/model/jinja/builtins.h"
#include "common/model/jinja/format.h"

namespace trivium::model::jinja {
namespace {

using Result = absl::StatusOr<Value>;

constexpr size_t kRangeMax = 100'000;  // as in Jinja2's sandbox

Result Range(Workspace& ws, const Args& args) {
  if (args.positional.empty() || args.positional.size() > 3 || !args.named.empty()) {
    return InvalidArgument("range needs one to three integers");
  }
  int64_t bounds[3] = {0, 0, 1};
  const bool only_stop = args.positional.size() == 1;
  for (size_t i = 0; i < args.positional.size(); ++i) {
    ASSIGN_OR_RETURN(bounds[only_stop ? 1 : i], IntegerOr(&args.positional[i], 0));
  }
  const auto [start, stop, step] = bounds;
  if (step == 0) return InvalidArgument("range has a step of zero");
  const bool up = step > 0;
  uint64_t count = 0;
  if (up ? start < stop : start > stop) {
    const uint64_t distance = up ? static_cast<uint64_t>(stop) - static_cast<uint64_t>(start)
                                 : static_cast<uint64_t>(start) - static_cast<uint64_t>(stop);
    const uint64_t stride = up ? static_cast<uint64_t>(step) : 0 - static_cast<uint64_t>(step);
    count = (distance - 1) / stride + 1;
  }
  if (count > kRangeMax) return InvalidArgument("range has more than {} numbers", kRangeMax);
  RETURN_IF_ERROR(ws.Spend(1 + count / 8));
  ASSIGN_OR_RETURN(const Value range, ws.NewSequence(Kind::kRange, {}));
  ASSIGN_OR_RETURN(range.sequence->items, ws.NewItems(count));
  int64_t next = start;
  for (size_t i = 0; i < count; ++i) {
    range.sequence->items[i] = Int(next);
    if (i + 1 < count) next += step;
  }
  return range;
}

// dict(mapping or pairs, name=value, …)
Result MakeDict(Workspace& ws, const Args& args) {
  if (args.positional.size() > 1) return InvalidArgument("dict takes one mapping");
  ASSIGN_OR_RETURN(const Value dict, ws.NewDict(args.named.size()));
  if (args.positional.size() == 1) {
    const Value& source = args.positional[0];
    if (source.kind == Kind::kDict) {
      for (const Entry& entry : std::span(source.dict->entries, source.dict->size)) {
        RETURN_IF_ERROR(ws.SetEntry(*dict.dict, entry.key, entry.value));
      }
    } else {
      ASSIGN_OR_RETURN(const std::span<const Value> items, Items(ws, source));
      for (const Value& item : items) {
        ASSIGN_OR_RETURN(const std::span<const Value> pair, Items(ws, item));
        if (pair.size() != 2) return InvalidArgument("dict needs pairs");
        RETURN_IF_ERROR(ws.SetEntry(*dict.dict, pair[0], pair[1]));
      }
    }
  }
  for (const NamedValue& named : args.named) {
    RETURN_IF_ERROR(ws.SetEntry(*dict.dict, Borrow(named.name), named.value));
  }
  return dict;
}

Result MakeNamespace(Workspace& ws, const Args& args) {
  ASSIGN_OR_RETURN(Value ns, MakeDict(ws, args));
  ns.kind = Kind::kNamespace;
  return ns;
}

Result RaiseException(Workspace& ws, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, Bind<1>(args, {"message"}));
  if (given[0] == nullptr) return InvalidArgument("raise_exception needs a message");
  ASSIGN_OR_RETURN(const Value message, ToText(ws, *given[0]));
  return InvalidArgument("{}", ToUtf8(message.text().substr(0, 1000)));
}

// In UTC, so that routers in different places render the same prompt.
Result StrftimeNow(Workspace& ws, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, Bind<1>(args, {"format"}));
  ASSIGN_OR_RETURN(const Text format, NeedText(given[0]));
  if (format.empty()) return Borrow(U"");
  RETURN_IF_ERROR(ws.Spend(40 + 4 * format.size()));  // may read the time zone's file
  const std::time_t now = ws.now();
  std::tm parts{};
  char out[256];
  if (format.size() > 100 || gmtime_r(&now, &parts) == nullptr) {
    return InvalidArgument("strftime_now has too long a format");
  }
  const size_t size = std::strftime(out, sizeof out, ToUtf8(format).c_str(), &parts);
  if (size == 0) return InvalidArgument("strftime_now has a format that gives nothing");
  return ws.NewText(std::string_view(out, size));
}

constexpr FunctionInfo kFunctions[] = {
    {"dict", MakeDict}, {"namespace", MakeNamespace},  {"raise_exception", RaiseException},
    {"range", Range},   {"strftime_now", StrftimeNow},
};

}  // namespace

std::span<const FunctionInfo> Functions() { return kFunctions; }

}  // namespace trivium::model::jinja

#include <cmath>
#include <vector>

#include "common/model/jinja/builtins.h"
#include "common/model/jinja/format.h"

namespace trivium::model::jinja {
namespace {

class JsonWriter {
 public:
  JsonWriter(TextBuilder& out, const JsonOptions& options) : out_(out), options_(options) {}

  absl::Status Write(const Value& value, int depth) {
    RETURN_IF_ERROR(out_.workspace().Spend(1));
    if (depth > kValueDepthMax) return ResourceExhausted("lists are nested too deeply");
    switch (value.kind) {
      case Kind::kText:
        return WriteText(value.text());
      case Kind::kNone:
        return out_.Append("null");
      case Kind::kBool:
        return out_.Append(value.boolean ? "true" : "false");
      case Kind::kInt:
        return out_.Append(fmt::format("{}", value.integer));
      case Kind::kFloat:
        return WriteFloat(value.number);
      case Kind::kList:
      case Kind::kTuple:
        return WriteList(value.sequence->items, depth);
      case Kind::kDict:
        return WriteDict(*value.dict, depth);
      default:
        return InvalidArgument("{} cannot be written as JSON", TypeName(value));
    }
  }

 private:
  absl::Status WriteFloat(double f) {
    if (std::isnan(f)) return out_.Append("NaN");
    if (std::isinf(f)) return out_.Append(f < 0 ? "-Infinity" : "Infinity");
    RETURN_IF_ERROR(out_.workspace().Spend(kFloatReprSteps));
    return out_.Append(FloatRepr(f));
  }

  absl::Status WriteText(Text text) {
    RETURN_IF_ERROR(out_.Append("\""));
    RETURN_IF_ERROR(AppendEscaping(out_, text, [this](char32_t c) { return Escape(c); }));
    return out_.Append("\"");
  }

  // Empty where the character stands for itself.
  std::string Escape(char32_t c) const {
    switch (c) {
      case '"':
        return "\\\"";
      case '\\':
        return "\\\\";
      case '\n':
        return "\\n";
      case '\r':
        return "\\r";
      case '\t':
        return "\\t";
      case '\b':
        return "\\b";
      case '\f':
        return "\\f";
      default:
        break;
    }
    const uint32_t number = c;
    if (number >= 0x20 && (number < 0x7F || !options_.ensure_ascii)) return "";
    if (number == 0x7F) return "";
    if (number < 0x10000) return fmt::format("\\u{:04x}", number);
    const uint32_t offset = number - 0x10000;
    return fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (offset >> 10), 0xDC00 + (offset & 0x3FF));
  }

  // What stands before the item `i`, and, with i == 0, after the opening bracket.
  absl::Status Separate(size_t i, int depth) {
    if (i > 0) RETURN_IF_ERROR(out_.Append(options_.item_separator));
    return options_.lines ? NewLine(depth + 1) : absl::OkStatus();
  }

  absl::Status NewLine(int depth) {
    RETURN_IF_ERROR(out_.workspace().Spend(1 + static_cast<uint64_t>(depth) / 4));
    RETURN_IF_ERROR(out_.Append("\n"));
    for (int i = 0; i < depth; ++i) RETURN_IF_ERROR(out_.Append(options_.indent));
    return absl::OkStatus();
  }

  absl::Status WriteList(std::span<const Value> items, int depth) {
    RETURN_IF_ERROR(out_.Append("["));
    for (size_t i = 0; i < items.size(); ++i) {
      RETURN_IF_ERROR(Separate(i, depth));
      RETURN_IF_ERROR(Write(items[i], depth + 1));
    }
    if (options_.lines && !items.empty()) RETURN_IF_ERROR(NewLine(depth));
    return out_.Append("]");
  }

  absl::Status WriteKey(const Value& key) {
    if (key.IsText()) return WriteText(key.text());
    if (!key.IsNumber() && !key.IsNone()) {
      return InvalidArgument("{} cannot be a key in JSON", TypeName(key));
    }
    RETURN_IF_ERROR(out_.Append("\""));
    RETURN_IF_ERROR(Write(key, 0));
    return out_.Append("\"");
  }

  absl::Status WriteDict(const Dict& dict, int depth) {
    std::vector<Value> order;  // of the entries: their places
    for (size_t i = 0; i < dict.size; ++i) order.push_back(Int(static_cast<int64_t>(i)));
    if (options_.sort_keys) {
      RETURN_IF_ERROR(SortItems(order, [&](const Value& a, const Value& b) {
        return Order(out_.workspace(), dict.entries[a.integer].key, dict.entries[b.integer].key);
      }));
    }
    RETURN_IF_ERROR(out_.Append("{"));
    for (size_t i = 0; i < dict.size; ++i) {
      const Entry& entry = dict.entries[order[i].integer];
      RETURN_IF_ERROR(Separate(i, depth));
      RETURN_IF_ERROR(WriteKey(entry.key));
      RETURN_IF_ERROR(out_.Append(options_.key_separator));
      RETURN_IF_ERROR(Write(entry.value, depth + 1));
    }
    if (options_.lines && dict.size > 0) RETURN_IF_ERROR(NewLine(depth));
    return out_.Append("}");
  }

  TextBuilder& out_;
  const JsonOptions& options_;
};

}  // namespace

absl::Status AppendJson(TextBuilder& out, const Value& value, const JsonOptions& options) {
  return JsonWriter(out, options).Write(value, 0);
}

}  // namespace trivium::model::jinja

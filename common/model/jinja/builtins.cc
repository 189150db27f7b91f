#include "common/model/jinja/builtins.h"

#include <algorithm>

namespace trivium::model::jinja {

absl::StatusOr<Text> NeedText(const Value* argument) {
  if (argument == nullptr) return InvalidArgument("needs a text");
  if (!argument->IsText()) {
    return InvalidArgument("needs a text where {} is given", TypeName(*argument));
  }
  return argument->text();
}

absl::StatusOr<int64_t> IntegerOr(const Value* argument, int64_t fallback) {
  if (argument == nullptr) return fallback;
  if (!argument->IsInteger()) {
    return InvalidArgument("needs an integer where {} is given", TypeName(*argument));
  }
  return argument->AsInteger();
}

// A merge sort, because the standard library's may not be given an order that fails or, with NaN,
// contradicts itself.
absl::Status SortItems(
    std::vector<Value>& items,
    const std::function<absl::StatusOr<int>(const Value&, const Value&)>& order) {
  std::vector<Value> merged(items.size());
  for (size_t run = 1; run < items.size(); run *= 2) {
    for (size_t begin = 0; begin < items.size(); begin += 2 * run) {
      const size_t middle = std::min(begin + run, items.size());
      const size_t end = std::min(middle + run, items.size());
      size_t left = begin, right = middle;
      for (size_t out = begin; out < end; ++out) {
        bool take_right = left == middle;
        if (left < middle && right < end) {
          ASSIGN_OR_RETURN(const int sign, order(items[right], items[left]));
          take_right = sign < 0;
        }
        merged[out] = items[take_right ? right++ : left++];
      }
    }
    items.swap(merged);
  }
  return absl::OkStatus();
}

}  // namespace trivium::model::jinja

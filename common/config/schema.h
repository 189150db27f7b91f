// What the comments of config.proto say about each field, as data: default and range of a number,
// choices of a string. Used for filling defaults and for checks alike. Immutable; safe from any
// thread.
#pragma once

#include <google/protobuf/descriptor.h>

#include <string_view>
#include <vector>

#include "common/base/status.h"

namespace trivium::config {

struct FieldRule {
  std::string_view field;                      // "EngineConfig.threads"
  double min = 0, max = 0, value = 0;          // of numbers; `value` is the default
  std::string_view text = {};                  // of strings: the default
  std::vector<std::string_view> choices = {};  // empty: any text
  bool is_bytes = false;                       // "512MiB" is understood
  enum class Form { kAny, kAddress, kName, kSha256, kSharing } form = Form::kAny;  // of strings
};
inline constexpr size_t kNameBytesMax = 64;  // of Form::kName

// nullptr: nothing to check.
const FieldRule* FindRule(const google::protobuf::FieldDescriptor& field);

// "1 to 256", "auto, reference, avx2": for messages.
std::string Allowed(const FieldRule& rule);
absl::Status CheckNumber(const FieldRule& rule, double value);
absl::Status CheckText(const FieldRule& rule, std::string_view value);

}  // namespace trivium::config

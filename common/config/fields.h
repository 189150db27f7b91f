// One field of a configuration message set from text, checked against its rule. Errors name what is
// wrong and what is allowed, and leave the place (file and line, or flag) to the caller. Stateless.
#pragma once

#include <google/protobuf/message.h>

#include <string>
#include <string_view>

#include "common/base/status.h"

namespace trivium::config {

// Sets the scalar `field`, or adds to it where it is a list of texts. Quoted text is never a number
// or a truth value.
absl::Status SetFromText(google::protobuf::Message* message,
                         const google::protobuf::FieldDescriptor& field, const std::string& text,
                         bool quoted);

// Sets "engine.threads" and the like; the path must exist.
absl::Status SetByPath(google::protobuf::Message* message, std::string_view path,
                       const std::string& text);

// Fills every unset scalar of `message` with its rule's default, makes every sub-message present,
// and checks what is set. Errors start with the field's path.
absl::Status CompleteFields(google::protobuf::Message* message, const std::string& prefix);

}  // namespace trivium::config

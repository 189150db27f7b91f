// Pictures inside JSON: "data:image/png;base64,…". Stateless; safe from any thread.
#pragma once

#include <string>
#include <string_view>

#include "common/base/status.h"

namespace trivium::router::openai {

// The bytes; what they are, the bytes themselves say. INVALID_ARGUMENT for any other URI: nothing
// is fetched for a client; for base64 that is none.
absl::StatusOr<std::string> ReadDataUri(std::string_view uri);

}  // namespace trivium::router::openai

// The text that a command works on. Stateless.
#pragma once

#include <string>

#include "common/base/status.h"
#include "services/cli/options.h"

namespace trivium::cli {

// The content of a file of at most `bytes_max`, or of standard input for "-". INVALID_ARGUMENT
// names it.
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t bytes_max);

// --prompt, or the content of --file (standard input for "-"): valid UTF-8 of at most 8 MiB.
absl::StatusOr<std::string> ReadPrompt(const Options& options);

absl::StatusOr<v1::GenerateRequest> MakeGenerateRequest(const Options& options);

}  // namespace trivium::cli

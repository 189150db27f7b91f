// The text that a command works on. Stateless.
#pragma once

#include <string>

#include "common/base/status.h"
#include "services/cli/options.h"

namespace trivium::cli {

// --prompt, or the content of --file (standard input for "-"): valid UTF-8 of at most 8 MiB.
absl::StatusOr<std::string> ReadPrompt(const Options& options);

absl::StatusOr<v1::GenerateRequest> MakeGenerateRequest(const Options& options);

}  // namespace trivium::cli

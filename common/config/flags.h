// The command line that all services share: a YAML file, flags that override it, and the questions
// that end the program at once. Called once, at the start of main.
#pragma once

#include <optional>
#include <string_view>

#include "trivium/v1/config.pb.h"

namespace trivium::config {

std::string_view Version();  // of Trivium

// Fill `config`, complete. nullopt: go on; else the exit code for main, and everything has been
// said: 0 after
// --help, --version, --print-config, --check-config; 1 for a bad configuration; 2 for a bad command
// line.
std::optional<int> ParseWorkerCommandLine(int argc, const char* const* argv, std::string_view role,
                                          v1::WorkerConfig* config);
std::optional<int> ParseRouterCommandLine(int argc, const char* const* argv,
                                          v1::RouterConfig* config);

}  // namespace trivium::config

// The manual page trivium(1), made from the tree of commands. Stateless.
#pragma once

#include <string>

#include "services/cli/command_tree.h"

namespace trivium::cli {

// roff with the man macros. `version` stands in its foot.
std::string ManPage(const CommandInfo& program, const std::string& version);

// `text` as plain words of roff: nothing in it is a request or an escape, and a minus is one.
std::string Roff(const std::string& text);

}  // namespace trivium::cli

// Scripts that complete the command line in a shell, made from the tree of commands. Stateless.
#pragma once

#include <string>

#include "services/cli/command_tree.h"

namespace trivium::cli {

// Each is to be sourced, or put where the shell looks for completions. They complete commands,
// options, fixed choices and files; a value of another kind gets no proposals.
std::string BashCompletion(const CommandInfo& program);
std::string ZshCompletion(const CommandInfo& program);
std::string FishCompletion(const CommandInfo& program);

// `text` as one word of a POSIX shell.
std::string ShellQuoted(const std::string& text);

}  // namespace trivium::cli

#include <fmt/format.h>

#include "services/cli/completion.h"

namespace trivium::cli {
namespace {

// Fish knows two escapes inside single quotes.
std::string Quoted(const std::string& text) {
  std::string quoted = "'";
  for (const char c : text) {
    if (c == '\'' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + "'";
}

std::string Line(const OptionInfo& option, const std::string& condition) {
  std::string line = "complete -c trivium" + condition;
  for (const std::string& name : option.names) {
    line += name.rfind("--", 0) == 0 ? " -l " + name.substr(2) : " -s " + name.substr(1);
  }
  if (option.takes_file()) {
    line += " -r -F";
  } else if (!option.value.empty()) {
    line += " -x";
  }
  if (!option.choices.empty()) {
    line += " -a " + Quoted(fmt::format("{}", fmt::join(option.choices, " ")));
  }
  if (!option.help.empty()) line += " -d " + Quoted(option.help);
  return line + "\n";
}

}  // namespace

std::string FishCompletion(const CommandInfo& program) {
  std::string out = "# fish completion of trivium\ncomplete -c trivium -f\n";
  for (const OptionInfo& option : program.options) out += Line(option, "");
  for (const CommandInfo& command : program.commands) {
    out += fmt::format("complete -c trivium -n __fish_use_subcommand -a {} -d {}\n", command.name,
                       Quoted(command.help));
    const std::string condition = fmt::format(" -n '__fish_seen_subcommand_from {}'", command.name);
    for (const OptionInfo& option : command.options) out += Line(option, condition);
  }
  return out;
}

}  // namespace trivium::cli

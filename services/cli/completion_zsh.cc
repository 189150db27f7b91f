#include <fmt/format.h>

#include "services/cli/completion.h"

namespace trivium::cli {
namespace {

// Text inside the brackets of an _arguments specification, or before its next colon.
std::string Escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '[' || c == ']' || c == ':' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

std::string Action(const OptionInfo& option) {
  if (option.takes_file()) return "_files";
  if (option.choices.empty()) return " ";
  return fmt::format("({})", fmt::join(option.choices, " "));
}

// A line a name; any may be given again, where the program says no that is its own message.
std::string Specifications(const std::vector<OptionInfo>& options) {
  const std::string indent(8, ' ');
  std::string out;
  for (const OptionInfo& option : options) {
    std::string value;
    if (!option.value.empty()) value = fmt::format(":{}:{}", Escaped(option.value), Action(option));
    if (option.names.empty()) out += " \\\n" + indent + ShellQuoted("1" + value);
    for (const std::string& name : option.names) {
      const std::string one = fmt::format("*{}[{}]{}", name, Escaped(option.help), value);
      out += " \\\n" + indent + ShellQuoted(one);
    }
  }
  return out;
}

}  // namespace

std::string ZshCompletion(const CommandInfo& program) {
  std::string described, cases;
  for (const CommandInfo& command : program.commands) {
    described += "    " + ShellQuoted(command.name + ":" + Escaped(command.help)) + "\n";
    cases += fmt::format("      {}) _arguments -s{} ;;\n", command.name,
                         Specifications(OptionsBehind(program, command)));
  }
  return fmt::format(
      "#compdef trivium\n"
      "_trivium() {{\n"
      "  local curcontext=\"$curcontext\" state line\n"
      "  typeset -A opt_args\n"
      "  local -a commands=(\n{}  )\n"
      "  _arguments -C -s{} \\\n"
      "        '1:command:->command' '*::argument:->argument'\n"
      "  case $state in\n"
      "    command) _describe -t commands command commands ;;\n"
      "    argument) case $words[1] in\n{}    esac ;;\n"
      "  esac\n"
      "}}\n"
      "if [[ $funcstack[1] == _trivium ]]; then _trivium \"$@\"; else compdef _trivium trivium; "
      "fi\n",
      described, Specifications(program.options), cases);
}

}  // namespace trivium::cli

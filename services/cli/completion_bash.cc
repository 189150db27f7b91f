#include <fmt/format.h>

#include "services/cli/completion.h"

namespace trivium::cli {
namespace {

constexpr char kHead[] = R"(# bash completion of trivium
_trivium() {
  local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command= words= i
  COMPREPLY=()
  # "--option=value" comes as three words
  if [[ $current == = ]]; then
    current=
  elif [[ $before == = ]]; then
    before=${COMP_WORDS[COMP_CWORD-2]}
  fi
)";

constexpr char kTail[] = R"(  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}
complete -F _trivium trivium
)";

std::string Joined(const std::vector<std::string>& words, const char* separator) {
  return fmt::format("{}", fmt::join(words, separator));
}

std::string Names(const std::vector<CommandInfo>& commands, const char* separator) {
  std::vector<std::string> names;
  for (const CommandInfo& command : commands) names.push_back(command.name);
  return Joined(names, separator);
}

// The loop that finds the command among the words before the current one.
std::string FindCommand(const CommandInfo& program) {
  std::vector<std::string> with_value;
  for (const OptionInfo& option : program.options) {
    if (!option.value.empty()) {
      with_value.insert(with_value.end(), option.names.begin(), option.names.end());
    }
  }
  std::string skip;
  if (!with_value.empty()) skip = fmt::format("      {}) ((++i)) ;;\n", Joined(with_value, "|"));
  return fmt::format(
      "  for ((i = 1; i < COMP_CWORD; ++i)); do\n"
      "    case ${{COMP_WORDS[i]}} in\n{}"
      "      {}) command=${{COMP_WORDS[i]}}; break ;;\n"
      "    esac\n"
      "  done\n",
      skip, Names(program.commands, "|"));
}

// The case that answers when the word before is an option with a value. `command` is empty for an
// option that stands anywhere.
std::string ValueCase(const std::string& command, const OptionInfo& option) {
  if (option.value.empty() || option.names.empty()) return "";
  std::vector<std::string> patterns;
  for (const std::string& name : option.names) {
    patterns.push_back((command.empty() ? "*" : command) + ":" + name);
  }
  std::string reply;
  if (option.takes_file()) {
    reply =
        "compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- \"$current\"); ";
  } else if (!option.choices.empty()) {
    reply = fmt::format("mapfile -t COMPREPLY < <(compgen -W {} -- \"$current\"); ",
                        ShellQuoted(Joined(option.choices, " ")));
  }
  return fmt::format("    {}) {}return ;;\n", Joined(patterns, "|"), reply);
}

// What may stand where no option's value is due.
std::string Words(const std::vector<OptionInfo>& options) {
  std::vector<std::string> words;
  for (const OptionInfo& option : options) {
    const auto& more = option.names.empty() ? option.choices : option.names;
    words.insert(words.end(), more.begin(), more.end());
  }
  return Joined(words, " ");
}

}  // namespace

std::string ShellQuoted(const std::string& text) {
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

std::string BashCompletion(const CommandInfo& program) {
  std::string values, words;
  for (const OptionInfo& option : program.options) values += ValueCase("", option);
  for (const CommandInfo& command : program.commands) {
    for (const OptionInfo& option : command.options) values += ValueCase(command.name, option);
    words += fmt::format("    {}) words={} ;;\n", command.name,
                         ShellQuoted(Words(OptionsBehind(program, command))));
  }
  words += fmt::format("    *) words={} ;;\n",
                       ShellQuoted(Names(program.commands, " ") + " " + Words(program.options)));
  return kHead + FindCommand(program) + "  case $command:$before in\n" + values +
         "  esac\n  case $command in\n" + words + "  esac\n" + kTail;
}

}  // namespace trivium::cli

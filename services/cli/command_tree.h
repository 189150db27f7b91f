// The commands and options of the program as plain data, read from the parser itself, so that what
// is made of them (completion, manual) cannot say anything else than the program does. Values.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace trivium::cli {

struct OptionInfo {
  std::vector<std::string> names;    // "-h", "--help"; empty: an argument known by its place
  std::string value;                 // what stands for the value: INT, FILE; empty: a flag
  std::string range;                 // what the value must be; empty: anything of its kind
  std::vector<std::string> choices;  // where only these are allowed
  std::string help;
  std::string default_value;
  std::string environment;  // variable that sets it; empty: none

  bool takes_file() const { return value == "FILE"; }
};

struct CommandInfo {
  std::string name;
  std::string help;
  std::vector<OptionInfo> options;  // those of its option groups included
  std::vector<CommandInfo> commands;
};

CommandInfo Describe(const CLI::App& app);

// What may stand behind a command: its own options, then those of the program that it does not have
// itself.
std::vector<OptionInfo> OptionsBehind(const CommandInfo& program, const CommandInfo& command);

}  // namespace trivium::cli

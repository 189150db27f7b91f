#include "services/cli/command_tree.h"

#include <CLI/CLI.hpp>
#include <algorithm>

namespace trivium::cli {
namespace {

// "{a,b}" as a and b; anything else is no set.
std::vector<std::string> Choices(const std::string& range) {
  if (range.size() < 2 || range.front() != '{' || range.back() != '}') return {};
  return CLI::detail::split(range.substr(1, range.size() - 2), ',');
}

OptionInfo DescribeOption(const CLI::Option& option) {
  OptionInfo info;
  for (const std::string& name : option.get_snames()) info.names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) info.names.push_back("--" + name);
  info.help = option.get_description();
  info.default_value = option.get_default_str();
  info.environment = option.get_envname();
  if (option.get_expected_max() == 0 || option.get_type_size() == 0) return info;  // a flag
  const std::string type = option.get_type_name();  // "KIND" or "KIND:what it must be"
  const size_t colon = type.find(':');
  info.value = option.get_positional() ? option.get_name(true) : type.substr(0, colon);
  if (colon != std::string::npos) info.range = type.substr(colon + 1);
  info.choices = Choices(info.range);
  return info;
}

}  // namespace

CommandInfo Describe(const CLI::App& app) {
  CommandInfo info;
  info.name = app.get_name();
  info.help = app.get_description();
  for (const CLI::Option* option : app.get_options()) {
    info.options.push_back(DescribeOption(*option));
  }
  for (const CLI::App* child : app.get_subcommands([](const CLI::App*) { return true; })) {
    CommandInfo inner = Describe(*child);
    if (!inner.name.empty()) {
      info.commands.push_back(std::move(inner));
    } else {  // an option group; it has a --help of its own, which is the command's again
      info.options = OptionsBehind(inner, info);
    }
  }
  return info;
}

std::vector<OptionInfo> OptionsBehind(const CommandInfo& program, const CommandInfo& command) {
  std::vector<OptionInfo> options = command.options;
  for (const OptionInfo& option : program.options) {
    const bool known =
        std::any_of(command.options.begin(), command.options.end(),
                    [&](const OptionInfo& own) { return own.names == option.names; });
    if (!known) options.push_back(option);
  }
  return options;
}

}  // namespace trivium::cli

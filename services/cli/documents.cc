#include <cstdio>

#include "common/config/flags.h"
#include "services/cli/commands.h"
#include "services/cli/completion.h"
#include "services/cli/man_page.h"

namespace trivium::cli {

int RunCompletion(const Options& options) {
  const CommandInfo program = DescribeCommands();
  const std::string script = options.shell == "bash"  ? BashCompletion(program)
                             : options.shell == "zsh" ? ZshCompletion(program)
                                                      : FishCompletion(program);
  std::fputs(script.c_str(), stdout);
  return 0;
}

int RunMan(const Options&) {
  std::fputs(ManPage(DescribeCommands(), std::string(config::Version())).c_str(), stdout);
  return 0;
}

}  // namespace trivium::cli

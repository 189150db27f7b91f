#include "services/cli/completion.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <sstream>

#include "common/base/status.h"
#include "services/cli/options.h"

namespace trivium::cli {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::IsSupersetOf;
using testing::Not;

// What `command` writes to standard output, in lines.
std::vector<std::string> Lines(const std::string& command) {
  std::FILE* pipe = popen(command.c_str(), "r");
  std::string text;
  for (char buffer[4096]; size_t got = fread(buffer, 1, sizeof buffer, pipe);) {
    text.append(buffer, got);
  }
  EXPECT_EQ(pclose(pipe), 0) << command;
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

bool Present(const char* program) {
  return std::system(fmt::format("command -v {} >/dev/null 2>&1", program).c_str()) == 0;
}

std::string Written(const std::string& name, const std::string& script) {
  const std::string path = testing::TempDir() + fmt::format("{}.{}", name, getpid());
  std::ofstream(path) << script;
  return path;
}

// What bash proposes for the last of `words`, which it has split by its own rules.
std::vector<std::string> Bash(const std::vector<std::string>& words,
                              const std::string& prepare = "") {
  static const std::string path = Written("bash_completion", BashCompletion(DescribeCommands()));
  std::string line;
  for (const std::string& word : words) line += ShellQuoted(word) + " ";
  const std::string script = fmt::format(
      "set -u; {}source {}; COMP_WORDS=({}); COMP_CWORD={}; _trivium; "
      "((${{#COMPREPLY[@]}} == 0)) || printf '%s\\n' \"${{COMPREPLY[@]}}\"",
      prepare, path, line, words.size() - 1);
  return Lines("bash --norc -c " + ShellQuoted(script));
}

class BashCompletionTest : public testing::Test {
  void SetUp() override {
    if (!Present("bash")) GTEST_SKIP() << "no bash here";
  }
};

TEST_F(BashCompletionTest, EveryCommandAndEveryOptionOfIt) {
  const CommandInfo program = DescribeCommands();
  ASSERT_GE(program.commands.size(), 9u);
  const auto first = Bash({"trivium", ""});
  for (const CommandInfo& command : program.commands) {
    EXPECT_THAT(first, Contains(command.name));
    const auto behind = Bash({"trivium", "--router", "chat", command.name, "-"});
    for (const OptionInfo& option : OptionsBehind(program, command)) {
      for (const std::string& name : option.names) EXPECT_THAT(behind, Contains(name));
    }
  }
}

TEST_F(BashCompletionTest, OnlyWhatFits) {
  EXPECT_THAT(Bash({"trivium", "gen"}), ElementsAre("generate"));
  EXPECT_THAT(Bash({"trivium", "generate", "--prompt-l"}), ElementsAre("--prompt-logprobs"));
  EXPECT_THAT(Bash({"trivium", "status", "--prompt"}), IsEmpty());
  EXPECT_THAT(Bash({"trivium", "status", "gen"}), IsEmpty());
  EXPECT_THAT(Bash({"trivium", "completion", ""}), IsSupersetOf({"bash", "zsh", "fish"}));
  EXPECT_THAT(Bash({"trivium", "completion", "z"}), ElementsAre("zsh"));
}

TEST_F(BashCompletionTest, ValuesOfOptions) {
  const std::string directory = testing::TempDir() + fmt::format("complete.{}", getpid());
  const std::string prepare = fmt::format("mkdir -p {0}; cd {0}; : >'a file'; ", directory);
  EXPECT_THAT(Bash({"trivium", "generate", "--file", "a"}, prepare), ElementsAre("a file"));
  EXPECT_THAT(Bash({"trivium", "generate", "--file", "="}, prepare), ElementsAre("a file"));
  EXPECT_THAT(Bash({"trivium", "generate", "--file", "=", "a"}, prepare), ElementsAre("a file"));
  EXPECT_THAT(Bash({"trivium", "generate", "--prompt", "a"}, prepare), IsEmpty());
  EXPECT_THAT(Bash({"trivium", "--router", ""}, prepare), IsEmpty());
}

// The other shells are asked where they are installed.
TEST(ZshCompletionTest, IsAScriptOfZsh) {
  const std::string script = ZshCompletion(DescribeCommands());
  EXPECT_EQ(script.rfind("#compdef trivium\n", 0), 0u);
  EXPECT_THAT(script, HasSubstr("'*--file[file with the text; - is standard input]:FILE:_files'"));
  EXPECT_THAT(script, HasSubstr("'1:shell:(bash zsh fish)'"));
  if (!Present("zsh")) GTEST_SKIP() << "no zsh here";
  EXPECT_THAT(Lines("zsh -n " + Written("zsh_completion", script) + " 2>&1"), IsEmpty());
}

TEST(FishCompletionTest, ProposesWhatFits) {
  const std::string script = FishCompletion(DescribeCommands());
  EXPECT_THAT(script, HasSubstr(" -l file -r -F -d 'file with the text; - is standard input'\n"));
  if (!Present("fish")) GTEST_SKIP() << "no fish here";
  const std::string source = "source " + Written("fish_completion", script) + "; ";
  const auto proposed = [&](const std::string& line) {
    return Lines("fish --no-config -c " + ShellQuoted(source + "complete -C " + ShellQuoted(line)));
  };
  EXPECT_THAT(proposed("trivium gen"), ElementsAre("generate\tanswer one prompt"));
  EXPECT_THAT(proposed("trivium completion "), Contains("bash\twhose script"));
  EXPECT_THAT(proposed("trivium status --"), Not(Contains(HasSubstr("--prompt"))));
}

}  // namespace
}  // namespace trivium::cli

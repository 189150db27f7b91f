#include "services/cli/man_page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "common/base/status.h"
#include "services/cli/options.h"

namespace trivium::cli {
namespace {

using testing::HasSubstr;

TEST(RoffTest, NothingIsARequestOrAnEscape) {
  EXPECT_EQ(Roff(".TP"), "\\&.TP");
  EXPECT_EQ(Roff("a\n'b"), "a\n\\&'b");
  EXPECT_EQ(Roff("a.b 'c'"), "a.b 'c'");
  EXPECT_EQ(Roff("\\fB --x"), "\\efB \\-\\-x");
  EXPECT_EQ(Roff("-100 … 100"), "\\-100 ... 100");
}

TEST(ManPageTest, SaysEveryCommandAndOption) {
  const CommandInfo program = DescribeCommands();
  const std::string page = ManPage(program, "1.2.3");
  for (const CommandInfo& command : program.commands) {
    const std::string heading = ".SS trivium " + Roff(command.name) + "\n";
    const size_t at = page.find(heading);
    ASSERT_NE(at, std::string::npos) << heading;
    const std::string section = page.substr(at, page.find("\n.S", at + 1) - at);
    for (const OptionInfo& option : command.options) {
      EXPECT_FALSE(option.help.empty())
          << command.name << " " << testing::PrintToString(option.names);
      for (const std::string& name : option.names) {
        EXPECT_THAT(section, HasSubstr("\\fB" + Roff(name) + "\\fR"));
      }
    }
  }
  EXPECT_THAT(page, HasSubstr("\"Trivium 1.2.3\""));
  EXPECT_THAT(page, HasSubstr("The environment variable TRIVIUM_ROUTER sets it too."));
}

TEST(ManPageTest, IsRoffThatFormatsWithoutWarning) {
  const std::string page = ManPage(DescribeCommands(), "1.2.3");
  std::istringstream lines(page);
  for (std::string line; std::getline(lines, line);) {
    EXPECT_FALSE(line.empty());
    EXPECT_LT(line.size(), 1000u);
    for (const char c : line) EXPECT_LT(static_cast<unsigned char>(c), 128) << line;
    if (line[0] == '.') {
      EXPECT_THAT(line.substr(0, 3),
                  testing::AnyOf(".TH", ".SH", ".SS", ".TP", ".PP", ".B ", ".BR", ".br"));
    }
  }
  if (std::system("command -v groff >/dev/null 2>&1") != 0) GTEST_SKIP() << "no groff here";
  const std::string path = testing::TempDir() + fmt::format("trivium.1.{}", getpid());
  std::ofstream(path) << page;
  const std::string check = fmt::format("test -z \"$(groff -man -Tutf8 -ww -z {} 2>&1)\"", path);
  EXPECT_EQ(std::system(check.c_str()), 0);
}

}  // namespace
}  // namespace trivium::cli

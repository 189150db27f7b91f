#include "common/telemetry/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace trivium::telemetry {
namespace {

using testing::MatchesRegex;

constexpr char kTime[] = "[0-9]+-[0-9]+-[0-9]+T[0-9]+:[0-9]+:[0-9]+\\.[0-9]+Z ";

template <typename Call>
std::string Printed(const Call& call) {
  testing::internal::CaptureStderr();
  call();
  return testing::internal::GetCapturedStderr();
}

TEST(LogTest, OneLineWithTimeLevelEventAndFields) {
  ASSERT_TRUE(InitLog("router", "info"));
  const std::string line = Printed([] {
    Log(Level::kInfo, "request_done",
        {{"request_id", std::string("r-1")}, {"tokens", 40}, {"seconds", 0.25}, {"ok", true}});
  });
  EXPECT_THAT(line, MatchesRegex(std::string(kTime) +
                                 "info request_done service=router request_id=r-1 tokens=40 "
                                 "seconds=0.25 ok=true\n"));
}

TEST(LogTest, ValuesCannotBreakTheLine) {
  ASSERT_TRUE(InitLog("", "info"));
  const std::string line = Printed([] {
    Log(Level::kWarning, "odd",
        {{"a", "two words"},
         {"b", ""},
         {"c", "x\nfake info event\r"},
         {"d", "say \"hi\" \\"},
         {"e", "k=v"},
         {"f", "\x1b[31m"},
         {"g", "\xff"},
         {"h", "caf\xc3\xa9"},
         {"i", "%v {} %Y"}});
  });
  const size_t event = line.find("warning odd");
  ASSERT_NE(event, std::string::npos);
  EXPECT_EQ(line.substr(event),
            "warning odd a=\"two words\" b=\"\" c=\"x\\nfake info event\\r\" d=\"say \\\"hi\\\" "
            "\\\\\" e=\"k=v\" f=\"\\x1b[31m\" g=\"\\xff\" h=caf\xc3\xa9 i=\"%v {} %Y\"\n");
}

TEST(LogTest, LongValuesAreCut) {
  ASSERT_TRUE(InitLog("", "info"));
  const std::string line = Printed([] {
    Log(Level::kInfo, "long", {{"v", std::string(100000, 'x')}});
  });
  EXPECT_LT(line.size(), 1200u);
  EXPECT_NE(line.find("x...\"\n"), std::string::npos);
}

TEST(LogTest, LevelsFilter) {
  EXPECT_FALSE(InitLog("", "loud"));
  EXPECT_FALSE(InitLog("", ""));
  const Level levels[] = {Level::kTrace, Level::kDebug, Level::kInfo, Level::kWarning,
                          Level::kError};
  const std::string names[] = {"trace", "debug", "info", "warning", "error"};
  for (int threshold = 0; threshold < 5; ++threshold) {
    ASSERT_TRUE(InitLog("", names[threshold]));
    for (int level = 0; level < 5; ++level) {
      const std::string line = Printed([&] { Log(levels[level], "e"); });
      EXPECT_EQ(line.empty(), level < threshold) << threshold << " " << level;
    }
  }
}

TEST(LogTest, LinesOfManyThreadsStayWhole) {
  ASSERT_TRUE(InitLog("", "info"));
  const std::string out = Printed([] {
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([t] {
        for (int i = 0; i < 200; ++i) Log(Level::kInfo, "e", {{"t", t}, {"i", i}});
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
  size_t lines = 0;
  for (size_t at = 0; at < out.size(); ++lines) {
    const size_t end = out.find('\n', at);
    ASSERT_NE(end, std::string::npos);
    ASSERT_THAT(out.substr(at, end - at),
                MatchesRegex(std::string(kTime) + "info e t=[0-9]+ i=[0-9]+"));
    at = end + 1;
  }
  EXPECT_EQ(lines, 800u);
}

}  // namespace
}  // namespace trivium::telemetry

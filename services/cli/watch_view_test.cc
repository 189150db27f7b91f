#include "services/cli/watch_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace trivium::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

v1::ClusterStatusResponse Status(uint64_t decode_steps, uint64_t epoch,
                                 uint64_t output_tokens = 0) {
  v1::ClusterStatusResponse status;
  status.set_router_version("0.1.0");
  status.set_requests_running(3);
  status.set_requests_waiting(2);
  status.set_output_tokens(output_tokens);
  for (const char* role : {"decode", "prefill"}) {
    v1::WorkerStatus* worker = status.add_workers();
    worker->set_id(std::string(role) + "-0");
    worker->set_address(role);
    worker->set_role(role);
    worker->set_state("ready");
    worker->set_blocks_total(100);
    worker->set_blocks_used(30);
    worker->set_blocks_leased(10);
    worker->set_requests_running(3);
    worker->set_epoch(epoch);
    worker->set_steps(decode_steps);
  }
  return status;
}

TEST(BarTest, Table) {
  EXPECT_EQ(Bar(0, 100, 4), "[....]   0 %");
  EXPECT_EQ(Bar(50, 100, 4), "[##..]  50 %");
  EXPECT_EQ(Bar(100, 100, 4), "[####] 100 %");
  EXPECT_EQ(Bar(1, 0, 4), "[....]   0 %");      // a worker that has not been heard of
  EXPECT_EQ(Bar(300, 100, 4), "[####] 100 %");  // what a broken router says
}

TEST(CutToWidthTest, CountsCharactersAndKeepsThemWhole) {
  EXPECT_EQ(CutToWidth("abc", 2), "ab");
  EXPECT_EQ(CutToWidth("abc", 9), "abc");
  EXPECT_EQ(CutToWidth("ä…x", 2), "ä…");
  EXPECT_EQ(CutToWidth("abc", 0), "");
}

TEST(WatchViewTest, StagesInTheOrderOfARequest) {
  WatchView view;
  view.Update(Status(5, 1), WatchView::TimePoint());
  const auto lines = view.Lines(200);
  ASSERT_EQ(lines.size(), 7u);
  EXPECT_EQ(lines[0], "router 0.1.0: 3 running, 2 in the queue, - tokens/s");
  EXPECT_EQ(lines[3], "prefill");
  EXPECT_THAT(lines[4], HasSubstr("prefill-0"));
  EXPECT_THAT(lines[4], HasSubstr("[########............]  40 %"));
  EXPECT_EQ(lines[5], "decode");
}

TEST(WatchViewTest, RatesNeedTwoSnapshotsOfOneLife) {
  const WatchView::TimePoint start;
  WatchView view;
  view.Update(Status(100, 1, 1000), start);
  view.Update(Status(150, 1, 1101), start + std::chrono::seconds(2));
  EXPECT_THAT(view.Summary(), HasSubstr(", 50.5 tokens/s"));
  EXPECT_THAT(view.Lines(200)[6], HasSubstr(" 25.0"));
  view.Update(Status(10, 2, 1101), start + std::chrono::seconds(4));  // the worker is a new one
  EXPECT_THAT(view.Summary(), HasSubstr(", 0.0 tokens/s"));
  EXPECT_THAT(view.Lines(200)[6], HasSubstr(" -"));
  view.Update(Status(10, 2, 7), start + std::chrono::seconds(5));  // and now the router
  EXPECT_THAT(view.Summary(), HasSubstr(", - tokens/s"));
}

TEST(WatchViewTest, EveryWidthAndHostileNames) {
  v1::ClusterStatusResponse status = Status(1, 1);
  status.mutable_workers(0)->set_id("\x1b[2J\n");
  status.mutable_workers(0)->set_detail(std::string(10000, 'x'));
  WatchView view;
  view.Update(status, WatchView::TimePoint());
  for (size_t columns = 0; columns < 150; ++columns) {
    for (const std::string& line : view.Lines(columns)) {
      EXPECT_LE(line.size(), columns);
      EXPECT_EQ(line.find_first_of("\x1b\n"), std::string::npos);
    }
  }
  EXPECT_THAT(view.Summary(), Not(HasSubstr("\x1b")));
}

// A terminal of as much as Redraw uses: home, erase to the end of line or screen, line break.
TEST(RedrawTest, LeavesNothingOfTheFrameBefore) {
  std::vector<std::string> screen(5);
  size_t row = 0, column = 0;
  const auto feed = [&](std::string text) {
    for (size_t i = 0; i < text.size(); ++i) {
      if (text.compare(i, 3, "\x1b[H") == 0) {
        row = column = 0, i += 2;
      } else if (text.compare(i, 3, "\x1b[K") == 0) {
        screen.at(row).resize(column), i += 2;
      } else if (text.compare(i, 3, "\x1b[J") == 0) {
        screen.at(row).resize(column), i += 2;
        for (size_t below = row + 1; below < screen.size(); ++below) screen[below].clear();
      } else if (text[i] == '\r') {
        column = 0;
      } else if (text[i] == '\n') {
        ASSERT_LT(++row, screen.size()) << "would scroll";
      } else {
        screen.at(row).resize(std::max(screen.at(row).size(), column + 1), ' ');
        screen[row][column++] = text[i];
      }
    }
  };
  feed(Redraw({"one long line", "two", "three", "four", "five"}));
  EXPECT_EQ(screen, (std::vector<std::string>{"one long line", "two", "three", "four", "five"}));
  feed(Redraw({"one", "2"}));
  EXPECT_EQ(screen, (std::vector<std::string>{"one", "2", "", "", ""}));
}

}  // namespace
}  // namespace trivium::cli

#include "common/telemetry/metrics.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <thread>

#include "common/telemetry/process_metrics.h"

namespace trivium::telemetry {
namespace {

using testing::HasSubstr;
using testing::Not;

std::string HttpGet(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string out;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request = "GET " + path + " HTTP/1.0\r\n\r\n";
    EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
    char buffer[4096];
    for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) out.append(buffer, n);
  }
  close(fd);
  return out;
}

TEST(MetricsTest, TextOfEveryType) {
  Metrics metrics;
  Counter& requests = metrics.AddCounter("requests_total", "Requests.", {{"code", "ok"}});
  requests.Add();
  requests.Add(2.5);
  metrics.AddCounter("requests_total", "Requests.", {{"code", "internal"}}).Add();
  metrics.AddGauge("blocks_free", "Free blocks.").Set(-7);
  Histogram& steps = metrics.AddHistogram("step_seconds", "Steps.", {0.1, 1});
  for (const double seconds : {0.05, 0.5, 0.5, 5.0}) steps.Observe(seconds);
  const std::string text = metrics.Text();
  for (const char* line :
       {"# HELP trivium_requests_total Requests.\n", "# TYPE trivium_requests_total counter\n",
        "trivium_requests_total{code=\"ok\"} 3.5\n",
        "trivium_requests_total{code=\"internal\"} 1\n", "# TYPE trivium_blocks_free gauge\n",
        "trivium_blocks_free -7\n", "# TYPE trivium_step_seconds histogram\n",
        "trivium_step_seconds_count 4\n", "trivium_step_seconds_sum 6.05\n",
        "trivium_step_seconds_bucket{le=\"0.1\"} 1\n", "trivium_step_seconds_bucket{le=\"1\"} 3\n",
        "trivium_step_seconds_bucket{le=\"+Inf\"} 4\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST(MetricsTest, SameNameAndLabelsAreOneMetric) {
  Metrics metrics;
  Counter& a = metrics.AddCounter("c_total", "C.", {{"x", "1"}});
  Counter& b = metrics.AddCounter("c_total", "C.", {{"x", "1"}});
  Counter& c = metrics.AddCounter("c_total", "C.", {{"x", "2"}});
  EXPECT_EQ(&a, &b);
  EXPECT_NE(&a, &c);
}

TEST(MetricsTest, LabelValuesAreEscaped) {
  Metrics metrics;
  metrics.AddGauge("g", "G.", {{"x", "a\"b\\c\nd"}}).Set(1);
  EXPECT_THAT(metrics.Text(), HasSubstr("trivium_g{x=\"a\\\"b\\\\c\\nd\"} 1\n"));
}

TEST(MetricsDeathTest, NamesOfOursThatAreWrongEndTheProcess) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  Metrics metrics;
  metrics.AddCounter("taken", "A counter.");
  EXPECT_DEATH(metrics.AddGauge("taken", "A gauge."), "metric can be registered.*taken");
  EXPECT_DEATH(metrics.AddCounter("not a name", "C."), "metric can be registered.*not a name");
}

TEST(MetricsTest, ServesWhatTextSays) {
  Metrics metrics;
  int scrapes = 0;
  Gauge& gauge = metrics.AddGauge("scrapes", "Scrapes.");
  metrics.OnScrape([&] { gauge.Set(++scrapes); });
  EXPECT_EQ(metrics.port(), 0);
  ASSERT_TRUE(metrics.Serve("127.0.0.1:0").ok());
  ASSERT_GT(metrics.port(), 0);
  EXPECT_THAT(HttpGet(metrics.port(), "/metrics"), HasSubstr("trivium_scrapes 1\n"));
  EXPECT_THAT(HttpGet(metrics.port(), "/metrics"), HasSubstr("trivium_scrapes 2\n"));
  EXPECT_THAT(HttpGet(metrics.port(), "/"), HasSubstr("404"));
  const int port = metrics.port();
  metrics.StopServing();
  EXPECT_EQ(HttpGet(port, "/metrics"), "");
  EXPECT_EQ(metrics.port(), 0);
  EXPECT_THAT(metrics.Text(), HasSubstr("trivium_scrapes 3\n"));
}

TEST(MetricsTest, TakenPortAndBadAddressAreErrors) {
  Metrics first, second;
  ASSERT_TRUE(first.Serve("localhost:0").ok());
  const std::string taken = fmt::format("127.0.0.1:{}", first.port());
  const absl::Status status = second.Serve(taken);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(status), HasSubstr(taken));
  EXPECT_EQ(second.Serve("").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(second.Serve("127.0.0.1:1,127.0.0.1:2").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(second.Serve("unix:/tmp/x").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(HttpGet(first.port(), "/metrics"), HasSubstr("200 OK"));
}

TEST(MetricsTest, ThreadsCountEverything) {
  Metrics metrics;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) {
        metrics.AddCounter("n_total", "N.", {{"k", std::to_string(i % 3)}}).Add();
      }
    });
  }
  for (int i = 0; i < 20; ++i) metrics.Text();
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(metrics.Text(), HasSubstr("trivium_n_total{k=\"0\"} 1336\n"));
  EXPECT_THAT(metrics.Text(), HasSubstr("trivium_n_total{k=\"1\"} 1332\n"));
  EXPECT_EQ(metrics.AddCounter("n_total", "N.", {{"k", "1"}}).Value(), 1332);
}

TEST(MetricsTest, LatencyBucketsRiseFromTenthMillisecondToHundredSeconds) {
  const std::vector<double> buckets = Metrics::LatencyBuckets();
  EXPECT_TRUE(std::is_sorted(buckets.begin(), buckets.end()));
  EXPECT_DOUBLE_EQ(buckets.front(), 1e-4);
  EXPECT_DOUBLE_EQ(buckets.back(), 100);
}

double ValueOf(const std::string& text, const std::string& name) {
  const size_t at = text.find("\n" + name + " ");
  EXPECT_NE(at, std::string::npos) << name;
  return at == std::string::npos ? -1 : std::stod(text.substr(at + name.size() + 2));
}

TEST(MetricsTest, AProcessShowsWhatItIsAndUses) {
  Metrics metrics;
  AddProcessMetrics(&metrics, "decode", "1.2.3");
  const std::string before = metrics.Text();
  EXPECT_EQ(ValueOf(before, "trivium_build_info{role=\"decode\",version=\"1.2.3\"}"), 1);
  EXPECT_NEAR(ValueOf(before, "trivium_process_start_time_seconds"),
              static_cast<double>(time(nullptr)), 100);
  // Until the kernel has counted 50 ms more.
  const std::vector<char> pages(size_t{64} << 20, 1);
  const std::clock_t start = std::clock();
  while (std::clock() - start < CLOCKS_PER_SEC / 20) {
  }
  const std::string after = metrics.Text();
  for (const auto& [name, more] : {std::pair("trivium_process_cpu_seconds_total", 0.04),
                                   std::pair("trivium_process_resident_bytes", 60e6)}) {
    EXPECT_GE(ValueOf(after, name) - ValueOf(before, name), more) << name;
  }
  EXPECT_EQ(pages.back(), 1);
}

}  // namespace
}  // namespace trivium::telemetry

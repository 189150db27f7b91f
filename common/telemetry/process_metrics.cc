#include "common/telemetry/process_metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <memory>

namespace trivium::telemetry {
namespace {

double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double ResidentBytes() {
  int64_t total = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE));
}

}  // namespace

void AddProcessMetrics(Metrics* metrics, std::string_view role, std::string_view version) {
  metrics
      ->AddGauge("build_info", "1; role and version of this process",
                 {{"role", std::string(role)}, {"version", std::string(version)}})
      .Set(1);
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  metrics->AddGauge("process_start_time_seconds", "Start of this process, Unix time")
      .Set(std::chrono::duration<double>(now).count());
  Counter& cpu = metrics->AddCounter("process_cpu_seconds_total", "Processor time used");
  Gauge& resident = metrics->AddGauge("process_resident_bytes", "Resident memory");
  // Refreshed by one scrape at a time.
  metrics->OnScrape([&cpu, &resident, seen = std::make_shared<double>(0)] {
    const double used = CpuSeconds();
    cpu.Add(std::max(0.0, used - *seen));
    *seen = used;
    resident.Set(ResidentBytes());
  });
}

}  // namespace trivium::telemetry

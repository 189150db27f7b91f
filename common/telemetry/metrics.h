// Prometheus metrics of one process, prefix `trivium_`, base units. Handles are cheap, live as long
// as the registry, and may be used from any thread. Labels must come from a bounded set.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/base/status.h"

namespace trivium::telemetry {

using Labels = std::map<std::string, std::string>;

class Counter {
 public:
  virtual ~Counter() = default;
  virtual void Add(double amount = 1) = 0;
  virtual double Value() const = 0;
};
class Gauge {
 public:
  virtual ~Gauge() = default;
  virtual void Set(double value) = 0;
};
class Histogram {
 public:
  virtual ~Histogram() = default;
  virtual void Observe(double value) = 0;
};

class Metrics {
 public:
  Metrics();
  ~Metrics();

  // The same name and labels give the same handle. Names: "requests_total", "step_seconds"; no
  // prefix. A name that is malformed or belongs to another type ends the process: names are never
  // input.
  Counter& AddCounter(const std::string& name, const std::string& help, const Labels& labels = {});
  Gauge& AddGauge(const std::string& name, const std::string& help, const Labels& labels = {});
  Histogram& AddHistogram(const std::string& name, const std::string& help,
                          const std::vector<double>& buckets, const Labels& labels = {});
  // Called at every scrape before the values are read, on the scraper's thread.
  void OnScrape(std::function<void()> refresh);

  // Serves GET /metrics; UNAVAILABLE naming the address when the port is taken.
  absl::Status Serve(const std::string& listen);
  // No scrape over the network is under way any more, and none comes: what OnScrape's functions
  // read may go.
  void StopServing();
  int port() const;  // of Serve, also where it was asked for port 0; 0 when nothing is served
  std::string Text() const;  // the exposition format

  static std::vector<double> LatencyBuckets();  // 0.1 ms … 100 s

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace trivium::telemetry

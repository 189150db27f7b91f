#include "common/telemetry/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <mutex>
#include <utility>

#include "common/net/address.h"
#include "common/net/text.h"

namespace trivium::telemetry {
namespace {

constexpr char kPrefix[] = "trivium_";

class CounterHandle final : public Counter {
 public:
  explicit CounterHandle(prometheus::Counter& counter) : counter_(counter) {}
  void Add(double amount) override { counter_.Increment(amount); }
  double Value() const override { return counter_.Value(); }

 private:
  prometheus::Counter& counter_;
};

class GaugeHandle final : public Gauge {
 public:
  explicit GaugeHandle(prometheus::Gauge& gauge) : gauge_(gauge) {}
  void Set(double value) override { gauge_.Set(value); }

 private:
  prometheus::Gauge& gauge_;
};

class HistogramHandle final : public Histogram {
 public:
  explicit HistogramHandle(prometheus::Histogram& histogram) : histogram_(histogram) {}
  void Observe(double value) override { histogram_.Observe(value); }

 private:
  prometheus::Histogram& histogram_;
};

// The registry behind the refresh functions, as the HTTP server sees it.
class Page final : public prometheus::Collectable {
 public:
  prometheus::Registry registry;

  void OnScrape(std::function<void()> refresh) {
    const std::lock_guard lock(mutex_);
    refresh_.push_back(std::move(refresh));
  }
  std::vector<prometheus::MetricFamily> Collect() const override {
    {
      const std::lock_guard lock(mutex_);
      for (const auto& refresh : refresh_) refresh();
    }
    return registry.Collect();
  }

 private:
  mutable std::mutex mutex_;  // held while refreshing: two scrapers never run one function at once
  std::vector<std::function<void()>> refresh_;
};

// prometheus-cpp throws where a name is malformed or belongs to another type: mistakes of ours.
template <typename Call>
auto& OrDie(const std::string& name, const Call& call) {
  try {
    return call();
  } catch (const std::exception& error) {
    Die(__FILE__, __LINE__, "metric can be registered", name + ": " + error.what());
  }
}

}  // namespace

struct Metrics::Impl {
  template <typename T>
  using Handles = std::map<std::pair<std::string, Labels>, std::unique_ptr<T>>;

  // The handle of `name` and `labels`; `make` registers it the first time.
  template <typename T, typename Make>
  T& FindOrMake(Handles<T>* handles, const std::string& name, const Labels& labels,
                const Make& make) {
    const std::lock_guard lock(mutex);
    std::unique_ptr<T>& handle = (*handles)[{name, labels}];
    if (handle == nullptr) handle = make();
    return *handle;
  }

  std::shared_ptr<Page> page = std::make_shared<Page>();
  std::mutex mutex;
  Handles<Counter> counters;
  Handles<Gauge> gauges;
  Handles<Histogram> histograms;
  std::unique_ptr<prometheus::Exposer> exposer;  // last: stops serving before the rest goes
};

Metrics::Metrics() : impl_(std::make_unique<Impl>()) {}
Metrics::~Metrics() = default;

Counter& Metrics::AddCounter(const std::string& name, const std::string& help,
                             const Labels& labels) {
  return impl_->FindOrMake(&impl_->counters, name, labels, [&] {
    return std::make_unique<CounterHandle>(OrDie(name, [&]() -> prometheus::Counter& {
      auto& registry = impl_->page->registry;
      return prometheus::BuildCounter()
          .Name(kPrefix + name)
          .Help(help)
          .Register(registry)
          .Add(labels);
    }));
  });
}

Gauge& Metrics::AddGauge(const std::string& name, const std::string& help, const Labels& labels) {
  return impl_->FindOrMake(&impl_->gauges, name, labels, [&] {
    return std::make_unique<GaugeHandle>(OrDie(name, [&]() -> prometheus::Gauge& {
      auto& registry = impl_->page->registry;
      return prometheus::BuildGauge()
          .Name(kPrefix + name)
          .Help(help)
          .Register(registry)
          .Add(labels);
    }));
  });
}

Histogram& Metrics::AddHistogram(const std::string& name, const std::string& help,
                                 const std::vector<double>& buckets, const Labels& labels) {
  return impl_->FindOrMake(&impl_->histograms, name, labels, [&] {
    return std::make_unique<HistogramHandle>(OrDie(name, [&]() -> prometheus::Histogram& {
      auto& registry = impl_->page->registry;
      auto& family =
          prometheus::BuildHistogram().Name(kPrefix + name).Help(help).Register(registry);
      return family.Add(labels, buckets);
    }));
  });
}

void Metrics::OnScrape(std::function<void()> refresh) { impl_->page->OnScrape(std::move(refresh)); }

absl::Status Metrics::Serve(const std::string& listen) {
  ASSIGN_OR_RETURN(const net::Address address, net::ParseAddress(listen));
  if (address.is_unix) return InvalidArgument("metrics: {} must be host:port", listen);
  // The HTTP server resolves no names but takes numbers.
  const std::string host = address.host == "localhost" ? "127.0.0.1" : address.host;
  const bool v6 = host.find(':') != std::string::npos;
  try {
    impl_->exposer = std::make_unique<prometheus::Exposer>(
        fmt::format("{}:{}", v6 ? "[" + host + "]" : host, address.port));
  } catch (const std::exception& error) {
    return Unavailable("metrics: cannot listen on {}: address in use, or none of this machine",
                       net::Escape(listen, 300));
  }
  impl_->exposer->RegisterCollectable(impl_->page);
  return absl::OkStatus();
}

void Metrics::StopServing() { impl_->exposer.reset(); }

int Metrics::port() const {
  const std::vector<int> ports =
      impl_->exposer == nullptr ? std::vector<int>() : impl_->exposer->GetListeningPorts();
  return ports.empty() ? 0 : ports[0];
}

std::string Metrics::Text() const {
  return prometheus::TextSerializer().Serialize(impl_->page->Collect());
}

std::vector<double> Metrics::LatencyBuckets() {
  std::vector<double> buckets;
  for (const double decade : {1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0}) {
    for (const double step : {1.0, 2.0, 5.0}) buckets.push_back(decade * step);
  }
  buckets.push_back(100);
  return buckets;
}

}  // namespace trivium::telemetry

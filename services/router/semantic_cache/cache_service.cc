#include "services/router/semantic_cache/cache_service.h"

#include <future>
#include <utility>

#include "common/telemetry/log.h"

namespace trivium::router {
namespace {

constexpr char kRecordFormat[] = "1";
constexpr const char* kEvictReasons[] = {"expired", "quota", "replaced", "invalidated", "lost"};

int64_t UnixMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

GuardLevel LevelOf(const std::string& name) {
  if (name == "none") return GuardLevel::kNone;
  return name == "names" ? GuardLevel::kNames : GuardLevel::kStrict;
}

absl::StatusOr<std::unique_ptr<DocumentStore>> StoreOf(const v1::SemanticCacheConfig& config) {
  if (config.store() == "redis") return MakeRedisStore(config.redis_address(), "trivium:answers");
  return OpenSqliteStore(config.path().empty() ? ":memory:" : config.path());
}

std::vector<std::vector<float>> Vectors(embedding::EmbeddingQueue& encoder,
                                        const std::vector<std::string>& texts) {
  std::promise<std::vector<embedding::Embedding>> promise;
  const absl::Status taken = encoder.Encode(
      texts, [&](std::vector<embedding::Embedding> all) { promise.set_value(std::move(all)); });
  TRIVIUM_CHECK(taken.ok(), "examples: {}", Message(taken));
  std::vector<std::vector<float>> vectors;
  for (embedding::Embedding& one : promise.get_future().get()) {
    vectors.push_back(std::move(one.vector));
  }
  return vectors;
}

}  // namespace

std::vector<CategoryPolicy> PoliciesOf(const v1::SemanticCacheConfig& config) {
  std::vector<CategoryPolicy> policies;
  for (const v1::CacheCategoryConfig& category : config.categories()) {
    policies.push_back({.name = category.name(),
                        .is_enabled = !category.disabled(),
                        .threshold = static_cast<float>(category.threshold()),
                        .ttl_ms = static_cast<int64_t>(category.ttl_s() * 1000),
                        .quota = category.quota(),
                        .guards = LevelOf(category.guards()),
                        .relax = static_cast<float>(category.relax()),
                        .stretch = category.stretch(),
                        .examples = {category.examples().begin(), category.examples().end()}});
  }
  return policies;
}

// Counters follow what the cache counts, from scrape to scrape.
struct CacheService::Series {
  struct Followed {
    telemetry::Counter* counter;
    uint64_t before = 0;
    void Set(uint64_t now) {
      counter->Add(static_cast<double>(now - before));
      before = now;
    }
  };
  struct OfCategory {
    Followed hits, same_words, relaxed, misses, inserts;
    std::vector<Followed> guarded, evicted;
    telemetry::Gauge *entries, *bytes, *threshold, *ttl;
  };

  explicit Series(telemetry::Metrics* metrics,
                  const std::vector<SemanticCache::Counts>& categories) {
    for (const SemanticCache::Counts& c : categories) Add(metrics, c.category);
    for (size_t i = 1; i < size_t(Bypass::kCount); ++i) {
      bypassed.push_back({&metrics->AddCounter("router_cache_bypassed_total",
                                               "Requests that the semantic cache let pass",
                                               {{"reason", Name(static_cast<Bypass>(i))}})});
    }
    followed = {&metrics->AddCounter("router_cache_followed_total",
                                     "Requests answered with an equal one that was under way")};
    for (const SemanticCache::Counts& c : categories) {
      const telemetry::Labels labels{{"category", c.category}};
      suspended.push_back(&metrics->AddGauge(
          "router_cache_suspended", "1: looking up does not pay, but for a sample", labels));
      hit_rate.push_back(
          &metrics->AddGauge("router_cache_hit_rate", "Of look-ups, smoothed", labels));
      break_even.push_back(&metrics->AddGauge("router_cache_break_even_hit_rate",
                                              "At which look-ups pay, by measured times", labels));
      passed.push_back(
          {&metrics->AddCounter("router_cache_not_looked_up_total",
                                "Requests passed because looking up does not pay", labels)});
    }
    for (const char* why : {"queue_full", "store", "encoder_full"}) {
      dropped.push_back(
          {&metrics->AddCounter("router_cache_dropped_total",
                                "What the semantic cache could not do", {{"reason", why}})});
    }
  }

  void Add(telemetry::Metrics* m, const std::string& category) {
    const auto counter = [&](const char* name, const char* help, telemetry::Labels labels = {}) {
      labels.insert({"category", category});
      return Followed{&m->AddCounter(name, help, labels)};
    };
    const auto gauge = [&](const char* name, const char* help) {
      return &m->AddGauge(name, help, {{"category", category}});
    };
    OfCategory c;
    c.hits = counter("router_cache_hits_total", "Requests answered with an answer given before");
    c.same_words = counter("router_cache_same_words_total", "Of those, found by the same words");
    c.relaxed = counter("router_cache_relaxed_total", "Of those, found because of the load alone");
    c.misses = counter("router_cache_misses_total", "Requests for which no answer was found");
    c.inserts = counter("router_cache_inserts_total", "Answers taken in");
    for (size_t i = 1; i < size_t(GuardRefusal::kCount); ++i) {
      c.guarded.push_back(counter("router_cache_guarded_total",
                                  "Near questions whose words did not agree",
                                  {{"guard", Name(static_cast<GuardRefusal>(i))}}));
    }
    for (const char* reason : kEvictReasons) {
      c.evicted.push_back(
          counter("router_cache_evictions_total", "Answers dropped", {{"reason", reason}}));
    }
    c.entries = gauge("router_cache_entries", "Answers that may be found");
    c.bytes = gauge("router_cache_bytes", "Of answers and of what finds them");
    c.threshold = gauge("router_cache_threshold", "The least likeness that counts now");
    c.ttl = gauge("router_cache_ttl_seconds", "How old an answer may be now");
    of_category.push_back(std::move(c));
  }

  std::vector<OfCategory> of_category;
  std::vector<Followed> bypassed, dropped, passed;  // the last by category, as are the following
  std::vector<telemetry::Gauge*> suspended, hit_rate, break_even;
  Followed followed{};
};

CacheService::CacheService() = default;
CacheService::~CacheService() {
  encoder_ = nullptr;  // what it has taken still comes to the front
  front_ = nullptr;    // which still writes what it keeps
  if (graphs_.empty() || cache_ == nullptr) return;
  const absl::Status saved = cache_->SaveGraphs(graphs_);
  if (saved.ok()) return;
  telemetry::Log(telemetry::Level::kWarning, "cache_graphs_not_saved",
                 {{"error", Message(saved)}, {"next", "they are built anew"}});
}

absl::StatusOr<std::unique_ptr<CacheService>> CacheService::Create(
    const v1::SemanticCacheConfig& config, const std::string& model, CacheFront::Submit submit,
    std::function<double()> waiting, telemetry::Metrics* metrics) {
  std::unique_ptr<CacheService> service(new CacheService());
  ASSIGN_OR_RETURN(service->store_, StoreOf(config));
  ASSIGN_OR_RETURN(service->encoder_,
                   embedding::EmbeddingQueue::Create(
                       {.folder = config.encoder(),
                        .ops = {.isa = kernels::BestIsa(), .threads = config.encoder_threads()}}));
  SemanticCache::Options options;
  options.categories = PoliciesOf(config);
  options.dim = service->encoder_->dim();
  options.entries_max = static_cast<size_t>(config.entries_max());
  options.bytes_max = config.bytes_max();
  options.epoch = fmt::format("{}/{}/{}", kRecordFormat, model, service->encoder_->fingerprint());
  options.unix_ms = UnixMs;
  CacheFront::Options front;
  front.rules.temperature_max = static_cast<float>(config.temperature_max());
  front.epoch = options.epoch;
  front.queue = std::move(waiting);
  front.load = {config.load().ttft_low_s(), config.load().ttft_high_s(), config.load().queue_low(),
                config.load().queue_high()};
  std::vector<std::vector<std::vector<float>>> examples;
  for (const CategoryPolicy& policy : options.categories) {
    examples.push_back(Vectors(*service->encoder_, policy.examples));
  }
  service->categories_ = std::make_unique<Categories>(options.categories, std::move(examples));
  service->cache_ = std::make_unique<SemanticCache>(std::move(options), service->store_.get());
  for (absl::StatusOr<bool> more = true; more.ok() && *more;) more = service->cache_->Follow();
  if (config.store() != "redis" && !config.path().empty()) {
    service->graphs_ = config.path() + ".graphs";
    const SemanticCache::LoadedGraphs loaded = service->cache_->LoadGraphs(service->graphs_);
    telemetry::Log(loaded.damaged > 0 ? telemetry::Level::kWarning : telemetry::Level::kInfo,
                   "cache_graphs_loaded",
                   {{"entries", loaded.entries}, {"damaged", loaded.damaged}});
  }
  service->front_ =
      std::make_unique<CacheFront>(std::move(front), std::move(submit), service->cache_.get(),
                                   service->encoder_.get(), service->categories_.get());
  service->series_ = std::make_unique<Series>(metrics, service->cache_->counts());
  metrics->OnScrape([service = service.get()] { service->Export(); });
  return service;
}

absl::Status CacheService::Reload(const v1::SemanticCacheConfig& config) {
  if (!config.enabled()) {
    return FailedPrecondition("semantic_cache.enabled: needs a restart; disable its categories");
  }
  const std::vector<CategoryPolicy> policies = PoliciesOf(config);
  bool is_same = policies.size() == cache_->categories();
  for (size_t i = 0; is_same && i < policies.size(); ++i) {
    const CategoryPolicy now = cache_->policy(i);
    is_same = policies[i].name == now.name && policies[i].examples == now.examples;
  }
  if (!is_same) {
    return FailedPrecondition(
        "semantic_cache.categories: other categories or examples need a restart");
  }
  cache_->SetPolicies(policies);
  return absl::OkStatus();
}

void CacheService::Export() {
  const std::vector<SemanticCache::Counts> counts = cache_->counts();
  for (size_t i = 0; i < counts.size(); ++i) {
    Series::OfCategory& c = series_->of_category[i];
    c.hits.Set(counts[i].hits);
    c.same_words.Set(counts[i].exact_hits);
    c.relaxed.Set(counts[i].relaxed_hits);
    c.misses.Set(counts[i].misses);
    c.inserts.Set(counts[i].inserts);
    for (size_t j = 0; j < c.guarded.size(); ++j) c.guarded[j].Set(counts[i].guarded[j + 1]);
    for (size_t j = 0; j < c.evicted.size(); ++j) c.evicted[j].Set(counts[i].evicted[j]);
    c.entries->Set(static_cast<double>(counts[i].entries));
    c.bytes->Set(static_cast<double>(counts[i].bytes));
    c.threshold->Set(counts[i].threshold);
    c.ttl->Set(static_cast<double>(counts[i].ttl_ms) / 1000);
    const BreakEven::State state = front_->break_even(i);
    series_->suspended[i]->Set(state.is_suspended ? 1 : 0);
    series_->hit_rate[i]->Set(state.hit_rate);
    series_->break_even[i]->Set(state.break_even);
    series_->passed[i].Set(state.passed);
  }
  const CacheFront::Counts front = front_->counts();
  for (size_t i = 0; i < series_->bypassed.size(); ++i) {
    series_->bypassed[i].Set(front.bypassed[i + 1]);
  }
  series_->followed.Set(front.followed);
  series_->dropped[0].Set(front.inserts_dropped);
  series_->dropped[1].Set(front.inserts_failed);
  series_->dropped[2].Set(encoder_->refused());
}

}  // namespace trivium::router

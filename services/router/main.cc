// trivium-router: the cluster's public door. Reads its configuration, loads the model for
// tokenizer, template and fingerprint (no weight is read), and wires membership, dispatch and API
// together.
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/config/config.h"
#include "common/config/flags.h"
#include "common/model/model.h"
#include "common/net/server.h"
#include "common/telemetry/log.h"
#include "common/telemetry/metrics.h"
#include "common/telemetry/process_metrics.h"
#include "services/router/api/inference_service.h"
#include "services/router/api/openai/handler.h"
#include "services/router/dispatch/grpc_clients.h"
#include "services/router/http/server.h"
#include "services/router/membership/watch_client.h"
#include "services/router/semantic_cache/cache_service.h"
#include "services/router/tenancy/domains.h"
#include "services/router/tenancy/tenants.h"

namespace trivium::router {
namespace {

constexpr int kTokenizerThreads = 2;
constexpr size_t kTokenizerTasks = 4096;
// After the last client has its answer: streams to workers end within the runs' linger.
constexpr Duration kCloseTimeout = std::chrono::seconds(10);

Duration Seconds(double seconds) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

// Calls a function every Dispatcher::kTickInterval on a thread of its own.
class Ticker {
 public:
  explicit Ticker(std::function<void()> tick)
      : thread_([this, tick = std::move(tick)] {
          std::unique_lock lock(mutex_);
          while (!wake_.wait_for(lock, Dispatcher::kTickInterval, [&] { return is_stopping_; })) {
            lock.unlock();
            tick();
            lock.lock();
          }
        }) {}
  ~Ticker() {
    {
      std::lock_guard lock(mutex_);
      is_stopping_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  bool is_stopping_ = false;
  std::thread thread_;
};

WorkerTable::Options TableOptions(const v1::RouterConfig& config, const std::string& fingerprint,
                                  const std::string& tower) {
  WorkerTable::Options options;
  for (const v1::WorkerEndpoint& worker : config.workers()) {
    options.workers.push_back({worker.address(), worker.role() == "prefill"  ? Role::kPrefill
                                                 : worker.role() == "decode" ? Role::kDecode
                                                                             : Role::kEncode});
  }
  options.fingerprint = fingerprint;
  options.tower = tower;
  options.suspect_after = Seconds(config.worker_suspect_s());
  return options;
}

// Everything of one router process, made in order of need and ended in the reverse.
struct Router {
  Router(const v1::RouterConfig& config, const RequestValidator& validator, const Domains& domains,
         const std::string& cluster_token, const std::string& tower)
      : tenants(config.tenancy()),
        metrics(&registry, tenants.ids()),
        channels(MakeChannels(config)),
        stages(channels, cluster_token),
        dispatcher({.table = TableOptions(config, validator.model().fingerprint, tower),
                    .queue = {.requests_max = config.queue_requests(),
                              .timeout = Seconds(config.queue_timeout_s()),
                              .stage_missing_timeout = Seconds(config.stage_missing_timeout_s())},
                    .kv_bytes_per_token = validator.model().config.KvBytesPerToken(),
                    .policy = PolicyNamed(config.placement()),
                    .run = {.tokenizer = validator.model().tokenizer.get(),
                            .vocab = validator.model().config.vocab,
                            .fingerprint = validator.model().fingerprint,
                            .tower = tower,
                            .stages = &stages,
                            .host = nullptr,
                            .metrics = &metrics,
                            .attempts_max = config.attempts_max(),
                            .encode_patience = Seconds(config.stage_missing_timeout_s())}}),
        watches(channels, cluster_token,
                {[this](WorkerIndex i, const v1::WorkerState& s) {
                   return dispatcher.OnWorkerState(i, s);
                 },
                 [this](WorkerIndex i, const absl::Status& s) { dispatcher.OnWatchEnd(i, s); }}),
        ticker([this] {
          watches.Tick(Clock::Real().Now());
          dispatcher.Tick();
        }),
        cache(MakeCache(config.semantic_cache(), validator.model().fingerprint)),
        backend{&validator,
                &tenants,
                &domains,
                &dispatcher,
                &tasks,
                &metrics,
                cache.ok() ? cache->get() : nullptr},
        service(backend, std::string(config::Version())),
        openai(backend, &registry),
        tasks(kTokenizerThreads, kTokenizerTasks) {
    telemetry::AddProcessMetrics(&registry, "router", config::Version());
    registry.OnScrape([this] {
      const Dispatcher::Counts counts = dispatcher.counts();
      metrics.Cluster(counts.waiting, counts.running, dispatcher.Workers());
      metrics.Index(dispatcher.IndexCounts());
    });
  }

  // A scrape asks the dispatcher: no more of them before it goes.
  ~Router() { registry.StopServing(); }

  // Null: none is configured.
  absl::StatusOr<std::unique_ptr<CacheService>> MakeCache(const v1::SemanticCacheConfig& config,
                                                          const std::string& model) {
    if (!config.enabled()) return nullptr;
    return CacheService::Create(
        config, model,
        [this](RunRequest run, std::shared_ptr<ResponseSink> sink) {
          return dispatcher.Submit(std::move(run), std::move(sink));
        },
        [this] { return static_cast<double>(dispatcher.counts().waiting); }, &registry);
  }

  static std::vector<std::shared_ptr<grpc::Channel>> MakeChannels(const v1::RouterConfig& config) {
    std::vector<std::shared_ptr<grpc::Channel>> channels;
    for (const v1::WorkerEndpoint& worker : config.workers()) {
      channels.push_back(net::MakeChannel(worker.address()));
    }
    return channels;
  }

  const Tenants tenants;
  telemetry::Metrics registry;
  RouterMetrics metrics;
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  GrpcStageClients stages;
  Dispatcher dispatcher;
  WatchClients watches;
  Ticker ticker;
  const absl::StatusOr<std::unique_ptr<CacheService>> cache;
  const Backend backend;
  InferenceService service;
  openai::OpenAiHandler openai;
  TaskPool tasks;  // the first to go: it finishes what it has taken, with all of the above
};

http::Limits LimitsOf(const v1::HttpConfig& config) {
  return {.connections_max = config.connections_max(),
          .header_bytes_max = static_cast<size_t>(config.header_bytes_max()),
          .body_bytes_max = static_cast<size_t>(config.body_bytes_max()),
          .body_memory_bytes = static_cast<size_t>(config.body_memory_bytes()),
          .header_timeout = Seconds(config.header_timeout_s()),
          .body_timeout = Seconds(config.body_timeout_s()),
          .idle_timeout = Seconds(config.idle_timeout_s()),
          .write_timeout = Seconds(config.write_timeout_s())};
}

// Null: none is configured.
absl::StatusOr<std::unique_ptr<http::Server>> StartHttp(const v1::HttpConfig& config,
                                                        bool loopback_only, Router* router) {
  if (config.listen().empty()) return nullptr;
  return http::Server::Start(
      {.listen = config.listen(), .loopback_only = loopback_only, .limits = LimitsOf(config)},
      &router->openai, &router->registry);
}

// What may change while the router runs: the semantic cache's policies. `parse` reads the
// configuration anew, and has told on stderr what is wrong where it returns none.
using ParseConfig = std::function<std::optional<v1::RouterConfig>()>;
void Reload(const ParseConfig& parse, CacheService* cache) {
  const std::optional<v1::RouterConfig> config = parse();
  if (!config.has_value()) {
    return telemetry::Log(telemetry::Level::kError, "reload_refused",
                          {{"error", "the configuration has an error; the old one stays"}});
  }
  if (cache == nullptr && !config->semantic_cache().enabled()) {
    return telemetry::Log(telemetry::Level::kInfo, "reloaded", {{"changed", "nothing"}});
  }
  const absl::Status status = cache == nullptr
                                  ? FailedPrecondition("semantic_cache.enabled: needs a restart")
                                  : cache->Reload(config->semantic_cache());
  if (!status.ok()) {
    return telemetry::Log(telemetry::Level::kError, "reload_refused", {{"error", Message(status)}});
  }
  telemetry::Log(telemetry::Level::kInfo, "reloaded", {{"changed", "semantic_cache.categories"}});
}

absl::Status Serve(const v1::RouterConfig& config, const ParseConfig& parse) {
  ASSIGN_OR_RETURN(const std::string token,
                   config::ReadClusterToken(config.server().cluster_token_file()));
  ASSIGN_OR_RETURN(std::shared_ptr<const model::Model> model,
                   model::Model::Load(config.model().path()));
  ASSIGN_OR_RETURN(const std::unique_ptr<const Pictures> pictures,
                   Pictures::Create(config.pictures(), *model));
  const RequestValidator validator(std::move(model), config.default_max_tokens(), pictures.get());
  const auto public_pictures = pictures == nullptr
                                   ? std::vector<std::pair<std::string, std::string>>()
                                   : pictures->public_digests();
  ASSIGN_OR_RETURN(const Domains domains, Domains::Create(
                                              config.tenancy(),
                                              [&](const v1::TokenizeRequest& request) {
                                                return validator.Tokenize(request);
                                              },
                                              public_pictures));
  Router router(config, validator, domains, token, pictures == nullptr ? "" : pictures->tower());
  RETURN_IF_ERROR(router.cache.status());
  if (!config.server().metrics_listen().empty()) {
    RETURN_IF_ERROR(router.registry.Serve(config.server().metrics_listen()));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<http::Server> http,
                   StartHttp(config.http(), token.empty(), &router));
  ASSIGN_OR_RETURN(std::unique_ptr<net::Server> server,
                   net::Server::Start({.listen = config.server().listen(),
                                       .services = {&router.service},
                                       .loopback_only = token.empty(),
                                       .drain_timeout_s = config.server().drain_timeout_s()}));
  telemetry::Log(telemetry::Level::kInfo, "serving",
                 {{"listen", config.server().listen()},
                  {"port", server->port()},
                  {"http_port", http == nullptr ? 0 : http->port()},
                  {"model", validator.model_id()},
                  {"tenants", config.tenancy().tenants_size()},
                  {"workers", config.workers_size()}});
  server->WaitForShutdown([&] { router.dispatcher.Drain(); }, http.get(),
                          [&] { Reload(parse, router.cache->get()); });
  router.dispatcher.AwaitClosed(kCloseTimeout);
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  net::BlockShutdownSignals(/*reloads=*/true);
  v1::RouterConfig config;
  if (const auto exit_code = config::ParseRouterCommandLine(argc, argv, &config)) {
    return *exit_code;
  }
  telemetry::InitLog("router", config.server().log_level());
  const absl::Status status = Serve(config, [&]() -> std::optional<v1::RouterConfig> {
    v1::RouterConfig anew;
    if (config::ParseRouterCommandLine(argc, argv, &anew)) return std::nullopt;
    return anew;
  });
  if (status.ok()) return 0;
  std::fprintf(stderr, "trivium-router: %s\n", Message(status).c_str());
  return 1;
}

}  // namespace
}  // namespace trivium::router

int main(int argc, char** argv) { return trivium::router::Main(argc, argv); }

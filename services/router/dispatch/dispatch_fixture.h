// Test support: the real dispatcher over simulated workers, with the tokenizer of a tiny model and
// a clock that stands still. Thread-safety: as its parts.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/model/model.h"
#include "common/model/testing/tiny_model.h"
#include "common/telemetry/log.h"
#include "services/router/dispatch/dispatcher.h"
#include "services/router/dispatch/random.h"
#include "services/router/dispatch/recording_sink.h"
#include "services/router/dispatch/router_metrics.h"
#include "services/router/dispatch/sim_cluster.h"
#include "services/router/dispatch/text_assembler.h"

namespace trivium::router {

inline std::shared_ptr<const model::Model> TinyModel() {
  static const auto model = [] {
    telemetry::InitLog("test", "error");
    const std::string path = testing::TempDir() + "/router_tiny_" + DrawRequestId() + ".gguf";
    TRIVIUM_CHECK(model::WriteTinyModel(path).ok(), "cannot write {}", path);
    auto loaded = model::Model::Load(path);
    std::remove(path.c_str());
    TRIVIUM_CHECK(loaded.ok(), "{}", Message(loaded.status()));
    return *loaded;
  }();
  return model;
}

struct DispatchSettings {
  SimOptions sim{};
  int attempts_max = 8;
  AdmissionQueue::Options queue{};
  std::vector<TenantId> tenants{};
  Policy policy = Policy::kPredictedCost;
};

struct DispatchFixture {
  explicit DispatchFixture(const DispatchSettings& settings = {})
      : options(settings.sim),
        metrics(&registry, settings.tenants),
        cluster(settings.sim),
        dispatcher(MakeOptions(settings)) {
    cluster.Attach(&dispatcher);
    clock.Advance(std::chrono::seconds(1));
    dispatcher.Tick();
    ReportAll();
  }

  // Answered requests linger until their streams have ended, or for two seconds.
  ~DispatchFixture() { Pass(std::chrono::seconds(3)); }

  Dispatcher::Options MakeOptions(const DispatchSettings& settings) {
    Dispatcher::Options all;
    all.table.workers = cluster.addresses();
    all.table.fingerprint = SimCluster::kFingerprint;
    all.queue = settings.queue;
    all.kv_bytes_per_token = 1 << 16;
    all.policy = settings.policy;
    all.run.tokenizer = TinyModel()->tokenizer.get();
    all.run.vocab = settings.sim.vocab;
    all.run.fingerprint = SimCluster::kFingerprint;
    all.run.stages = &cluster;
    all.run.metrics = &metrics;
    all.run.clock = &clock;
    all.run.attempts_max = settings.attempts_max;
    return all;
  }

  void ReportAll() {
    for (int i = 0; i < cluster.worker_count(); ++i) cluster.Report(i);
  }
  // A moment passes: live workers report, timers run.
  void Pass(Duration time) {
    for (Duration done{0}; done < time; done += Dispatcher::kTickInterval) {
      clock.Advance(Dispatcher::kTickInterval);
      ReportAll();
      dispatcher.Tick();
    }
  }

  static RunRequest Request(std::vector<int32_t> ids, int32_t max_tokens) {
    RunRequest request;
    request.id = DrawRequestId();
    request.prompt_ids = std::move(ids);
    request.sampling.set_max_tokens(max_tokens);
    request.sampling.set_top_p(1);
    request.sampling.set_typical_p(1);
    request.sampling.set_repetition_penalty(1);
    request.sampling.set_prompt_logprobs(-1);
    request.sampling.set_seed(DrawSeed());
    request.sampling.set_logprobs(-1);
    return request;
  }
  // What the client has to get: ids up to the first stop string, text, finish reason.
  struct Wanted {
    std::vector<int32_t> ids;
    std::string text, finish_reason;
  };
  Wanted Want(const RunRequest& request, int32_t choice = 0) const {
    v1::StageSampling sampling = request.sampling;
    sampling.set_seed(sampling.seed() + static_cast<uint64_t>(choice));
    const SimAnswer answer = ExpectedAnswer(options, request.prompt_ids, sampling);
    TextAssembler assembler(*TinyModel()->tokenizer, request.prompt_ids.back(), request.stop);
    Wanted wanted{.ids = {}, .text = "", .finish_reason = answer.finish_reason};
    for (const int32_t id : answer.ids) {
      wanted.ids.push_back(id);
      const bool is_last = wanted.ids.size() == answer.ids.size();
      if (!is_last || answer.finish_reason != "stop") wanted.text += assembler.Add(id);
      if (is_last) wanted.text += assembler.Flush();
      if (!assembler.is_stopped()) continue;
      wanted.finish_reason = "stop";
      break;
    }
    return wanted;
  }

  const SimOptions options;
  VirtualClock clock;
  telemetry::Metrics registry;
  RouterMetrics metrics;
  SimCluster cluster;
  Dispatcher dispatcher;
};

}  // namespace trivium::router

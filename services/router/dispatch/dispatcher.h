// All requests of the router, the queue they wait in and the workers they go to.
//
// One lock covers the worker table, the ledger and the queue; it is never held while a run, a sink
// or a stage client is called. Placement happens on the thread whose event made it possible (a
// submission, a worker's report, the end of a request). Time passes by Tick alone.
// Thread-safety: all methods, any thread.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "services/router/dispatch/encoder_memory.h"
#include "services/router/dispatch/request_run.h"
#include "services/router/dispatch/run_types.h"
#include "services/router/membership/worker_table.h"
#include "services/router/prefix_index/prefix_index.h"
#include "services/router/scheduler/admission_queue.h"
#include "services/router/scheduler/decision_log.h"
#include "services/router/scheduler/ledger.h"

namespace trivium::router {

class Dispatcher final : public RunHost {
 public:
  struct Options {
    WorkerTable::Options table;
    AdmissionQueue::Options queue;
    int64_t kv_bytes_per_token = 0;
    Policy policy = Policy::kPredictedCost;
    RunContext run;  // without `host`, which is this
  };
  explicit Dispatcher(Options options);
  ~Dispatcher() override;  // every run has been closed

  // The answer goes to `sink`, a refusal too. Null: refused.
  std::shared_ptr<RequestRun> Submit(RunRequest request, std::shared_ptr<ResponseSink> sink);
  void Drain();  // no new requests; those that were admitted go on
  // Until the streams of all requests have ended, at most `timeout`. Someone has to call Tick.
  bool AwaitClosed(Duration timeout);

  // What the Watch streams say. False: events of the worker's cache are missing, and its stream has
  // to begin anew.
  bool OnWorkerState(WorkerIndex worker, const v1::WorkerState& state);
  void OnWatchEnd(WorkerIndex worker, const absl::Status& status);

  // Runs everything whose time has come; to be called every kTickInterval or so.
  void Tick();
  static constexpr Duration kTickInterval = std::chrono::milliseconds(25);

  struct Counts {
    int32_t waiting = 0, running = 0;
  };
  Counts counts() const;
  std::vector<v1::WorkerStatus> Workers() const;
  PrefixIndex::Counts IndexCounts() const { return index_.counts(); }
  // Why the request went where it went, by its attempts, oldest first; of the last kDecisionsKept.
  struct Explanation {
    TenantId tenant;  // whose request it is, and who may ask
    std::string text;
  };
  std::vector<Explanation> Explain(const std::string& request_id) const;
  static constexpr size_t kDecisionsKept = 1024;

  // RunHost.
  void Wait(uint64_t ticket, const RequestShape& shape, TimePoint waiting_since) override;
  void WaitApart(uint64_t ticket, std::shared_ptr<RequestRun> run, const RequestShape& shape,
                 TimePoint waiting_since) override;
  void Reserved(uint64_t ticket) override;
  void FirstToken(uint64_t ticket) override;
  void PrefillEnded(uint64_t ticket) override;
  void Transferred(uint64_t ticket, int64_t kv_bytes, Duration time) override;
  void Pulled(uint64_t ticket, int64_t kv_bytes, Duration time) override;
  absl::StatusOr<std::vector<PlacedSlice>> PlaceSlices(SlicesShape shape) override;
  void SlicesEnded(const PlacedWorker& worker, int32_t slices) override;
  bool IsGone(const PlacedWorker& worker) const override;
  void WorkerFailed(const PlacedWorker& worker, FailureAction action,
                    const std::string& why) override;
  void Answered(uint64_t ticket) override;
  void Closed(uint64_t ticket) override;

 private:
  // Calls of runs, collected under the lock and made after it.
  using Calls = std::vector<std::function<void()>>;
  static void Make(const Calls& calls);

  void Enqueue(uint64_t ticket, RequestShape shape, TimePoint waiting_since, bool comes_back);
  void Pump(Calls* calls);
  void Place(uint64_t ticket, const RequestShape& shape, Decision decision, Calls* calls);
  void Refuse(uint64_t ticket, const absl::Status& status, Calls* calls);
  void TellLost(const std::vector<LostWorker>& lost, Calls* calls);
  std::vector<Held> HeldOf(const RunRequest& request) const;
  void Expect(const RunRequest& request, WorkerIndex worker);
  PlacedWorker Describe(WorkerIndex worker);

  RunContext context_;
  PrefixIndex index_;  // has locks of its own; events are applied with ours not held
  mutable std::mutex mutex_;
  WorkerTable table_;
  Ledger ledger_;
  AdmissionQueue queue_;
  EncoderMemory encoders_;
  DecisionLog decisions_{kDecisionsKept};
  // By ticket: a request whose choices go on alone has several.
  std::map<uint64_t, std::shared_ptr<RequestRun>> runs_;
  std::condition_variable none_;  // of runs_
  uint64_t last_ticket_ = 0;
  int32_t answered_ = 0;  // runs whose streams have yet to end
  bool is_draining_ = false;
};

}  // namespace trivium::router

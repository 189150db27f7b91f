// What the router knows about its workers: one entry for each of the static list, fed by the Watch
// streams and by what requests run into.
//
// A worker is usable when its last report fits (role, fingerprint, wire version), is recent, and no
// request has failed there since. Silence longer than `suspect_after`, and a new epoch (a
// restart), lose the requests that run there.
// Thread-safety: none; the dispatcher's lock covers it. No clock inside: times are passed in.
#pragma once

#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "common/kv/block_key.h"
#include "services/router/scheduler/placement.h"
#include "trivium/v1/inference.pb.h"
#include "trivium/v1/stage.pb.h"

namespace trivium::router {

struct WorkerAddress {
  std::string address;
  Role role = Role::kPrefill;
};

// Requests that ran on this start of the worker have to go elsewhere.
struct LostWorker {
  WorkerIndex worker = kNoWorker;
  uint64_t epoch = 0;
  std::string reason;
};

class WorkerTable {
 public:
  struct Options {
    std::vector<WorkerAddress> workers;
    std::string fingerprint;
    std::string tower;  // fingerprint of the vision tower that encodes; empty: none does
    Duration suspect_after = std::chrono::milliseconds(1500);
  };
  explicit WorkerTable(Options options);

  std::vector<LostWorker> OnState(WorkerIndex worker, const v1::WorkerState& state, TimePoint now);
  void OnStreamEnd(WorkerIndex worker, const absl::Status& status);
  // Finds the silent ones. To be called several times within `suspect_after`: a longer pause
  // between calls is taken for a pause of this process and not held against the workers.
  std::vector<LostWorker> Tick(TimePoint now);

  // What requests ran into at that start of the worker. Full: until its next report. Suspect: no
  // new request until its next report. Refused: until it restarts.
  void MarkFull(WorkerIndex worker, uint64_t epoch);
  void MarkSuspect(WorkerIndex worker, uint64_t epoch, const std::string& why);
  void Refuse(WorkerIndex worker, uint64_t epoch, const std::string& why);

  // That start of the worker was lost, as OnState or Tick has told, and has not reported since.
  bool IsGone(WorkerIndex worker, uint64_t epoch) const;

  ClusterSnapshot& cluster() { return cluster_; }
  const ClusterSnapshot& cluster() const { return cluster_; }
  std::string IdOf(WorkerIndex worker) const;  // its address until it has reported
  // Of the workers that are ready, each once; at most kKeySpacesMax.
  std::vector<kv::KeySpace> KeySpaces() const;
  static constexpr size_t kKeySpacesMax = 4;
  std::vector<v1::WorkerStatus> Status(TimePoint now) const;

 private:
  struct Entry {
    v1::WorkerState state;
    bool has_state = false;
    bool is_stream_open = false;
    bool is_lost_told = false;  // since the last report
    uint64_t refused_epoch = 0;
    std::string refused_why;
    TimePoint last_report;
    std::string detail = "not connected yet";
  };
  // Why the worker cannot serve this cluster; "" when it can.
  std::string Objection(WorkerIndex worker, const v1::WorkerState& state) const;
  void Set(WorkerIndex worker, WorkerCondition condition, std::string detail);
  bool IsAt(WorkerIndex worker, uint64_t epoch) const;

  const Options options_;
  ClusterSnapshot cluster_;
  std::vector<Entry> entries_;
  TimePoint last_tick_;
};

}  // namespace trivium::router

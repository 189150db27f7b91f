// What goes into a request's run, what comes out, and what it asks of the dispatcher.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/status.h"
#include "common/kv/block_key.h"
#include "common/media/blocks.h"
#include "common/model/tokenizer.h"
#include "common/scheduling/fair_queue.h"
#include "services/router/dispatch/failure.h"
#include "services/router/dispatch/stage_clients.h"
#include "services/router/prefix_index/prompt_keys.h"
#include "services/router/scheduler/encode_placement.h"
#include "services/router/scheduler/placement.h"
#include "trivium/v1/inference.pb.h"
#include "trivium/v1/stage.pb.h"

namespace trivium::router {

class RequestRun;
class RouterMetrics;

// From the ticket of one request to that of the next: behind each there is room for the tickets of
// its choices, so that those that go on alone wait at its old place.
inline constexpr uint64_t kTicketStride = kChoicesMax + 1;

// A picture of a request, as it came.
struct RunPicture {
  std::string file;
  std::string digest;                // 32 bytes of file and tower
  std::optional<kv::Domain> domain;  // where its multimedia tokens are kept; none: nowhere
  // Names it in that domain, for this router alone, as key + slice does its slices; 0: it is kept
  // nowhere.
  uint64_t key = 0;
  std::shared_ptr<const void> memory;  // the file's share of what all requests may take
};
// A slice of it, and where its multimedia tokens stand in the prompt.
struct RunSlice {
  int32_t picture = 0, slice = 0;
  kv::MediaSpan span;
};

// Of multimedia tokens that a prefill worker reserves for them, where it holds none.
inline int32_t PictureBlocksOf(const std::vector<RunSlice>& slices) {
  int32_t blocks = 0;
  for (const RunSlice& slice : slices) blocks += media::BlocksFor(slice.span.tokens);
  return blocks;
}

// A checked request: the prompt is not empty, prompt plus max_tokens fit into the context, the seed
// is drawn.
struct RunRequest {
  std::string id;
  TenantId tenant;
  std::vector<int32_t> prompt_ids;
  std::vector<kv::Domain> kv_domains;  // of the prompt and what follows it; none: nothing is shared
  std::vector<PromptKeys> kv_keys;     // of the prompt in these domains; the dispatcher's
  v1::StageSampling sampling;
  int32_t choices = 1;  // 1 … kChoicesMax; choice i draws with the seed + i
  std::vector<std::string> stop;
  std::optional<TimePoint> deadline;
  int32_t priority = 0;           // the lowest is served last, and preempted first
  scheduling::TenantShare share;  // by which its tenant competes
  std::vector<std::shared_ptr<RunPicture>> pictures;  // nobody changes one that is submitted
  std::vector<RunSlice> slices;                       // by position
};

// Takes the answer: any number of OnDelta, then exactly one OnDone or OnError. One call at a time,
// on any thread; must not block.
class ResponseSink {
 public:
  virtual ~ResponseSink() = default;
  virtual void OnDelta(const v1::Delta& delta) = 0;
  virtual void OnDone(const v1::Done& done) = 0;
  virtual void OnError(const absl::Status& status) = 0;
};

struct PlacedWorker {
  WorkerIndex worker = kNoWorker;
  uint64_t epoch = 0;
  std::string id, numerics_class;
};
struct PlacedSlice {
  PlacedWorker at;
  PlacedWorker holder;  // that it may be pulled from; none: nobody
  Duration pull_for{};  // no longer is waited for it
};
struct PlacedPair {
  PlacedWorker prefill, decode;
  PlacedWorker holder;  // of a prefix for the prefill worker; none: it is to compute it
  int32_t pull_tokens = 0;
  Duration pull_for{};  // no longer is waited for it
};

// The dispatcher as a run sees it. All methods: any thread, but not under a lock of the caller's.
class RunHost {
 public:
  virtual ~RunHost() = default;
  // The request waits (again) for a placement; what it held is given back.
  virtual void Wait(uint64_t ticket, const RequestShape& shape, TimePoint waiting_since) = 0;
  // The same for a part of a request that has not waited before, under a ticket beside the
  // request's.
  virtual void WaitApart(uint64_t ticket, std::shared_ptr<RequestRun> run,
                         const RequestShape& shape, TimePoint waiting_since) = 0;
  virtual void Reserved(uint64_t ticket) = 0;
  virtual void FirstToken(uint64_t ticket) = 0;
  virtual void PrefillEnded(uint64_t ticket) = 0;
  virtual void Transferred(uint64_t ticket, int64_t kv_bytes, Duration time) = 0;
  // The prefill worker got so much of a prefix in this time, or has given it up.
  virtual void Pulled(uint64_t ticket, int64_t kv_bytes, Duration time) = 0;
  // Who encodes each slice; they count as being there until SlicesEnded. UNAVAILABLE: nobody.
  virtual absl::StatusOr<std::vector<PlacedSlice>> PlaceSlices(SlicesShape shape) = 0;
  virtual void SlicesEnded(const PlacedWorker& worker, int32_t slices) = 0;
  // The worker was lost or has restarted since it was placed.
  virtual bool IsGone(const PlacedWorker& worker) const = 0;
  // What the stage's failure says about the worker.
  virtual void WorkerFailed(const PlacedWorker& worker, FailureAction action,
                            const std::string& why) = 0;
  virtual void Answered(
      uint64_t ticket) = 0;                  // the client has its answer; nothing is held any more
  virtual void Closed(uint64_t ticket) = 0;  // and no stream is left: last call
};

// What all runs share; outlives them.
struct RunContext {
  const model::Tokenizer* tokenizer = nullptr;
  int32_t vocab = 0;
  std::string fingerprint;
  std::string tower;  // fingerprint of the vision tower; empty: no pictures
  StageClients* stages = nullptr;
  RunHost* host = nullptr;
  RouterMetrics* metrics = nullptr;
  Clock* clock = &Clock::Real();
  int attempts_max = 8;
  // How long the end of an answer waits for the prefill worker's account of the transfer, and then
  // for both streams to end by themselves.
  Duration linger = std::chrono::seconds(2);
  // How long slices wait for a worker that encodes.
  Duration encode_patience = std::chrono::seconds(3);
};

}  // namespace trivium::router

// Chooses the prefill and the decode worker of one request: a pure function of a snapshot of the
// cluster and the shape of the request, with no clock and no socket, so that the router, the tests
// and a simulator run the same code. Stateless; safe from any thread.
//
// The policy is part of the snapshot: by predicted cost, or for comparison by load alone, or in
// turn. The last two know nothing of caches: their callers leave `RequestShape::held` empty.
//
// A request with pictures waits here until a worker that encodes has room for more, and nobody
// waits behind it: what it lacks, others do not need. A prefill worker that holds the KV of all of
// them needs none encoded.
//
// Answers besides a placement are kept apart: wait for room (RESOURCE_EXHAUSTED), wait for room for
// pictures (ABORTED; others need not wait behind it), wait for a larger worker that is away, or for
// a stage that pictures need (FAILED_PRECONDITION, likewise), give up (INVALID_ARGUMENT, no worker
// could ever hold it) and a missing stage (UNAVAILABLE, naming it).
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/status.h"

namespace trivium::router {

enum class Role : uint8_t { kPrefill, kDecode, kEncode };
const char* RoleName(Role role);

enum class WorkerCondition : uint8_t { kReady, kDraining, kSuspect, kUnreachable, kRefused };
const char* ConditionName(WorkerCondition condition);

// Position of a worker in the router's list; constant while the router runs.
using WorkerIndex = size_t;
inline constexpr WorkerIndex kNoWorker = static_cast<WorkerIndex>(-1);

// Sequences of one request at most.
inline constexpr int32_t kChoicesMax = 16;

// Prompt tokens that may wait at a prefill worker before further requests stay in the router:
// enough to fill the next steps, little enough that reservations downstream wait for one prefill
// and not for a queue. A request may come behind as many more as the worker holds of its prompt:
// that much sooner is it through.
inline constexpr int64_t kPrefillBacklogTokens = 1024;

// What a worker's steps have been found to take: seconds = base + per_row * rows + per_key * keys,
// as engine::StepCost fits it. per_row 0: nothing is known.
struct StepCost {
  double per_row_s = 0, base_s = 0, per_key_s = 0;
  auto operator<=>(const StepCost&) const = default;
};

// What one worker reported last, and what this router has sent to it.
struct WorkerView {
  Role role = Role::kPrefill;
  WorkerCondition condition = WorkerCondition::kUnreachable;
  uint64_t epoch = 0;
  std::string numerics_class;  // begins with "fast" or "batch_invariant"
  uint32_t wire_format = 0;
  int32_t blocks_total = 0, blocks_free = 0, block_tokens = 0;  // total 0: never reported
  int32_t requests = 0, requests_max = 0;                       // running and waiting
  int64_t prompt_tokens_waiting = 0;
  int32_t expected_output_tokens = 0;  // see kv::TokensToReserve
  int32_t blocks_spare = 0;            // of those free, for the growth of its running requests
  bool is_full = false;                // refused a request for want of room since its last report
  StepCost step_cost = {};
  double transfer_bytes_per_s = 0;  // of KV, into it; 0: nothing was sent yet, or not lately
  // Of KV, from the tiers below its pool; 0: nothing was loaded yet.
  double memory_load_bytes_per_s = 0, disk_load_bytes_per_s = 0;

  int32_t own_requests = 0;       // this router's, now there
  int64_t own_blocks = 0;         // held or about to be held by them
  int64_t own_blocks_unseen = 0;  // of these, not yet in blocks_free
  int64_t own_prompt_tokens = 0;  // sent to be computed, and not answered by a first token
  double own_recent_tokens = 0;   // sent to be computed, the older the less

  // Pictures. Of a worker that encodes, in whichever role: slices that wait or are being encoded.
  bool encodes = false;
  int32_t slices_waiting = 0, slices_max = 0;
  double seconds_per_slice = 0;  // 0: not measured
  int32_t own_slices = 0;        // this router's, there and not landed
  // Of a prefill worker: blocks for multimedia tokens; 0: it takes no pictures.
  int32_t picture_blocks_total = 0;
};

// kLeastLoaded: fewest prompt tokens waiting, then fewest requests. kRoundRobin: the `turn`-th of
// those with room.
enum class Policy : uint8_t { kPredictedCost, kLeastLoaded, kRoundRobin };
// "predicted_cost", "least_loaded", "round_robin": one of them it has to be.
Policy PolicyNamed(std::string_view name);

struct ClusterSnapshot {
  std::vector<WorkerView> workers;
  int64_t kv_bytes_per_token = 0;
  Policy policy = Policy::kPredictedCost;
};

// How a worker has done for this request so far.
struct WorkerBlame {
  WorkerIndex worker = kNoWorker;
  int points = 0;
};

// What a worker holds of a prompt, counted from its first token, in whole blocks: ready for use, or
// it will be, by requests that are there; these and what lies behind them, once what is compressed
// in memory is loaded; and once what is on disk is. Each at least the one before.
struct Held {
  WorkerIndex worker = kNoWorker;
  int32_t hot_tokens = 0, memory_tokens = 0, disk_tokens = 0;
  int32_t stored_tokens = 0;  // of the hot ones, those that it has said it holds
  bool operator==(const Held&) const = default;
};

struct RequestShape {
  int32_t prompt_tokens = 0;  // those of earlier attempts' output included
  int32_t output_tokens = 0;  // still to come, at most, in each choice
  int32_t choices = 1;        // sequences that go on from the same tokens
  bool in_full = false;       // decode sets all of them aside at once
  int32_t preemptions = 0;
  bool has_begun = false;             // its client has some of the answer
  bool needs_prefill_worker = false;  // no decode worker could do its part
  int32_t picture_blocks = 0;         // of multimedia tokens at the prefill worker; 0: no picture
  int32_t pictures_end = 0;           // tokens up to the end of the last picture
  uint64_t turn = 0;                  // decides ties; any counter
  WorkerIndex decode_before = kNoWorker;  // preferred among equals: the retry's former worker
  std::vector<WorkerBlame> blame;
  std::vector<Held> held = {};  // by worker, rising; who is missing holds nothing
};
// Nothing for a worker that is missing.
Held HeldBy(const RequestShape& shape, WorkerIndex worker);
// Of the prompt, at least one: what the worker does not hold.
int32_t TokensToCompute(const RequestShape& shape, WorkerIndex worker);

// A prefix that the prefill worker takes from another worker instead of computing it.
struct Pull {
  WorkerIndex holder = kNoWorker;  // none: nothing is pulled
  int32_t tokens = 0;              // leading ones of the prompt, in whole blocks
  double within_s = 0;             // what has not come by then is computed
  bool operator==(const Pull&) const = default;
};

struct Placement {
  WorkerIndex prefill = kNoWorker;  // none: the decode worker computes the prompt itself
  WorkerIndex decode = kNoWorker;
  Pull pull = {};
  bool operator==(const Placement&) const = default;
};

int64_t BlocksFor(int64_t tokens, int32_t block_tokens);
// What the worker will reserve for this request at admission; the choices share the blocks that the
// prompt fills.
int64_t BlocksAtFirst(const WorkerView& worker, const RequestShape& shape);
// Places that it takes in a worker's batch.
int32_t PlacesAt(Role role, const RequestShape& shape);
bool IsFast(const std::string& numerics_class);

struct Decision;  // decision.h
// Blame and a retry's former decode worker come first, then what the policy goes by: the predicted
// cost (cost.h) and the load, or the load; of equals whoever has computed least lately, then the
// `turn`-th. A decode worker that holds all
// but a little of the prompt is left to compute that by itself where this costs less than the
// cheapest pair. `why`, if given, is filled where a placement is found.
absl::StatusOr<Placement> Choose(const ClusterSnapshot& cluster, const RequestShape& shape,
                                 Decision* why = nullptr);

// OK when some ready prefill worker may exchange KV with some ready decode worker; else UNAVAILABLE
// naming the missing stage.
absl::Status CheckStages(const ClusterSnapshot& cluster);
// OK when some ready worker encodes pictures, and some ready prefill worker takes them; else
// UNAVAILABLE naming the stage. Requests without pictures need neither.
absl::Status CheckPictureStages(const ClusterSnapshot& cluster);

// INVALID_ARGUMENT when every worker of a stage has reported, and none could ever hold the request.
// A prefill worker counts only where it could also prefill all but the last token of the answer: a
// later attempt takes the prompt and what was emitted, and must not fail for want of a large enough
// worker when the client has half of the answer.
absl::Status CheckFits(const ClusterSnapshot& cluster, const RequestShape& shape);

}  // namespace trivium::router

// The way of some choices of a request through the workers: one placement at a time, attempt after
// attempt, under a ticket of its own at the host.
//
// A request starts on one leg for all of its choices. They share one prefill as long as their ids
// are equal, so when an attempt fails after the first token, each choice goes on by a leg of its
// own. Plain state with what concerns it alone; the rules are RequestRun's.
// Thread-safety: none; belongs to one request's strand.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "services/router/dispatch/run_account.h"
#include "services/router/dispatch/run_types.h"

namespace trivium::router {

// Slices on their way from a worker that encodes.
struct EncodeCall {
  PlacedWorker at;
  int32_t picture = 0;              // of the request
  std::shared_ptr<StageCall> call;  // null: it has ended
  // Of the request, with the attempt of each, that have not landed. Empty: it has ended, or will.
  std::vector<std::pair<int32_t, uint32_t>> slices;
  // Of the picture, those that the worker may pull, and from whom; empty once it was told.
  std::map<int32_t, PlacedWorker> holders;
  Duration pull_for{};
};

// What the prefill worker of an attempt waits for.
struct EncodeState {
  enum class Slice : uint8_t {
    kWanted,  // by a ticket, and nobody is asked
    kAsked,
    kLanded
  };
  struct Wanted {
    uint32_t attempt = 0;
    v1::LandingTicket ticket;
    Slice state = Slice::kWanted;
    TimePoint not_before{};  // is anybody asked
    int failures = 0, strays = 0;
    int room_tries = 0;  // since any slice came
  };
  std::map<int32_t, Wanted> slices;  // by number in the request
  std::deque<EncodeCall> calls;      // grows: one a slice, failure, stray call and try for room
  std::vector<WorkerIndex> failed;
  std::optional<TimePoint> stuck_since;   // nobody could be asked
  TimePoint retry_at = TimePoint::max();  // the earliest that somebody may be asked
};

struct RunAttempt {
  uint32_t number = 0;
  std::string secret;
  PlacedPair at;
  std::shared_ptr<StageCall> decode, prefill;
  std::shared_ptr<StageCall> pull;  // what becomes of it is the prefill worker's affair
  EncodeState encode;
  bool has_begun = false;      // decode has answered: with its ticket, or with its own prefill
  bool decode_has_kv = false;  // it has sent a token: the prefill worker is no longer needed
  bool has_sent = false;       // the account of who prefilled has come
  bool decode_ended = false, prefill_ended = true;
  // The decode worker prefills.
  bool is_local() const { return at.prefill.worker == kNoWorker; }

  // Decode's tokens that have overtaken the prompt's; at most max_tokens of each choice.
  std::vector<v1::StageToken> held;
};

struct RunLeg {
  // kFinishing: all its tokens are out, the account of the transfer is due. kAnswered: nothing more
  // is expected of it, its streams are about to end.
  enum class Phase : uint8_t { kWaiting, kRunning, kFinishing, kAnswered, kClosed };

  // Of a whole request.
  RunLeg(uint64_t host_ticket, std::string request_id, int32_t count, TimePoint now)
      : ticket(host_ticket),
        id(std::move(request_id)),
        choice_begin(0),
        choices(count),
        times(now) {}
  // Of one choice of a whole request, as far as it has come.
  RunLeg(const RunLeg& whole, int32_t choice);

  const PlacedWorker& At(Role stage) const {
    return stage == Role::kPrefill ? attempt.at.prefill : attempt.at.decode;
  }
  bool is_idle() const { return attempt.decode_ended && attempt.prefill_ended; }
  bool is_lingering() const { return phase == Phase::kFinishing || phase == Phase::kAnswered; }
  // The stage has failed in the present attempt.
  void Blame(Role stage);
  void CancelStreams();

  const uint64_t ticket;
  const std::string id;  // the request's at the workers: no two legs have the same
  const int32_t choice_begin, choices;

  Phase phase = Phase::kWaiting;
  RunAttempt attempt;
  uint32_t attempts_begun = 0;
  int failures = 0;
  int32_t preemptions = 0;
  WorkerIndex decode_before = kNoWorker;
  std::vector<WorkerBlame> blame;
  LegTimes times;
  TimePoint linger_until;
};

}  // namespace trivium::router

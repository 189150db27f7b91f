// Sends prefixes that lie in this worker's pool to workers that lack them. Needs neither engine nor
// step loop: what is published is complete, and nobody writes it. A prefix is held for as long as
// its rows may be read, and may be gone for the most part when it is asked for: what is there is
// sent.
//
// Bound: kSendsMax prefixes at a time; more are refused and counted.
// Thread-safety: all methods, any thread. Pool and transport outlive the sender.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "common/base/status.h"
#include "common/kv/block_pool.h"
#include "common/transfer/transport.h"
#include "common/worker/types.h"

namespace trivium::worker {

struct PrefixReport {
  int32_t tokens = 0;  // of those asked for, that were here
  transfer::TransferStats transfer;
};

class PrefixSender {
 public:
  static constexpr size_t kSendsMax = 64;
  // Once for each Send that began, on the transport's thread, maybe before Send returns.
  // UNAVAILABLE: the other worker was lost, or wants no more.
  using EndCallback = std::function<void(absl::StatusOr<PrefixReport>)>;

  PrefixSender(kv::BlockPool* pool, transfer::Transport* transport, int32_t layers,
               int32_t block_tokens);
  ~PrefixSender();  // what still runs is aborted and calls nobody
  PrefixSender(const PrefixSender&) = delete;
  PrefixSender& operator=(const PrefixSender&) = delete;

  // Gives a number, for Cancel. RESOURCE_EXHAUSTED when too many are being sent, INVALID_ARGUMENT
  // when the ticket does not fit this worker's KV layout.
  absl::StatusOr<uint64_t> Send(const PrefixRequest& request, EndCallback on_end);
  void Cancel(uint64_t number);  // on_end comes with CANCELLED unless it came already

  struct Counts {
    int64_t sent = 0, tokens = 0;  // prefixes that landed, empty ones included, and tokens of them
    int64_t failed = 0, refused = 0;
  };
  Counts counts() const;

 private:
  struct State;
  static void End(State& state, uint64_t number, absl::StatusOr<transfer::TransferStats> stats);
  absl::Status Begin(uint64_t number, const PrefixRequest& request, kv::Reservation blocks);

  kv::BlockPool& pool_;
  transfer::Transport& transport_;
  const int32_t layers_, block_tokens_;
  std::shared_ptr<State> state_;  // callbacks of the transport may outlive the sender
};

}  // namespace trivium::worker

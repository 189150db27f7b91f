// What the two halves of the protocol share: the link, the clock, the peers, the counters.
// Thread-safety: Tally from any thread; the rest belongs to the transport's thread.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

#include "common/transfer/address.h"
#include "common/transfer/link.h"
#include "common/transfer/peers.h"
#include "common/transfer/rows.h"

namespace trivium::transfer {

// TransferCounters while they are being counted.
struct Tally {
  std::array<std::atomic<int64_t>, static_cast<size_t>(Refusal::kCount)> refused{};
  std::atomic<int64_t> bytes_sent{0}, bytes_received{0};
  std::atomic<int64_t> landings_open{0}, senders_open{0};
  std::atomic<int64_t> landings_expired{0}, peers_lost{0}, peers_suspect{0};
  void Refuse(Refusal refusal) { ++refused[static_cast<size_t>(refusal)]; }
  TransferCounters Snapshot() const;
};

// Sizes that bound a transport's memory.
struct Limits {
  int64_t window_bytes = 16 * int64_t{kMaxPayloadBytes};  // in flight, of one transfer
  int send_buffers = 32;                                  // of kMaxPayloadBytes
  int fetches = 32;  // payloads on their way; tails into buffers of kMaxTailBytes
  int64_t landings = 4096;
  int64_t senders = 4096;
  size_t waiting_messages = 4096;  // announced, but not fetched yet
  int64_t queued_ranges = 16384;   // calls of Send that one transfer may be behind
};

struct Wiring {
  RowMap rows;
  WorkerEpoch epoch;
  uint64_t transport_id = 0;
  std::string address;  // of this transport, envelope included
  LinkKind kind = LinkKind::kInProcess;
  TransferTimeouts timeouts;  // scaled
  const Clock* clock = nullptr;
  Link* link = nullptr;
  PeerTable* peers = nullptr;
  Tally* tally = nullptr;
  Limits limits;
};

}  // namespace trivium::transfer

// Moves the KV rows of one request into blocks that another worker has reserved: a prefill worker's
// to the decode worker, or a prefix to a prefill worker that lacks it.
//
// Receiver: Expect() turns reserved blocks into a Ticket; the router carries the ticket to the
// sender. Sender: Open() with the ticket, Send() each finished (layers x tokens) range, Finish()
// with a small tail (the first token). Delivery is the receiver's own acknowledgement after the
// checksum, never a completion of the wire. The receiver alone decides where bytes land, after
// checking request, attempt, secret, epoch, generation, layer and token range; what fails a check
// is refused and counted, and touches no block. Rows that pass are written as they come, and count
// once their checksum is right; nobody may read them before on_arrival.
//
// Ownership: blocks named on either side stay leased (the BlockLease given) until no message in
// flight can touch them, also after an abort, a lost peer or a stopped one. Every callback is
// called exactly once, on the transport's own thread; callbacks must not block and may call back
// into the transport. Thread-safety: all methods, any thread. No method blocks on a peer.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/status.h"
#include "common/kv/block_pool.h"
#include "common/kv/kv_storage.h"

namespace trivium::transfer {

// Drawn by the router for each attempt; without it a message is refused.
using Secret = std::array<uint8_t, 16>;

// Rows as they lie in the KV pages, of which type those are.
enum class WireFormat : uint8_t { kF16 = 1, kBF16 = 2, kInt8 = 3 };

constexpr WireFormat WireFormatOf(kernels::KvType type) {
  switch (type) {
    case kernels::KvType::kBF16:
      return WireFormat::kBF16;
    case kernels::KvType::kInt8:
      return WireFormat::kInt8;
    case kernels::KvType::kF16:
      break;
  }
  return WireFormat::kF16;
}
// Of a number from outside.
constexpr bool IsWireFormat(uint32_t value) { return value >= 1 && value <= 3; }

// What a sender must know to reach a landing place. Travels through the router.
struct Ticket {
  std::string address;      // the receiver's transport address, opaque bytes
  WorkerEpoch epoch;        // of the receiver
  uint64_t landing_id = 0;  // names the landing inside the receiver
  uint64_t generation = 0;  // of the landing blocks; raised by every new attempt
  WireFormat wire_format = WireFormat::kF16;
  int32_t layers = 0;
  int32_t token_begin = 0;  // tokens before it are complete at the receiver already
  int32_t token_end = 0;    // one past the last token whose KV is wanted
  int32_t row_elems = 0;    // kv heads x head size: both sides must agree
  int32_t block_tokens = 0;
};

struct Credentials {
  RequestId request;
  Attempt attempt;
  Secret secret{};
  friend bool operator==(const Credentials&, const Credentials&) = default;
};

// The blocks of one sequence on one side: token t lies in blocks[t / block_tokens].
struct SequenceBlocks {
  std::vector<BlockId> blocks;
  kv::BlockLease lease;
};

struct Arrival {
  bool kv_complete = false;  // every row of every layer landed and passed its checksum
  int32_t token_end = 0;     // so far every layer is complete; the landing's token_begin: nowhere
  std::string tail;          // what the sender gave to Finish
  int64_t kv_bytes = 0;      // payload that landed
  int32_t messages = 0;
};
using ArrivalCallback = std::function<void(absl::StatusOr<Arrival>)>;

struct LandingOptions {
  Credentials credentials;
  SequenceBlocks into;
  uint64_t generation = 0;
  int32_t token_begin = 0;
  int32_t token_end = 0;
  ArrivalCallback
      on_arrival;  // DEADLINE_EXCEEDED, UNAVAILABLE (peer lost), CANCELLED (Withdraw), DATA_LOSS
};

struct RowRange {
  int32_t layer_begin = 0, layer_end = 0;
  int32_t token_begin = 0, token_end = 0;
};

struct TransferStats {
  int64_t kv_bytes = 0;      // payload acknowledged
  int64_t header_bytes = 0;  // everything else that this transfer put on the wire
  int32_t messages = 0;
  Duration first_send_to_last_ack{};
  int64_t kv_bytes_acked_before_finish = 0;  // acknowledged when Finish was called
};
using DeliveryCallback = std::function<void(absl::StatusOr<TransferStats>)>;

// One transfer, on the sender's side. Destroying it before `done` came aborts it.
class Sender {
 public:
  virtual ~Sender() = default;
  // Queues rows that lie finished in the source blocks. Ranges must not overlap.
  virtual void Send(const RowRange& rows) = 0;
  // All has been queued; `tail` (at most 64 KiB) arrives after the last row. With kv_complete =
  // false nothing more is needed at the receiver (the request has ended) and missing rows are no
  // error.
  virtual void Finish(std::string tail, bool kv_complete) = 0;
  // The same, without a tail, for a sender that lacks some of the rows: all that it has queued
  // arrives, and Arrival::token_end says how far it reaches.
  virtual void FinishShort() = 0;
  virtual void Abort() = 0;
};

// The heartbeat of both directions and what follows from a missing one; `scale` stretches all of
// them.
struct TransferTimeouts {
  Duration connect = std::chrono::seconds(1);
  Duration heartbeat = std::chrono::milliseconds(500);
  Duration suspect = std::chrono::milliseconds(1500);
  Duration lease = std::chrono::seconds(2);  // without a beat the peer is lost
  Duration unused_ticket =
      std::chrono::seconds(2);  // a landing that no message reached; see Expect
  Duration acknowledgement = std::chrono::seconds(2);
  double scale = 1.0;
};

// Why a message was refused; the order is that of TransferCounters::refused.
enum class Refusal : uint8_t {
  kMalformed,
  kUnknownLanding,
  kWrongSecret,
  kOldAttempt,
  kOldEpoch,
  kOldGeneration,
  kOutOfRange,
  kReplay,
  kChecksum,
  kOverLimit,
  kUnknownPeer,  // whoever sent it did not begin this landing
  kCount
};
const char* RefusalName(Refusal refusal);

struct TransferCounters {
  std::array<int64_t, size_t(Refusal::kCount)> refused{};
  int64_t bytes_sent = 0, bytes_received = 0;
  int64_t landings_open = 0, senders_open = 0;
  int64_t landings_expired = 0, peers_lost = 0;
  int64_t peers_suspect = 0;  // silent for `suspect` right now
};

class Transport {
 public:
  virtual ~Transport() =
      default;  // force-closes every peer; every callback has come when it returns
  virtual const std::string& address() const = 0;
  virtual WorkerEpoch epoch() const = 0;

  // A landing place. It expires (DEADLINE_EXCEEDED) when nothing reached it for `unused_ticket`
  // after KeepAlive was last called: the router's open stream, not a guess, says whether a sender
  // is still due.
  virtual absl::StatusOr<Ticket> Expect(LandingOptions options) = 0;
  virtual void KeepAlive(uint64_t landing_id) = 0;
  virtual void Withdraw(
      uint64_t landing_id) = 0;  // on_arrival comes with CANCELLED unless it came already

  // INVALID_ARGUMENT when the ticket does not fit this worker's KV layout; connects in the
  // background. `from` may end before the ticket does: see FinishShort.
  virtual absl::StatusOr<std::unique_ptr<Sender>> Open(const Ticket& ticket,
                                                       Credentials credentials, SequenceBlocks from,
                                                       DeliveryCallback done) = 0;
  virtual TransferCounters counters() const = 0;
};

// TCP ports from `first` on; 0: any that is free.
struct PortRange {
  int first = 0;
  int count = 0;
};

struct TransportOptions {
  std::shared_ptr<kv::KvStorage> storage;
  WorkerEpoch epoch;
  TransferTimeouts timeouts;
  std::string interface = "lo";               // network device of the UCX port
  std::string transports = "posix,tcp,self";  // of UCX, for data: any of these; peers meet over TCP
  PortRange ports = {};                       // of UCX: one for its door, one a peer; nobody else's
  Clock* clock = &Clock::Real();
};

absl::StatusOr<std::unique_ptr<Transport>> MakeUcxTransport(TransportOptions options);
// Reaches every other in-process transport of this process.
absl::StatusOr<std::unique_ptr<Transport>> MakeInProcessTransport(TransportOptions options);

}  // namespace trivium::transfer

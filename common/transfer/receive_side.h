// The receiver's half of the protocol: every message for a landing is checked before its payload is
// fetched, received into a buffer of ours, checked again with its checksum, and only then copied
// into blocks. So no byte that is late, foreign or damaged ever touches a block. Thread-safety:
// none; one thread owns it.
#pragma once

#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include "common/transfer/landing.h"
#include "common/transfer/wiring.h"

namespace trivium::transfer {

class ReceiveSide {
 public:
  explicit ReceiveSide(Wiring* wiring);

  void Add(uint64_t id, LandingOptions options);
  void KeepAlive(uint64_t id) { table_.KeepAlive(id, wiring_->clock->Now()); }
  void Withdraw(uint64_t id);

  // A message of type Begin, Rows, Finish or Abort.
  void Handle(const MessageHeader& header, Incoming message);
  void OnReceived(uint64_t cookie, Buffer buffer, bool ok);
  // Fetches what waited for a buffer, ends unused landings.
  void Turn();
  void PeerLost(uint64_t source, const std::string& reason);
  void EndAll(const absl::Status& status);
  bool Busy() const { return table_.size() > 0 || !fetching_.empty() || !waiting_.empty(); }

 private:
  struct Pending {
    MessageHeader header;
    std::vector<uint8_t> header_bytes;
    uint64_t parked = 0;
  };
  void Fetch(Pending pending, Buffer buffer);
  void Deliver(const MessageHeader& header, std::span<const uint8_t> header_bytes,
               std::span<const uint8_t> payload);
  void DeliverBegin(const MessageHeader& header, std::span<const uint8_t> address);
  void Apply(const MessageHeader& header, std::span<const uint8_t> payload);
  void Refuse(const MessageHeader& header, Refusal refusal);
  void Acknowledge(const MessageHeader& header, uint64_t sequence);
  void End(uint64_t id, absl::StatusOr<Arrival> outcome);
  // Tells the sender of a landing that it is over, so that it stops sending.
  void TellSender(uint64_t id);

  Wiring* wiring_;
  LandingTable table_;
  BufferPool buffers_;
  uint64_t next_cookie_ = 1;
  std::unordered_map<uint64_t, Pending> fetching_;
  std::deque<Pending> waiting_;
};

}  // namespace trivium::transfer

// The receiver's half of the protocol: every message for a landing is checked before its payload is
// fetched. Rows that have passed go to where they belong while this thread takes them from the
// wire; they count once their seal is right, and are erased if it is not. So no byte that is late
// or foreign touches a block, and a damaged one touches none that anybody reads.
// Thread-safety: none; one thread owns it.
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
  // Fetches what had to wait, ends unused landings.
  void Turn();
  void PeerLost(uint64_t source, const std::string& reason);
  void EndAll(const absl::Status& status);
  bool Busy() const { return table_.size() > 0 || !fetching_.empty() || !waiting_.empty(); }

 private:
  struct Pending {
    MessageHeader header;
    std::vector<uint8_t> header_bytes;
    uint64_t parked = 0;
    std::shared_ptr<ArrivingRows> rows{};  // that are being fetched
  };
  std::optional<Refusal> Check(const MessageHeader& header, const Incoming& message) const;
  bool MayFetch() const;
  void Fetch(Pending pending);
  std::shared_ptr<ArrivingRows> Claim(const MessageHeader& header,
                                      std::span<const uint8_t> header_bytes);
  void Deliver(const MessageHeader& header, std::span<const uint8_t> header_bytes,
               std::span<const uint8_t> payload);
  void DeliverBegin(const MessageHeader& header, std::span<const uint8_t> address);
  void DeliverRows(const MessageHeader& header, ArrivingRows& rows);
  void Conclude(const MessageHeader& header);
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

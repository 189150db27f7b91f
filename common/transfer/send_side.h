// The sender's half of the protocol: windows, acknowledgements and their timeouts. Rows are copied
// and hashed in one pass, on this thread: by UCX into its queue where shared memory carries them,
// else into a buffer of ours.
// Thread-safety: none; one thread owns it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "common/transfer/outgoing.h"
#include "common/transfer/wiring.h"

namespace trivium::transfer {

class SendSide {
 public:
  explicit SendSide(Wiring* wiring);

  void Open(uint64_t id, Ticket ticket, TransportAddress to, Credentials credentials,
            SequenceBlocks from, DeliveryCallback done);
  // Each of them does nothing when the transfer is over.
  void SendRows(uint64_t id, const RowRange& rows);
  void Finish(uint64_t id, std::string tail, bool kv_complete);
  void FinishShort(uint64_t id);
  void Abort(uint64_t id, const absl::Status& why);

  // A message of type Ack or Refused.
  void Handle(const MessageHeader& header);
  // Puts at most a few messages on their way; true when there is more to do at once. Ends transfers
  // whose acknowledgements are overdue and returns the peers that acknowledged nobody for as long.
  bool Turn(std::vector<PeerTable::Lost>* lost);
  void PeerLost(uint64_t peer, const std::string& reason);
  void EndAll(const absl::Status& status);
  bool Busy() const { return !transfers_.empty(); }

 private:
  struct Transfer {
    uint64_t peer;
    Outgoing outgoing;
    bool has_begun = false;  // its Begin is on the way
  };
  // Sends one message if window, buffers and peer allow.
  bool PumpOne(Transfer& transfer);
  bool PostBegin(Transfer& transfer);
  bool PostRows(const Transfer& transfer, const MessageHeader& header);
  bool PostFinish(const Transfer& transfer, const MessageHeader& header);
  void End(uint64_t id, absl::StatusOr<TransferStats> outcome);
  void EndAndTell(uint64_t id, const absl::Status& status, Refusal reason);
  void AnswerLate(const MessageHeader& header);
  void SweepOverdue(std::vector<PeerTable::Lost>* lost);

  Wiring* wiring_;
  BufferPool buffers_;
  std::map<uint64_t, Transfer> transfers_;
  uint64_t turn_from_ = 0;  // transfers take turns: the next round starts behind this id
};

}  // namespace trivium::transfer

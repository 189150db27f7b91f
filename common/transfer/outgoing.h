// What one transfer still has to send and what it waits for: a queue of messages, a window of bytes
// in flight, acknowledgements, figures. Knows no clock, link or thread of its own. Thread-safety:
// none; one thread owns it. Invariants: bytes in flight never exceed the window; a message is
// acknowledged at most once.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>

#include "common/transfer/rows.h"
#include "common/transfer/wire.h"

namespace trivium::transfer {

inline constexpr uint64_t kBeginSequence = 0;
inline constexpr uint64_t kFinishSequence = ~uint64_t{0};  // in an acknowledgement of Finish
inline constexpr size_t kMaxQueuedMessages = 1 << 16;      // of one transfer

class Outgoing {
 public:
  Outgoing(RowMap rows, Ticket ticket, Credentials credentials, SequenceBlocks from,
           DeliveryCallback done, uint64_t sender_id, int64_t window_bytes);

  // INVALID_ARGUMENT outside the ticket, FAILED_PRECONDITION after Finish, RESOURCE_EXHAUSTED when
  // the queue is full; each ends the transfer.
  absl::Status Queue(const RowRange& rows);
  // With kv_complete = false, rows that have not been sent yet are dropped.
  absl::Status QueueFinish(std::string tail, bool kv_complete);
  // No tail, and not all rows, but those queued are sent.
  absl::Status QueueFinishShort();

  // The next message that the window admits (Rows, at last Finish); nothing before Begin is
  // acknowledged. Taken(now) follows once it is on its way.
  std::optional<MessageHeader> Next() const;
  void Taken(TimePoint now);
  // A header of this transfer, addressed to its landing.
  MessageHeader Header(MessageType type) const;
  void NoteSent(uint64_t sequence, int64_t payload_bytes, TimePoint now);

  // False: not in flight (a repetition, or forged). True: see Delivered().
  bool Acknowledged(uint64_t sequence, TimePoint now);
  bool Delivered() const { return finish_acked_ && in_flight_.empty(); }
  bool begin_acked() const { return begin_acked_; }
  // In flight for longer than this with no acknowledgement at all in between.
  bool Overdue(TimePoint now, Duration limit) const;

  const Ticket& ticket() const { return ticket_; }
  const SequenceBlocks& from() const { return from_; }
  const std::string& tail() const { return tail_; }
  const Credentials& credentials() const { return credentials_; }
  TransferStats& stats() { return stats_; }
  DeliveryCallback TakeDone() { return std::move(done_); }

 private:
  RowMap rows_;
  Ticket ticket_;
  Credentials credentials_;
  SequenceBlocks from_;
  DeliveryCallback done_;
  uint64_t sender_id_;
  uint64_t request_hash_;
  int64_t window_bytes_;

  std::deque<RowRange> queue_;
  std::map<uint64_t, int64_t> in_flight_;  // sequence → payload bytes
  int64_t bytes_in_flight_ = 0;
  uint64_t rows_sent_ = 0;  // messages
  bool begin_acked_ = false;
  bool finish_queued_ = false, finish_sent_ = false, finish_acked_ = false, kv_complete_ = false;
  std::string tail_;
  TimePoint last_progress_{};  // an acknowledgement, or a send with nothing in flight before it
  std::optional<TimePoint> first_send_;
  TransferStats stats_;
};

}  // namespace trivium::transfer

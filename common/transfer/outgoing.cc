#include "common/transfer/outgoing.h"

namespace trivium::transfer {

Outgoing::Outgoing(RowMap rows, Ticket ticket, Credentials credentials, SequenceBlocks from,
                   DeliveryCallback done, uint64_t sender_id, int64_t window_bytes)
    : rows_(rows),
      ticket_(std::move(ticket)),
      credentials_(std::move(credentials)),
      from_(std::move(from)),
      done_(std::move(done)),
      sender_id_(sender_id),
      request_hash_(HashRequest(credentials_.request)),
      window_bytes_(window_bytes) {}

absl::Status Outgoing::Queue(const RowRange& rows) {
  if (finish_queued_) return FailedPrecondition("transfer: rows given after Finish");
  if (rows.layer_begin < 0 || rows.layer_begin >= rows.layer_end ||
      rows.layer_end > rows_.layers() || rows.token_begin < ticket_.token_begin ||
      rows.token_begin >= rows.token_end || rows.token_end > ticket_.token_end) {
    return InvalidArgument("transfer: layers {}..{} tokens {}..{} are not in the ticket",
                           rows.layer_begin, rows.layer_end, rows.token_begin, rows.token_end);
  }
  if (rows.token_end > static_cast<int64_t>(from_.blocks.size()) * rows_.block_tokens()) {
    return InvalidArgument("transfer: tokens to {} are not in the {} blocks of the sender",
                           rows.token_end, from_.blocks.size());
  }
  rows_.Split(rows, kMaxRowBytes, &queue_);
  if (queue_.size() > kMaxQueuedMessages) {
    return ResourceExhausted("transfer: more than {} messages queued", kMaxQueuedMessages);
  }
  return absl::OkStatus();
}

absl::Status Outgoing::QueueFinish(std::string tail, bool kv_complete) {
  if (finish_queued_) return FailedPrecondition("transfer: Finish called twice");
  if (tail.size() > kMaxTailBytes) {
    return InvalidArgument("transfer: a tail of {} bytes, at most {} are sent", tail.size(),
                           kMaxTailBytes);
  }
  finish_queued_ = true;
  kv_complete_ = kv_complete;
  tail_ = std::move(tail);
  stats_.kv_bytes_acked_before_finish = stats_.kv_bytes;
  if (!kv_complete) queue_.clear();
  return absl::OkStatus();
}

absl::Status Outgoing::QueueFinishShort() {
  std::deque<RowRange> rows = queue_;
  RETURN_IF_ERROR(QueueFinish("", false));
  queue_ = std::move(rows);
  return absl::OkStatus();
}

MessageHeader Outgoing::Header(MessageType type) const {
  MessageHeader header;
  header.type = type;
  header.epoch = ticket_.epoch.value;
  header.landing_id = ticket_.landing_id;
  header.sender_id = sender_id_;
  header.request_hash = request_hash_;
  header.secret = credentials_.secret;
  header.generation = ticket_.generation;
  header.attempt = credentials_.attempt.value;
  header.wire_format = ticket_.wire_format;
  return header;
}

std::optional<MessageHeader> Outgoing::Next() const {
  if (!begin_acked_ || finish_sent_) return std::nullopt;
  if (queue_.empty()) {
    if (!finish_queued_) return std::nullopt;
    MessageHeader header = Header(MessageType::kFinish);
    header.sequence = rows_sent_;
    header.kv_complete = kv_complete_;
    header.payload_bytes = static_cast<uint32_t>(tail_.size());
    return header;
  }
  const int64_t bytes = rows_.Bytes(queue_.front());
  if (bytes_in_flight_ > 0 && bytes_in_flight_ + bytes > window_bytes_) return std::nullopt;
  MessageHeader header = Header(MessageType::kRows);
  header.rows = queue_.front();
  header.sequence = rows_sent_ + 1;
  header.payload_bytes = static_cast<uint32_t>(bytes + kSealBytes);
  return header;
}

void Outgoing::Taken(TimePoint now) {
  if (queue_.empty()) {
    finish_sent_ = true;
    stats_.header_bytes += static_cast<int64_t>(tail_.size());
    NoteSent(kFinishSequence, 0, now);
    return;
  }
  if (!first_send_) first_send_ = now;
  const int64_t bytes = rows_.Bytes(queue_.front());
  queue_.pop_front();
  ++rows_sent_;
  stats_.header_bytes += static_cast<int64_t>(kSealBytes);
  NoteSent(rows_sent_, bytes, now);
}

void Outgoing::NoteSent(uint64_t sequence, int64_t payload_bytes, TimePoint now) {
  if (in_flight_.empty()) last_progress_ = now;
  in_flight_[sequence] = payload_bytes;
  bytes_in_flight_ += payload_bytes;
  ++stats_.messages;
  stats_.header_bytes += static_cast<int64_t>(kHeaderBytes);
}

bool Outgoing::Acknowledged(uint64_t sequence, TimePoint now) {
  const auto it = in_flight_.find(sequence);
  if (it == in_flight_.end()) return false;
  bytes_in_flight_ -= it->second;
  stats_.kv_bytes += it->second;
  stats_.header_bytes += static_cast<int64_t>(kHeaderBytes);  // of the acknowledgement
  in_flight_.erase(it);
  last_progress_ = now;
  if (sequence == kBeginSequence) begin_acked_ = true;
  if (sequence == kFinishSequence) finish_acked_ = true;
  if (first_send_) stats_.first_send_to_last_ack = now - *first_send_;
  return true;
}

bool Outgoing::Overdue(TimePoint now, Duration limit) const {
  return !in_flight_.empty() && now - last_progress_ > limit;
}

}  // namespace trivium::transfer

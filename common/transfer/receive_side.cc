#include "common/transfer/receive_side.h"

#include <algorithm>

#include "common/transfer/outgoing.h"

namespace trivium::transfer {

ReceiveSide::ReceiveSide(Wiring* wiring)
    : wiring_(wiring),
      table_(wiring->rows, wiring->epoch),
      buffers_(kMaxTailBytes, wiring->limits.fetches) {}

void ReceiveSide::Add(uint64_t id, LandingOptions options) {
  table_.Add(id, std::move(options), wiring_->clock->Now());
}

void ReceiveSide::Withdraw(uint64_t id) {
  TellSender(id);
  End(id, absl::CancelledError("the landing was withdrawn"));
}

std::optional<Refusal> ReceiveSide::Check(const MessageHeader& header,
                                          const Incoming& message) const {
  // A Begin carries the address to answer to, so its refusal waits until the address is at hand.
  if (header.type == MessageType::kBegin) {
    return message.parked ? std::optional(Refusal::kOverLimit) : std::nullopt;
  }
  if (const auto refusal = table_.Check(header)) return refusal;
  const bool is_rows = header.type == MessageType::kRows;
  return is_rows && !ChecksumMatches(message.header, {}) ? std::optional(Refusal::kChecksum)
                                                         : std::nullopt;
}

void ReceiveSide::Handle(const MessageHeader& header, Incoming message) {
  if (const std::optional<Refusal> refusal = Check(header, message)) {
    if (message.parked) wiring_->link->Discard(*message.parked);
    return Refuse(header, *refusal);
  }
  if (!message.parked && header.type == MessageType::kRows) {
    const std::shared_ptr<ArrivingRows> rows = Claim(header, message.header);
    rows->Write(0, message.payload);
    return DeliverRows(header, *rows);
  }
  if (!message.parked) return Deliver(header, message.header, message.payload);
  Pending pending{header, std::move(message.header), *message.parked};
  if (waiting_.empty() && MayFetch()) return Fetch(std::move(pending));
  if (waiting_.size() >= wiring_->limits.waiting_messages) {
    wiring_->link->Discard(pending.parked);
    return Refuse(header, Refusal::kOverLimit);
  }
  waiting_.push_back(std::move(pending));
}

bool ReceiveSide::MayFetch() const {
  return fetching_.size() < static_cast<size_t>(wiring_->limits.fetches);
}

std::shared_ptr<ArrivingRows> ReceiveSide::Claim(const MessageHeader& header,
                                                 std::span<const uint8_t> header_bytes) {
  HeaderBytes bytes;
  std::copy_n(header_bytes.begin(), bytes.size(), bytes.begin());
  return table_.Claim(header, bytes);
}

void ReceiveSide::Fetch(Pending pending) {
  const uint64_t cookie = next_cookie_++, parked = pending.parked;
  Pending& fetched = fetching_.emplace(cookie, std::move(pending)).first->second;
  if (fetched.header.type == MessageType::kRows) {
    fetched.rows = Claim(fetched.header, fetched.header_bytes);
    return wiring_->link->ReceiveRows(parked, fetched.rows, cookie);
  }
  Buffer buffer = buffers_.Take(fetched.header.payload_bytes);
  TRIVIUM_CHECK(!buffer.empty(), "more payloads are fetched than may be");
  wiring_->link->Receive(parked, std::move(buffer), cookie);
}

void ReceiveSide::OnReceived(uint64_t cookie, Buffer buffer, bool ok) {
  auto node = fetching_.extract(cookie);
  TRIVIUM_CHECK(!node.empty(), "a payload was received twice");
  if (!ok) return;  // the connection has failed; whoever watches the peer ends the landing
  const Pending& pending = node.mapped();
  if (pending.rows != nullptr) return DeliverRows(pending.header, *pending.rows);
  Deliver(pending.header, pending.header_bytes, buffer.bytes());
}

void ReceiveSide::Deliver(const MessageHeader& header, std::span<const uint8_t> header_bytes,
                          std::span<const uint8_t> payload) {
  wiring_->tally->bytes_received += static_cast<int64_t>(header_bytes.size() + payload.size());
  if (!ChecksumMatches(header_bytes, payload)) return Refuse(header, Refusal::kChecksum);
  if (header.type == MessageType::kBegin) return DeliverBegin(header, payload);
  // Again: the landing may have ended while the payload was on its way.
  if (const auto refusal = table_.Check(header)) return Refuse(header, *refusal);
  if (header.type == MessageType::kAbort) {
    return End(header.landing_id, header.refusal == Refusal::kChecksum
                                      ? absl::DataLossError("a message of the transfer was damaged")
                                      : absl::AbortedError("the sender gave the transfer up"));
  }
  table_.Finish(header, payload);
  Conclude(header);
}

void ReceiveSide::DeliverBegin(const MessageHeader& header, std::span<const uint8_t> address) {
  const auto from = DecodeAddress(std::string(address.begin(), address.end()), wiring_->kind);
  if (!from.ok() || from->transport_id != header.source) {
    return Refuse(header, Refusal::kMalformed);
  }
  if (!wiring_->peers->Reach(header.source, from->link).ok()) {
    return Refuse(header, Refusal::kOverLimit);
  }
  wiring_->peers->Heard(header.source);
  if (const auto refusal = table_.Check(header)) return Refuse(header, *refusal);
  table_.Begin(header);
  wiring_->peers->Hold(header.source);
  Acknowledge(header, kBeginSequence);
}

void ReceiveSide::DeliverRows(const MessageHeader& header, ArrivingRows& rows) {
  wiring_->tally->bytes_received += static_cast<int64_t>(kHeaderBytes + rows.bytes());
  const bool is_right = rows.IsRight();
  // The landing may have ended while they were on their way; then their blocks are nobody's.
  if (table_.Find(header.landing_id) == nullptr) {
    return Refuse(header, is_right ? Refusal::kUnknownLanding : Refusal::kChecksum);
  }
  if (!is_right) {
    rows.Erase();
    table_.Reject(header);
    return Refuse(header, Refusal::kChecksum);
  }
  table_.Land(header);
  Acknowledge(header, header.sequence);
  Conclude(header);
}

void ReceiveSide::Conclude(const MessageHeader& header) {
  auto outcome = table_.Outcome(header.landing_id);
  if (!outcome) return;
  if (outcome->ok()) {
    Acknowledge(header, kFinishSequence);
  } else {
    TellSender(header.landing_id);
  }
  End(header.landing_id, *std::move(outcome));
}

void ReceiveSide::Refuse(const MessageHeader& header, Refusal refusal) {
  wiring_->tally->Refuse(refusal);
  MessageHeader answer = header;
  answer.type = MessageType::kRefused;
  answer.refusal = refusal;
  answer.kv_complete = false;
  wiring_->tally->bytes_sent += wiring_->peers->Post(header.source, answer);
}

void ReceiveSide::Acknowledge(const MessageHeader& header, uint64_t sequence) {
  MessageHeader answer = header;
  answer.type = MessageType::kAck;
  answer.sequence = sequence;
  answer.kv_complete = false;
  wiring_->tally->bytes_sent += wiring_->peers->Post(header.source, answer);
}

void ReceiveSide::TellSender(uint64_t id) {
  const Landing* landing = table_.Find(id);
  if (landing == nullptr || !landing->begun) return;
  MessageHeader answer;
  answer.type = MessageType::kRefused;
  answer.refusal = Refusal::kUnknownLanding;
  answer.epoch = wiring_->epoch.value;
  answer.landing_id = id;
  answer.sender_id = landing->sender_id;
  answer.secret = landing->options.credentials.secret;
  wiring_->tally->bytes_sent += wiring_->peers->Post(landing->source, answer);
}

void ReceiveSide::End(uint64_t id, absl::StatusOr<Arrival> outcome) {
  const Landing* landing = table_.Find(id);
  if (landing == nullptr) return;
  if (landing->begun) wiring_->peers->Release(landing->source);
  --wiring_->tally->landings_open;
  table_.End(id, std::move(outcome));
}

void ReceiveSide::Turn() {
  while (!waiting_.empty()) {
    if (const auto refusal = table_.Check(waiting_.front().header)) {
      wiring_->link->Discard(waiting_.front().parked);
      Refuse(waiting_.front().header, *refusal);
      waiting_.pop_front();
      continue;
    }
    if (!MayFetch()) break;
    Pending pending = std::move(waiting_.front());
    waiting_.pop_front();
    Fetch(std::move(pending));
  }
  for (const uint64_t id : table_.Unused(wiring_->clock->Now(), wiring_->timeouts.unused_ticket)) {
    ++wiring_->tally->landings_expired;
    End(id, absl::DeadlineExceededError("no sender has reached the landing"));
  }
}

void ReceiveSide::PeerLost(uint64_t source, const std::string& reason) {
  for (const uint64_t id : table_.OfPeer(source)) {
    End(id, Unavailable("the sender was lost: {}", reason));
  }
}

void ReceiveSide::EndAll(const absl::Status& status) {
  for (auto& pending : waiting_) wiring_->link->Discard(pending.parked);
  waiting_.clear();
  for (const uint64_t id : table_.All()) {
    TellSender(id);
    End(id, status);
  }
}

}  // namespace trivium::transfer

#include "common/transfer/receive_side.h"

#include "common/transfer/outgoing.h"

namespace trivium::transfer {

ReceiveSide::ReceiveSide(Wiring* wiring)
    : wiring_(wiring),
      table_(wiring->rows, wiring->epoch),
      buffers_(kMaxPayloadBytes, wiring->limits.receive_buffers) {}

void ReceiveSide::Add(uint64_t id, LandingOptions options) {
  table_.Add(id, std::move(options), wiring_->clock->Now());
}

void ReceiveSide::Withdraw(uint64_t id) {
  TellSender(id);
  End(id, absl::CancelledError("the landing was withdrawn"));
}

void ReceiveSide::Handle(const MessageHeader& header, Incoming message) {
  std::optional<Refusal> refusal = table_.Check(header);
  // A Begin carries the address to answer to, so its refusal waits until the address is at hand.
  if (header.type == MessageType::kBegin) refusal = std::nullopt;
  if (!refusal && message.parked && header.type == MessageType::kBegin) {
    refusal = Refusal::kOverLimit;
  }
  if (refusal) {
    if (message.parked) wiring_->link->Discard(*message.parked);
    return Refuse(header, *refusal);
  }
  if (!message.parked) return Deliver(header, message.header, message.payload);
  Pending pending{header, std::move(message.header), *message.parked};
  if (waiting_.empty()) {
    Buffer buffer = buffers_.Take(header.payload_bytes);
    if (!buffer.empty()) return Fetch(std::move(pending), std::move(buffer));
  }
  if (waiting_.size() >= wiring_->limits.waiting_messages) {
    wiring_->link->Discard(pending.parked);
    return Refuse(header, Refusal::kOverLimit);
  }
  waiting_.push_back(std::move(pending));
}

void ReceiveSide::Fetch(Pending pending, Buffer buffer) {
  const uint64_t cookie = next_cookie_++, parked = pending.parked;
  fetching_.emplace(cookie, std::move(pending));
  wiring_->link->Receive(parked, std::move(buffer), cookie);
}

void ReceiveSide::OnReceived(uint64_t cookie, Buffer buffer, bool ok) {
  auto node = fetching_.extract(cookie);
  TRIVIUM_CHECK(!node.empty(), "a payload was received twice");
  if (!ok) return;  // the connection has failed; whoever watches the peer ends the landing
  const Pending& pending = node.mapped();
  Deliver(pending.header, pending.header_bytes, buffer.bytes());
}

void ReceiveSide::Deliver(const MessageHeader& header, std::span<const uint8_t> header_bytes,
                          std::span<const uint8_t> payload) {
  wiring_->tally->bytes_received += static_cast<int64_t>(header_bytes.size() + payload.size());
  if (!ChecksumMatches(header_bytes, payload)) return Refuse(header, Refusal::kChecksum);
  if (header.type == MessageType::kBegin) return DeliverBegin(header, payload);
  // Again: the landing may have ended, or the same rows landed, while the payload was on its way.
  if (const auto refusal = table_.Check(header)) return Refuse(header, *refusal);
  Apply(header, payload);
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

void ReceiveSide::Apply(const MessageHeader& header, std::span<const uint8_t> payload) {
  const uint64_t id = header.landing_id;
  switch (header.type) {
    case MessageType::kRows:
      table_.Land(header, payload.first(payload.size() - kSealBytes));
      Acknowledge(header, header.sequence);
      break;
    case MessageType::kFinish:
      table_.Finish(header, payload);
      break;
    case MessageType::kAbort:
      End(id, header.refusal == Refusal::kChecksum
                  ? absl::DataLossError("a message of the transfer was damaged")
                  : absl::AbortedError("the sender gave the transfer up"));
      return;
    default:
      return;
  }
  if (auto outcome = table_.Outcome(id)) {
    if (outcome->ok()) {
      Acknowledge(header, kFinishSequence);
    } else {
      TellSender(id);
    }
    End(id, *std::move(outcome));
  }
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
    Buffer buffer = buffers_.Take(waiting_.front().header.payload_bytes);
    if (buffer.empty()) break;
    Pending pending = std::move(waiting_.front());
    waiting_.pop_front();
    Fetch(std::move(pending), std::move(buffer));
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

#include "common/transfer/engine.h"

namespace trivium::transfer {

TransferCounters Tally::Snapshot() const {
  TransferCounters counters;
  for (size_t i = 0; i < refused.size(); ++i) counters.refused[i] = refused[i];
  counters.bytes_sent = bytes_sent;
  counters.bytes_received = bytes_received;
  counters.landings_open = landings_open;
  counters.senders_open = senders_open;
  counters.landings_expired = landings_expired;
  counters.peers_lost = peers_lost;
  counters.peers_suspect = peers_suspect;
  return counters;
}

Engine::Engine(Wiring* wiring) : wiring_(wiring), receive_side_(wiring), send_side_(wiring) {}

void Engine::OnMessage(Incoming message) {
  if (messages_.size() >= wiring_->limits.waiting_messages) {
    return Refuse(message, Refusal::kOverLimit);
  }
  messages_.push_back(std::move(message));
}

void Engine::OnReceived(uint64_t cookie, Buffer buffer, bool ok) {
  received_.push_back({cookie, std::move(buffer), ok});
}

void Engine::OnConnectionLost(Connection connection) { lost_connections_.push_back(connection); }

void Engine::Refuse(const Incoming& message, Refusal refusal) {
  wiring_->tally->Refuse(refusal);
  if (message.parked) wiring_->link->Discard(*message.parked);
}

void Engine::HandleMessage(Incoming message) {
  const auto decoded = DecodeHeader(message.header);
  if (!decoded || decoded->header.payload_bytes != message.payload_bytes) {
    return Refuse(message, Refusal::kMalformed);
  }
  const MessageHeader& header = decoded->header;
  if (message.payload_bytes > MaxPayload(header.type)) return Refuse(message, Refusal::kOverLimit);
  wiring_->peers->Heard(header.source);
  switch (header.type) {
    case MessageType::kBegin:
    case MessageType::kRows:
    case MessageType::kFinish:
    case MessageType::kAbort:
      return receive_side_.Handle(header, std::move(message));
    default:
      break;
  }
  if (!ChecksumMatches(message.header, {})) return Refuse(message, Refusal::kChecksum);
  if (header.type == MessageType::kPing) {
    MessageHeader pong;
    pong.type = MessageType::kPong;
    wiring_->peers->Post(header.source, pong);
  } else if (header.type != MessageType::kPong) {
    send_side_.Handle(header);
  }
}

bool Engine::Turn() {
  while (!received_.empty()) {
    Received received = std::move(received_.front());
    received_.pop_front();
    receive_side_.OnReceived(received.cookie, std::move(received.buffer), received.ok);
  }
  while (!messages_.empty()) {
    Incoming message = std::move(messages_.front());
    messages_.pop_front();
    HandleMessage(std::move(message));
  }
  for (const Connection connection : std::exchange(lost_connections_, {})) {
    if (const uint64_t peer = wiring_->peers->Owner(connection); peer != 0) {
      Lose(peer, "its connection failed");
    }
  }
  receive_side_.Turn();
  std::vector<PeerTable::Lost> lost = wiring_->peers->Sweep();
  const bool more = send_side_.Turn(&lost);
  for (const auto& [peer, reason] : lost) Lose(peer, reason);
  wiring_->tally->peers_suspect = wiring_->peers->AnyWatched() ? wiring_->peers->Suspects() : 0;
  return more;
}

void Engine::Lose(uint64_t peer, const std::string& reason) {
  if (!wiring_->peers->Knows(peer)) return;
  ++wiring_->tally->peers_lost;
  wiring_->peers->Drop(peer);
  receive_side_.PeerLost(peer, reason);
  send_side_.PeerLost(peer, reason);
}

Duration Engine::MaxSleep() const {
  const bool idle = !receive_side_.Busy() && !send_side_.Busy() && !wiring_->peers->AnyWatched();
  return idle ? Duration(std::chrono::seconds(1)) : wiring_->timeouts.heartbeat / 8;
}

void Engine::Shutdown() {
  const absl::Status closing = absl::CancelledError("the transport is closing");
  receive_side_.EndAll(closing);
  send_side_.EndAll(closing);
}

}  // namespace trivium::transfer

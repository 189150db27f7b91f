#include "common/transfer/raw_peer.h"

#include <cstring>

#include "common/transfer/loop.h"

namespace trivium::transfer {

RawPeer::RawPeer(const Backend& backend, const std::string& transport_address)
    : id_(DrawTransportId()) {
  auto link = backend.MakeLink();
  TRIVIUM_CHECK(link.ok(), "{}", Message(link.status()));
  link_ = *std::move(link);
  address_ = EncodeAddress({backend.kind, id_, link_->address()});
  const auto to = DecodeAddress(transport_address, backend.kind);
  TRIVIUM_CHECK(to.ok(), "{}", Message(to.status()));
  const auto connection = link_->Connect(to->link);
  TRIVIUM_CHECK(connection.ok(), "{}", Message(connection.status()));
  connection_ = *connection;
}

MessageHeader RawPeer::HeaderFor(MessageType type, const Ticket& ticket,
                                 const Credentials& who) const {
  MessageHeader header;
  header.type = type;
  header.source = id_;
  header.epoch = ticket.epoch.value;
  header.landing_id = ticket.landing_id;
  header.sender_id = 1;
  header.request_hash = HashRequest(who.request);
  header.secret = who.secret;
  header.generation = ticket.generation;
  header.attempt = who.attempt.value;
  return header;
}

std::optional<MessageHeader> RawPeer::Begin(const MessageHeader& header) {
  SendMessage(header, {address_.begin(), address_.end()});
  return NextAnswer();
}

std::vector<uint8_t> Sealed(MessageHeader* header, std::vector<uint8_t> rows) {
  header->payload_bytes = static_cast<uint32_t>(rows.size() + kSealBytes);
  SealedRows sealed(EncodeHeader(*header, {}), {rows}, nullptr);
  std::vector<uint8_t> payload(sealed.bytes());
  sealed.Read(0, payload);
  return payload;
}

void RawPeer::SendMessage(MessageHeader header, std::vector<uint8_t> payload) {
  if (header.type == MessageType::kRows) payload = Sealed(&header, std::move(payload));
  header.payload_bytes = static_cast<uint32_t>(payload.size());
  SendBytes(EncodeHeader(header, payload), payload);
}

void RawPeer::SendBytes(std::span<const uint8_t> header, std::span<const uint8_t> payload) {
  Buffer buffer;
  if (!payload.empty()) {
    buffer = buffers_.Take(payload.size());
    TRIVIUM_CHECK(!buffer.empty(), "a raw peer sends faster than the wire");
    std::memcpy(buffer.bytes().data(), payload.data(), payload.size());
  }
  link_->Send(connection_, header, std::move(buffer));
}

std::optional<MessageHeader> RawPeer::NextAnswer() {
  if (!DriveUntil([&] { return !answers_.empty(); })) return std::nullopt;
  const MessageHeader answer = answers_.front();
  answers_.pop_front();
  return answer;
}

bool RawPeer::DriveUntil(const std::function<bool()>& done) {
  const TimePoint until = Clock::Real().Now() + std::chrono::seconds(10);
  while (!done()) {
    if (Clock::Real().Now() > until) return false;
    if (!link_->Progress(*this)) link_->Wait(std::chrono::milliseconds(1));
  }
  return true;
}

void RawPeer::OnMessage(Incoming message) {
  const auto decoded = DecodeHeader(message.header);
  if (!decoded) return;
  if (decoded->header.type == MessageType::kPing) {
    MessageHeader pong;
    pong.type = MessageType::kPong;
    pong.source = id_;
    SendMessage(pong, {});
  } else {
    answers_.push_back(decoded->header);
  }
}

}  // namespace trivium::transfer

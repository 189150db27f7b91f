// A peer with a real endpoint and no manners: sends a transport whatever bytes a test wants and
// shows what comes back. Thread-safety: none; the test's thread drives it.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/transfer/address.h"
#include "common/transfer/testing.h"
#include "common/transfer/wire.h"

namespace trivium::transfer {

// The payload of a Rows message; its size goes into the header.
std::vector<uint8_t> Sealed(MessageHeader* header, std::vector<uint8_t> rows);

class RawPeer final : private LinkEvents {
 public:
  RawPeer(const Backend& backend, const std::string& transport_address);

  uint64_t id() const { return id_; }
  // As a sender that holds this ticket would address its landing.
  MessageHeader HeaderFor(MessageType type, const Ticket& ticket, const Credentials& who) const;
  // Sends a Begin and waits for the answer. Nothing: no answer came.
  std::optional<MessageHeader> Begin(const MessageHeader& header);
  // Rows get their seal here.
  void SendMessage(MessageHeader header, std::vector<uint8_t> payload);
  void SendBytes(std::span<const uint8_t> header, std::span<const uint8_t> payload);
  // The next Ack or Refused; pings are answered on the way. Nothing after ten seconds.
  std::optional<MessageHeader> NextAnswer();
  // Lets the wire work until the condition holds; false after ten seconds.
  bool DriveUntil(const std::function<bool()>& done);

 private:
  void OnMessage(Incoming message) override;
  void OnReceived(uint64_t, Buffer, bool) override {}
  void OnConnectionLost(Connection) override {}

  uint64_t id_;
  BufferPool buffers_{4 * kMaxPayloadBytes, 64};
  std::unique_ptr<Link> link_;
  std::string address_;
  Connection connection_ = 0;
  std::deque<MessageHeader> answers_;
};

}  // namespace trivium::transfer

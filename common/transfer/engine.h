// The protocol of a transport on one thread: takes events of a link and commands of its owner, runs
// both halves, the heartbeats and the timeouts. Driven by a loop or, in tests, by hand with a
// virtual clock. Thread-safety: none; one thread owns it.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "common/transfer/receive_side.h"
#include "common/transfer/send_side.h"
#include "common/transfer/wiring.h"

namespace trivium::transfer {

class Engine final : public LinkEvents {
 public:
  // `wiring` and what it points to outlive the engine.
  explicit Engine(Wiring* wiring);

  ReceiveSide& receive_side() { return receive_side_; }
  SendSide& send_side() { return send_side_; }

  // Link events are only noted here, so that commands given before a message came run before it.
  void OnMessage(Incoming message) override;
  void OnReceived(uint64_t cookie, Buffer buffer, bool ok) override;
  void OnConnectionLost(Connection connection) override;

  // Works off what was noted, sweeps timeouts, sends. True: call again at once.
  bool Turn();
  // How long the loop may sleep when nothing happens.
  Duration MaxSleep() const;
  // Ends every transfer and landing with CANCELLED, telling the other sides. The link still has
  // those last messages to send.
  void Shutdown();

 private:
  void HandleMessage(Incoming message);
  void Refuse(const Incoming& message, Refusal refusal);
  void Lose(uint64_t peer, const std::string& reason);

  struct Received {
    uint64_t cookie;
    Buffer buffer;
    bool ok;
  };
  Wiring* wiring_;
  ReceiveSide receive_side_;
  SendSide send_side_;
  std::deque<Incoming> messages_;
  std::deque<Received> received_;
  std::vector<Connection> lost_connections_;
};

}  // namespace trivium::transfer

// Moves messages between two transports; knows nothing of landings or rows. The same protocol runs
// on every link, and tests reach a transport through a bare link to send it what no transport
// would.
//
// Thread-safety: one thread drives a link, except Wake(). Nothing blocks but Wait(). Events are
// handed out by Progress() only, never from inside another call.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "common/transfer/buffers.h"
#include "common/transfer/sealed_rows.h"
#include "common/transfer/wire.h"

namespace trivium::transfer {

// A connection of this link; never used twice.
using Connection = uint64_t;

// A message that has been announced. Small payloads come with it; of larger ones only the size is
// known until Receive() fetches them.
struct Incoming {
  std::vector<uint8_t> header;  // at most kHeaderBytes + 1: longer ones are cut, and so refused
  size_t payload_bytes = 0;
  std::vector<uint8_t> payload;    // whole, when `parked` is nothing
  std::optional<uint64_t> parked;  // names the payload that waits at the other side
};

class LinkEvents {
 public:
  virtual ~LinkEvents() = default;
  virtual void OnMessage(Incoming message) = 0;
  // The answer to Receive. `ok`: the whole payload is where it belongs; else what is there means
  // nothing.
  virtual void OnReceived(uint64_t cookie, Buffer buffer, bool ok) = 0;
  // The other side has gone. The connection still wants its ForceClose.
  virtual void OnConnectionLost(Connection connection) = 0;
};

class Link {
 public:
  // Closes every connection; when it returns, no buffer is in use by the wire any more.
  virtual ~Link() = default;
  // Where other links of this kind reach this one; opaque.
  virtual const std::string& address() const = 0;

  virtual absl::StatusOr<Connection> Connect(const std::string& address) = 0;
  // Queues a message; an unknown or lost connection swallows it. The link holds the buffer until
  // the wire needs it no longer. Payloads up to kInlineBytes go with the header.
  virtual void Send(Connection connection, std::span<const uint8_t> header, Buffer payload) = 0;
  // Whether rows reach this peer faster out of their pages than out of a buffer; only then may
  // SendRows be called.
  virtual bool ReadsRows(Connection) const { return false; }
  virtual void SendRows(Connection, std::span<const uint8_t>, SealedRows) {
    TRIVIUM_CHECK(false, "this link does not read rows");
  }
  // Fetches a parked payload into a buffer of exactly its size; OnReceived follows, always.
  virtual void Receive(uint64_t parked, Buffer into, uint64_t cookie) = 0;
  // The same into rows; OnReceived comes with an empty buffer.
  virtual void ReceiveRows(uint64_t parked, std::shared_ptr<ArrivingRows> into,
                           uint64_t cookie) = 0;
  virtual void Discard(uint64_t parked) = 0;
  // Ends a connection without asking the other side. What is in flight on it ends with ok = false.
  virtual void ForceClose(Connection connection) = 0;
  // Whether the wire still works on memory of ours that ForceClose would give back.
  virtual bool IsBusy(Connection) const { return false; }

  // Hands out what has happened; true when there was something.
  virtual bool Progress(LinkEvents& events) = 0;
  // Sleeps until something may have happened, Wake(), or the duration has passed.
  virtual void Wait(Duration at_most) = 0;
  virtual void Wake() = 0;
  // Messages and receives that the wire has not ended yet.
  virtual int64_t outstanding() const = 0;
};

inline constexpr size_t kInlineBytes = kMaxAddressBytes;

}  // namespace trivium::transfer

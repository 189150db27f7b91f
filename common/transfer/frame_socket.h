// A TCP socket on which two transports tell each other, once, where their ends of a pipe are. It
// stays open for as long as the pipe: its end tells at once that the other side has gone or given
// up. Never blocks. Thread-safety: none; one thread owns it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/base/status.h"
#include "common/transfer/transport.h"

namespace trivium::transfer {

class FrameSocket {
 public:
  FrameSocket() = default;
  explicit FrameSocket(int fd) : fd_(fd) {}
  FrameSocket(FrameSocket&& other) noexcept { Swap(other); }
  FrameSocket& operator=(FrameSocket&& other) noexcept {
    FrameSocket(std::move(other)).Swap(*this);
    return *this;
  }
  ~FrameSocket();

  // "1.2.3.4:567". INVALID_ARGUMENT for anything else, UNAVAILABLE when it fails at once.
  static absl::StatusOr<FrameSocket> Connect(const std::string& address);

  int fd() const { return fd_; }
  // One frame a direction, at most kMaxAddressBytes long.
  void SendFrame(const std::string& frame);
  // Moves what can be moved. False: the other side is gone, or talks nonsense.
  bool Pump();
  // The other side's frame, once it is whole.
  const std::optional<std::string>& frame() const { return frame_; }

 private:
  void Swap(FrameSocket& other) noexcept;
  bool Read();
  bool Write();

  int fd_ = -1;
  bool broken_ = false;
  std::string out_, in_;
  std::optional<std::string> frame_;
};

// Where peers of one interface reach this process.
class FrameListener {
 public:
  FrameListener() = default;
  FrameListener(const FrameListener&) = delete;
  FrameListener& operator=(const FrameListener&) = delete;
  ~FrameListener();

  // On the first free port of the range. UNAVAILABLE when there is none, or no such interface, or
  // it has no IPv4 address.
  absl::Status Listen(const std::string& interface, PortRange ports);
  const std::string& address() const { return address_; }
  int fd() const { return fd_; }
  std::optional<FrameSocket> Accept();

 private:
  int fd_ = -1;
  std::string address_;
};

}  // namespace trivium::transfer

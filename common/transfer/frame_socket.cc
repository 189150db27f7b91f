#include "common/transfer/frame_socket.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <utility>

#include "common/transfer/wire.h"

namespace trivium::transfer {
namespace {

constexpr size_t kLengthBytes = 4;

absl::StatusOr<sockaddr_in> Parse(const std::string& address) {
  const size_t colon = address.rfind(':');
  sockaddr_in result = {};
  result.sin_family = AF_INET;
  uint16_t port = 0;
  if (colon != std::string::npos) {
    std::from_chars(address.data() + colon + 1, address.data() + address.size(), port);
  }
  if (port == 0 || inet_pton(AF_INET, address.substr(0, colon).c_str(), &result.sin_addr) != 1) {
    return InvalidArgument("transfer address: no host and port");
  }
  result.sin_port = htons(port);
  return result;
}

absl::StatusOr<in_addr> AddressOf(const std::string& interface) {
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return Unavailable("transfer: the interfaces can't be listed");
  std::optional<in_addr> found;
  for (const ifaddrs* one = all; one != nullptr && !found; one = one->ifa_next) {
    if (one->ifa_addr == nullptr || one->ifa_addr->sa_family != AF_INET) continue;
    if (interface != one->ifa_name) continue;
    found = reinterpret_cast<const sockaddr_in*>(one->ifa_addr)->sin_addr;
  }
  freeifaddrs(all);
  if (!found) return Unavailable("transfer: interface '{}' has no IPv4 address", interface);
  return *found;
}

bool BindToOneOf(PortRange ports, int fd, sockaddr_in* at) {
  const int tries = ports.first == 0 ? 1 : ports.count;
  for (int i = 0; i < tries; ++i) {
    at->sin_port = htons(static_cast<uint16_t>(ports.first + i));
    if (bind(fd, reinterpret_cast<sockaddr*>(at), sizeof(*at)) == 0) return true;
    if (errno != EADDRINUSE) return false;
  }
  return false;
}

}  // namespace

FrameSocket::~FrameSocket() {
  if (fd_ >= 0) close(fd_);
}

void FrameSocket::Swap(FrameSocket& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(broken_, other.broken_);
  std::swap(out_, other.out_);
  std::swap(in_, other.in_);
  std::swap(frame_, other.frame_);
}

absl::StatusOr<FrameSocket> FrameSocket::Connect(const std::string& address) {
  ASSIGN_OR_RETURN(const sockaddr_in to, Parse(address));
  FrameSocket result(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (result.fd_ < 0) return Unavailable("transfer: no socket to be had");
  const int rc = connect(result.fd_, reinterpret_cast<const sockaddr*>(&to), sizeof(to));
  if (rc != 0 && errno != EINPROGRESS) return Unavailable("transfer: {} is not there", address);
  return result;
}

void FrameSocket::SendFrame(const std::string& frame) {
  const auto length = static_cast<uint32_t>(frame.size());
  for (size_t i = 0; i < kLengthBytes; ++i) out_.push_back(static_cast<char>(length >> (8 * i)));
  out_ += frame;
}

bool FrameSocket::Pump() {
  broken_ = broken_ || !Write() || !Read();
  return !broken_;
}

bool FrameSocket::Write() {
  while (!out_.empty()) {
    const ssize_t n = send(fd_, out_.data(), out_.size(), MSG_NOSIGNAL);
    if (n < 0) return errno == EAGAIN || errno == EINTR || errno == ENOTCONN;
    out_.erase(0, static_cast<size_t>(n));
  }
  return true;
}

bool FrameSocket::Read() {
  char bytes[1024];
  while (true) {
    const ssize_t n = recv(fd_, bytes, sizeof(bytes), 0);
    if (n < 0) return errno == EAGAIN || errno == EINTR || errno == ENOTCONN;
    if (n == 0 || frame_) return false;
    in_.append(bytes, static_cast<size_t>(n));
    if (in_.size() < kLengthBytes) continue;
    size_t length = 0;
    for (size_t i = 0; i < kLengthBytes; ++i)
      length |= size_t{static_cast<uint8_t>(in_[i])} << (8 * i);
    if (length > kMaxAddressBytes || in_.size() > kLengthBytes + length) return false;
    if (in_.size() == kLengthBytes + length) frame_ = in_.substr(kLengthBytes);
  }
}

FrameListener::~FrameListener() {
  if (fd_ >= 0) close(fd_);
}

absl::Status FrameListener::Listen(const std::string& interface, PortRange ports) {
  sockaddr_in at = {};
  at.sin_family = AF_INET;
  ASSIGN_OR_RETURN(at.sin_addr, AddressOf(interface));
  fd_ = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  socklen_t size = sizeof(at);
  if (fd_ < 0 || !BindToOneOf(ports, fd_, &at) || listen(fd_, 64) != 0 ||
      getsockname(fd_, reinterpret_cast<sockaddr*>(&at), &size) != 0) {
    return Unavailable("transfer: no port to be had on interface '{}'", interface);
  }
  char host[INET_ADDRSTRLEN] = {};
  inet_ntop(AF_INET, &at.sin_addr, host, sizeof(host));
  address_ = fmt::format("{}:{}", host, ntohs(at.sin_port));
  return absl::OkStatus();
}

std::optional<FrameSocket> FrameListener::Accept() {
  const int fd = accept4(fd_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0) return std::nullopt;
  return FrameSocket(fd);
}

}  // namespace trivium::transfer

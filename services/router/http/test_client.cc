#include "services/router/http/test_client.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>

namespace trivium::router::http {

TestClient::TestClient(int port) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const timeval patience{.tv_sec = 10, .tv_usec = 0};
  setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  is_connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
}

void TestClient::Send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
}

void TestClient::SendJson(std::string_view path, std::string_view body) {
  Send(JsonRequest(path, body));
}

bool TestClient::Fill() {
  char bytes[65536];
  const ssize_t got = recv(fd_, bytes, sizeof(bytes), 0);
  if (got <= 0) return false;
  buffer_.append(bytes, static_cast<size_t>(got));
  return true;
}

std::string TestClient::Take(size_t bytes) {
  while (buffer_.size() < bytes && Fill()) {
  }
  const std::string taken = buffer_.substr(0, bytes);
  buffer_.erase(0, taken.size());
  return taken;
}

std::string TestClient::ReadLine() {
  size_t end = 0;
  while ((end = buffer_.find('\n')) == std::string::npos && Fill()) {
  }
  std::string line = Take(end == std::string::npos ? buffer_.size() : end + 1);
  while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
  return line;
}

std::string TestClient::ReadToEnd() {
  while (Fill()) {
  }
  return Take(buffer_.size());
}

std::string TestClient::ReadChunks() {
  std::string body;
  while (true) {
    const size_t size = std::strtoul(ReadLine().c_str(), nullptr, 16);
    body += Take(size);
    ReadLine();
    if (size == 0) return body;
  }
}

Answer TestClient::ReadHead() {
  Answer answer;
  size_t end = 0;
  while ((end = buffer_.find("\r\n\r\n")) == std::string::npos) {
    if (!Fill()) return answer;
  }
  answer.head = Take(end + 4);
  answer.status = std::atoi(answer.head.c_str() + 9);
  return answer;
}

Answer TestClient::Read(bool has_body) {
  Answer answer = ReadHead();
  if (!has_body || answer.status == 0) return answer;
  const size_t length = answer.head.find("Content-Length: ");
  if (length != std::string::npos) {
    answer.body = Take(std::strtoul(answer.head.c_str() + length + 16, nullptr, 10));
  } else if (answer.Has("Transfer-Encoding: chunked")) {
    answer.body = ReadChunks();
  } else if (answer.status >= 200) {
    answer.body = ReadToEnd();
  }
  return answer;
}

void TestClient::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

void TestClient::Reset() {
  const linger hard{.l_onoff = 1, .l_linger = 0};
  setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
  Close();
}

std::string JsonRequest(std::string_view path, std::string_view body) {
  return fmt::format(
      "POST {} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: "
      "{}\r\n\r\n{}",
      path, body.size(), body);
}

}  // namespace trivium::router::http

// Test support: an HTTP client on a bare loopback socket, so that a test decides over every byte.
// Reads give up after ten seconds. Thread-safety: none.
#pragma once

#include <string>
#include <string_view>

namespace trivium::router::http {

struct Answer {
  int status = 0;  // 0: the connection ended before a whole answer
  std::string head, body;
  bool Has(std::string_view line) const { return head.find(line) != std::string::npos; }
};

class TestClient {
 public:
  explicit TestClient(int port);
  ~TestClient() { Close(); }
  TestClient(const TestClient&) = delete;
  TestClient& operator=(const TestClient&) = delete;

  bool is_connected() const { return is_connected_; }
  void Send(std::string_view bytes);  // what the server no longer takes is dropped
  void SendJson(std::string_view path, std::string_view body);
  // The next answer; `has_body` false after a HEAD.
  Answer Read(bool has_body = true);
  Answer ReadHead();
  // One line without its end, or what there is when the connection ends.
  std::string ReadLine();
  std::string ReadToEnd();
  void Close();
  void Reset();  // the hard way: what is in flight is lost

 private:
  bool Fill();
  std::string Take(size_t bytes);
  std::string ReadChunks();

  int fd_ = -1;
  bool is_connected_ = false;
  std::string buffer_;
};

// A POST of `body` as application/json.
std::string JsonRequest(std::string_view path, std::string_view body);

}  // namespace trivium::router::http

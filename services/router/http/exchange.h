// One request's answer on its way from whoever makes it to the connection that writes it.
//
// The answer is one Send, or one BeginStream, any number of Writes and one End. The connection
// takes what is ready whenever its last write is over; after Close nothing is taken, and whoever
// still writes learns so at once. What waits is bounded by the writer: it writes again after
// `done`. Thread-safety: all methods, any thread. Knows no HTTP library.
#pragma once

#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "services/router/http/message.h"

namespace trivium::router::http {

class Exchange {
 public:
  // Whether the bytes were handed to the network; false: the client has left.
  using Done = std::function<void(bool ok)>;

  // `wake` is called under the lock when something is ready, never after Close: it must only post.
  explicit Exchange(std::function<void()> wake) : wake_(std::move(wake)) {}

  // The maker's side.
  void Send(Response response);
  void BeginStream(Response head);  // without its body
  void Write(std::string bytes, Done done);
  void End();
  // Called once when the client leaves before the end, at once if it has left already.
  void OnGone(std::function<void()> call);

  // The connection's side.
  struct Ready {
    std::optional<Response> whole, head;
    std::string bytes;
    std::vector<Done> done;  // of `bytes`
    bool is_end = false;     // nothing follows
    bool is_empty() const { return !whole && !head && bytes.empty() && !is_end; }
  };
  Ready Take();
  void Close(bool is_gone);

 private:
  void Wake() {
    if (!is_closed_) wake_();
  }

  const std::function<void()> wake_;
  std::mutex mutex_;
  Ready ready_;
  std::function<void()> on_gone_;
  bool is_closed_ = false, is_gone_ = false;
};

}  // namespace trivium::router::http

// One client's connection: a coroutine that reads a request, has it handled, writes the answer, and
// goes on to the next. Only for the .cc files of this folder: it brings in Asio and Beast.
//
// Bytes that come while an answer is being made stay in the buffer until their turn, up to a bound;
// then the client's kernel has to keep them, and a client that leaves is noticed by the next write.
// Thread-safety: none; everything runs on the server's thread.
#pragma once

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <memory>
#include <optional>
#include <string>

#include "services/router/http/exchange.h"
#include "services/router/http/http_metrics.h"
#include "services/router/http/server.h"

namespace trivium::router::http {

// What the connections of a server share.
struct Shared {
  Limits limits;
  Handler* handler = nullptr;
  HttpMetrics* metrics = nullptr;
  bool is_draining = false;
  // Of bodies that are being read or are still held; at most body_memory_bytes. Grows on the
  // server's thread, shrinks on any, possibly after the server's end.
  std::shared_ptr<std::atomic<size_t>> body_bytes = std::make_shared<std::atomic<size_t>>(0);
};

class Connection final : public std::enable_shared_from_this<Connection> {
 public:
  using Socket = boost::asio::ip::tcp::socket;
  Connection(Socket socket, Shared* shared);

  boost::asio::awaitable<void> Run();  // until the connection is closed
  void Drain();                        // closes now where nothing was asked, else after the answer
  void Abort();

 private:
  template <typename T>
  using Awaitable = boost::asio::awaitable<T>;
  using Error = boost::system::error_code;

  Awaitable<bool> ServeOne();  // false: close
  Awaitable<bool> AwaitBytes();
  Awaitable<bool> ReadHead(RequestHead* head);
  Awaitable<bool> ReadBody();
  Awaitable<bool> RefuseRequest(Response response, bool has_unread);
  Awaitable<bool> RefuseError(const Error& error, Refusal late, Refusal large);
  Awaitable<bool> Answer(Request request);
  Awaitable<bool> WriteReady(Exchange::Ready ready);
  Awaitable<bool> WriteAll(std::string bytes);
  Awaitable<void> Linger();
  Awaitable<void> Sleep();
  std::string HeadOf(const Response& response, bool is_stream);
  bool ReserveBody();
  std::shared_ptr<const std::string> TakeBody();

  void StartWatch();
  void OnWatched(const Error& error, size_t bytes);
  Awaitable<void> StopWatch();
  void Wake() { wake_.cancel(); }
  void Arm(Duration timeout);  // from now on, until Disarm
  void Disarm();

  Socket socket_;
  Shared& shared_;
  boost::asio::steady_timer deadline_, wake_;
  boost::beast::flat_buffer buffer_;
  std::optional<boost::beast::http::request_parser<boost::beast::http::string_body>> parser_;
  std::shared_ptr<Exchange> exchange_;  // while an answer is being made
  size_t body_reserved_ = 0;            // of shared_.body_bytes, while the body is being read
  bool is_late_ = false;                // a deadline has passed
  bool is_idle_ = false;                // between two requests
  bool is_watching_ = false, is_gone_ = false;
  bool keeps_alive_ = true, is_head_ = false, is_chunked_ = false;
  bool is_first_ = true;
};

}  // namespace trivium::router::http

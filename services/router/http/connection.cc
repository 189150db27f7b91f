#include "services/router/http/connection.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/rfc7230.hpp>
#include <ctime>
#include <memory>
#include <utility>

namespace trivium::router::http {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace bhttp = boost::beast::http;

constexpr auto kUse = asio::as_tuple(asio::use_awaitable);
// Of later requests, while an answer is being made.
constexpr size_t kAheadBytes = 64 << 10;
// Each piece has its own write timeout, so that a reader is bound by a rate and not by a size.
constexpr size_t kPieceBytes = 16 << 10;
// A connection that is closed with unread bytes resets, and its last answer may be lost with it: so
// that much is read first, for so long.
constexpr size_t kLingerBytes = 1 << 20;
constexpr Duration kLinger = std::chrono::seconds(2);

std::string Lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

std::string Text(beast::string_view text) { return {text.data(), text.size()}; }

std::string Date() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[40];
  return {text, std::strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &parts)};
}

// Error of the request itself, in words; empty when there is none.
std::string_view FaultOf(const bhttp::request_header<>& head) {
  if (head.version() >= 11 && head.count(bhttp::field::host) != 1) {
    return "exactly one Host header is needed";
  }
  const bool has_coding = head.count(bhttp::field::transfer_encoding) > 0;
  const bool is_chunked = beast::iequals(head[bhttp::field::transfer_encoding], "chunked");
  if (has_coding && (!is_chunked || head.version() < 11)) {
    return "Transfer-Encoding: chunked alone is understood, in HTTP/1.1";
  }
  return {};
}

template <typename Name>
std::vector<std::string> ValuesOf(const bhttp::request_header<>& head, Name name) {
  std::vector<std::string> values;
  const auto [begin, end] = head.equal_range(name);
  for (auto it = begin; it != end; ++it) values.push_back(Text(it->value()));
  return values;
}

std::optional<RequestHead> Describe(const bhttp::request_header<>& head) {
  RequestHead out;
  out.method = head.method() == bhttp::verb::head ? "GET" : Text(head.method_string());
  std::optional<std::string> path = DecodePath({head.target().data(), head.target().size()});
  if (!path.has_value()) return std::nullopt;
  out.path = *std::move(path);
  std::string type = Lower(Text(head[bhttp::field::content_type]));
  type.resize(std::min(type.size(), type.find(';')));
  type.erase(type.find_last_not_of(" \t") + 1);
  out.content_type = std::move(type);
  out.content_encoding = Lower(Text(head[bhttp::field::content_encoding]));
  out.authorization = ValuesOf(head, bhttp::field::authorization);
  out.x_api_key = ValuesOf(head, "x-api-key");
  return out;
}

bool IsGone(const boost::system::error_code& error) {
  return error == bhttp::error::end_of_stream || error == bhttp::error::partial_message ||
         error.category() != make_error_code(bhttp::error::end_of_stream).category();
}

}  // namespace

Connection::Connection(Socket socket, Shared* shared)
    : socket_(std::move(socket)),
      shared_(*shared),
      deadline_(socket_.get_executor()),
      wake_(socket_.get_executor()),
      buffer_(shared->limits.header_bytes_max + kAheadBytes) {}

asio::awaitable<void> Connection::Run() {
  bool goes_on = true;
  while (goes_on) goes_on = co_await ServeOne();
  Disarm();
  Error ignored;
  socket_.close(ignored);
}

void Connection::Drain() {
  Error ignored;
  if (is_idle_) socket_.cancel(ignored);
}

void Connection::Abort() {
  is_gone_ = true;
  if (exchange_ != nullptr) exchange_->Close(true);
  Error ignored;
  socket_.close(ignored);
  Wake();
}

// ---- Deadlines and waiting ----

void Connection::Arm(Duration timeout) {
  is_late_ = false;
  deadline_.expires_after(timeout);
  deadline_.async_wait([weak = weak_from_this()](const Error& error) {
    const auto self = weak.lock();
    // The timer may have been set anew after it went off.
    if (error || self == nullptr) return;
    if (self->deadline_.expiry() > std::chrono::steady_clock::now()) return;
    self->is_late_ = true;
    Error ignored;
    self->socket_.cancel(ignored);
  });
}

void Connection::Disarm() { deadline_.expires_at(std::chrono::steady_clock::time_point::max()); }

asio::awaitable<void> Connection::Sleep() {
  wake_.expires_at(std::chrono::steady_clock::time_point::max());
  co_await wake_.async_wait(kUse);
}

// ---- Reading ----

asio::awaitable<bool> Connection::ServeOne() {
  const bool has_bytes = co_await AwaitBytes();
  if (!has_bytes) co_return false;
  RequestHead head;
  const bool has_head = co_await ReadHead(&head);
  if (!has_head) co_return false;
  const bool has_body = !parser_->is_done();
  std::optional<Response> refusal = shared_.handler->Refuse(head);
  if (!refusal.has_value() && !ReserveBody()) {
    shared_.metrics->Refused(Refusal::kBodyMemory);
    refusal = shared_.handler->Error(503, "too many request bodies are held at the moment");
  }
  if (refusal.has_value()) {
    const bool goes_on = co_await RefuseRequest(*std::move(refusal), has_body);
    co_return goes_on;
  }
  bool goes_on = true;
  if (has_body) goes_on = co_await ReadBody();
  Request request{std::move(head), TakeBody()};
  if (goes_on) goes_on = co_await Answer(std::move(request));
  co_return goes_on;
}

// A client that has connected and says nothing gets no longer than one that is slow to say it.
asio::awaitable<bool> Connection::AwaitBytes() {
  const bool is_first = std::exchange(is_first_, false);
  if (shared_.is_draining) co_return false;
  if (buffer_.size() > 0) co_return true;
  Arm(is_first ? shared_.limits.header_timeout : shared_.limits.idle_timeout);
  is_idle_ = true;
  const auto [error] = co_await socket_.async_wait(Socket::wait_read, kUse);
  is_idle_ = false;
  Disarm();
  if (is_late_ && is_first) shared_.metrics->Refused(Refusal::kHeaderTimeout);
  co_return !error;
}

asio::awaitable<bool> Connection::ReadHead(RequestHead* head) {
  parser_.emplace();
  parser_->header_limit(static_cast<uint32_t>(shared_.limits.header_bytes_max));
  parser_->body_limit(shared_.limits.body_bytes_max);
  keeps_alive_ = is_head_ = false;
  Arm(shared_.limits.header_timeout);
  const auto [error, bytes] = co_await bhttp::async_read_header(socket_, buffer_, *parser_, kUse);
  Disarm();
  if (error) {
    co_await RefuseError(error, Refusal::kHeaderTimeout, Refusal::kHeaderBytes);
    co_return false;
  }
  const auto& message = parser_->get();
  is_head_ = message.method() == bhttp::verb::head;
  is_chunked_ = message.version() >= 11;
  std::string_view fault = FaultOf(message);
  std::optional<RequestHead> described = Describe(message);
  if (fault.empty() && !described.has_value()) fault = "the path has a broken escape";
  if (fault.empty()) {
    keeps_alive_ = message.keep_alive();
    *head = *std::move(described);
    co_return true;
  }
  shared_.metrics->Refused(Refusal::kMalformed);
  co_await RefuseRequest(shared_.handler->Error(400, fault), true);
  co_return false;
}

bool Connection::ReserveBody() {
  const auto length = parser_->content_length();
  size_t wanted = shared_.limits.body_bytes_max;
  if (parser_->is_done()) wanted = 0;
  if (length.has_value()) wanted = std::min<size_t>(wanted, *length);
  if (wanted > shared_.limits.body_memory_bytes - *shared_.body_bytes) return false;
  body_reserved_ = wanted;
  *shared_.body_bytes += wanted;
  return true;
}

// What was read of the body, with as much of the reservation as that takes.
std::shared_ptr<const std::string> Connection::TakeBody() {
  auto body = std::make_unique<std::string>(std::move(parser_->get().body()));
  const size_t bytes = body->size();
  *shared_.body_bytes -= std::exchange(body_reserved_, 0) - bytes;
  return {body.release(), [bytes, all = shared_.body_bytes](const std::string* one) {
            delete one;
            *all -= bytes;
          }};
}

asio::awaitable<bool> Connection::ReadBody() {
  const beast::string_view expect = parser_->get()[bhttp::field::expect];
  if (!expect.empty() && !beast::iequals(expect, "100-continue")) {
    shared_.metrics->Refused(Refusal::kMalformed);
    co_await RefuseRequest(shared_.handler->Error(417, "Expect: 100-continue alone is understood"),
                           true);
    co_return false;
  }
  if (!expect.empty() && is_chunked_) {
    const bool written = co_await WriteAll("HTTP/1.1 100 Continue\r\n\r\n");
    if (!written) co_return false;
  }
  Arm(shared_.limits.body_timeout);
  const auto [error, bytes] = co_await bhttp::async_read(socket_, buffer_, *parser_, kUse);
  Disarm();
  if (!error) co_return true;
  co_await RefuseError(error, Refusal::kBodyTimeout, Refusal::kBodyBytes);
  co_return false;
}

// ---- Refusing ----

asio::awaitable<bool> Connection::RefuseRequest(Response response, bool has_unread) {
  if (has_unread) keeps_alive_ = false;
  std::string out = HeadOf(response, false);
  if (!is_head_) out += response.body;
  const bool written = co_await WriteAll(std::move(out));
  if (written && !keeps_alive_) co_await Linger();
  co_return written&& keeps_alive_;
}

// What to say about a request that could not be read; nothing where nobody listens any more.
asio::awaitable<bool> Connection::RefuseError(const Error& error, Refusal late, Refusal large) {
  int status = 400;
  Refusal reason = Refusal::kMalformed;
  std::string message = "the request is not valid HTTP: " + error.message();
  if (is_late_) {
    status = 408;
    reason = late;
    message = "the request did not come within the time allowed";
  } else if (error == bhttp::error::header_limit ||
             (error == bhttp::error::buffer_overflow && large == Refusal::kHeaderBytes)) {
    status = 431;
    reason = Refusal::kHeaderBytes;
    message =
        fmt::format("the header lines have more than {} bytes", shared_.limits.header_bytes_max);
  } else if (error == bhttp::error::body_limit) {
    status = 413;
    reason = Refusal::kBodyBytes;
    message = fmt::format("the body has more than {} bytes", shared_.limits.body_bytes_max);
  } else if (IsGone(error)) {
    co_return false;
  }
  shared_.metrics->Refused(reason);
  const bool goes_on = co_await RefuseRequest(shared_.handler->Error(status, message), true);
  co_return goes_on;
}

asio::awaitable<void> Connection::Linger() {
  Error ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
  Arm(kLinger);
  buffer_.clear();
  for (size_t total = 0; total < kLingerBytes;) {
    const auto [error, bytes] = co_await socket_.async_read_some(buffer_.prepare(4096), kUse);
    if (error) break;
    total += bytes;
  }
  Disarm();
}

// ---- Answering ----

asio::awaitable<bool> Connection::Answer(Request request) {
  exchange_ =
      std::make_shared<Exchange>([weak = weak_from_this(), executor = socket_.get_executor()] {
        asio::post(executor, [weak] {
          if (const auto self = weak.lock()) self->Wake();
        });
      });
  shared_.handler->Handle(std::move(request), exchange_);
  StartWatch();
  bool is_over = false, is_written = true;
  while (is_written && !is_over && !is_gone_) {
    Exchange::Ready ready = exchange_->Take();
    is_over = ready.is_end;
    if (ready.is_empty()) {
      co_await Sleep();
    } else {
      is_written = co_await WriteReady(std::move(ready));
    }
  }
  const bool is_complete = is_over && is_written;
  if (!is_complete) shared_.metrics->ClientLeft();
  exchange_->Close(!is_complete);
  exchange_.reset();
  co_await StopWatch();
  if (is_complete && !keeps_alive_ && !is_gone_) co_await Linger();
  co_return is_complete&& keeps_alive_ && !is_gone_;
}

asio::awaitable<bool> Connection::WriteReady(Exchange::Ready ready) {
  std::string out;
  if (ready.whole.has_value()) {
    out = HeadOf(*ready.whole, false);
    if (!is_head_) out += ready.whole->body;
  } else {
    if (ready.head.has_value()) out = HeadOf(*ready.head, true);
    if (is_chunked_ && !ready.bytes.empty()) {
      out += fmt::format("{:x}\r\n{}\r\n", ready.bytes.size(), ready.bytes);
    } else {
      out += ready.bytes;
    }
    if (is_chunked_ && ready.is_end) out += "0\r\n\r\n";
  }
  const bool written = co_await WriteAll(std::move(out));
  for (const Exchange::Done& done : ready.done) done(written);
  co_return written;
}

asio::awaitable<bool> Connection::WriteAll(std::string bytes) {
  for (size_t at = 0; at < bytes.size(); at += kPieceBytes) {
    Arm(shared_.limits.write_timeout);
    const auto piece = asio::buffer(bytes.data() + at, std::min(kPieceBytes, bytes.size() - at));
    const auto [error, written] = co_await asio::async_write(socket_, piece, kUse);
    Disarm();
    if (error && is_late_) shared_.metrics->Refused(Refusal::kSlowReader);
    if (error) co_return false;
  }
  co_return true;
}

// Decides about the connection's future, too.
std::string Connection::HeadOf(const Response& response, bool is_stream) {
  if (shared_.is_draining || (is_stream && !is_chunked_)) keeps_alive_ = false;
  shared_.metrics->Answered(response.status);
  const auto reason = bhttp::obsolete_reason(static_cast<bhttp::status>(response.status));
  std::string head = fmt::format("HTTP/1.1 {} {}\r\nDate: {}\r\nContent-Type: {}\r\n",
                                 response.status, Text(reason), Date(), response.content_type);
  for (const auto& [name, value] : response.headers) {
    head += fmt::format("{}: {}\r\n", name, value);
  }
  if (!is_stream) {
    head += fmt::format("Content-Length: {}\r\n", response.body.size());
  } else if (is_chunked_) {
    head += "Transfer-Encoding: chunked\r\n";
  }
  return head + (keeps_alive_ ? "Connection: keep-alive\r\n\r\n" : "Connection: close\r\n\r\n");
}

// ---- Noticing that the client has left ----

void Connection::StartWatch() {
  if (is_gone_ || buffer_.size() >= kAheadBytes) return;
  is_watching_ = true;
  socket_.async_read_some(buffer_.prepare(std::min<size_t>(4096, kAheadBytes - buffer_.size())),
                          [self = shared_from_this()](const Error& error, size_t bytes) {
                            self->OnWatched(error, bytes);
                          });
}

void Connection::OnWatched(const Error& error, size_t bytes) {
  is_watching_ = false;
  if (!error) {
    buffer_.commit(bytes);
    if (exchange_ != nullptr) StartWatch();
  } else if (error != asio::error::operation_aborted) {
    Abort();
  }
  Wake();
}

asio::awaitable<void> Connection::StopWatch() {
  Error ignored;
  if (is_watching_) socket_.cancel(ignored);
  while (is_watching_) co_await Sleep();
}

}  // namespace trivium::router::http

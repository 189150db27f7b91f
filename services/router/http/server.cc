#include "services/router/http/server.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "common/net/address.h"
#include "services/router/http/connection.h"

namespace trivium::router::http {
namespace {

namespace asio = boost::asio;
using Tcp = asio::ip::tcp;
using Error = boost::system::error_code;

constexpr auto kUse = asio::as_tuple(asio::use_awaitable);
// When the process has no descriptor left, accepting again at once would only spin.
constexpr Duration kAcceptPause = std::chrono::milliseconds(50);

absl::StatusOr<Tcp::endpoint> Resolve(asio::io_context* context, const net::Address& address) {
  // Clients that say localhost mean 127.0.0.1 first.
  const std::string host = address.host == "localhost" ? "127.0.0.1" : address.host;
  Error error;
  const auto found = Tcp::resolver(*context).resolve(host, std::to_string(address.port), error);
  if (!error && !found.empty()) return found.begin()->endpoint();
  return Unavailable("http.listen: {} cannot be resolved: {}", host, error.message());
}

}  // namespace

struct Server::Impl {
  Impl(Limits limits, Handler* handler, telemetry::Metrics* registry)
      : metrics(registry), shared{.limits = limits, .handler = handler, .metrics = &metrics} {}

  absl::Status Open(const net::Address& address, const std::string& listen);
  asio::awaitable<void> Accept();
  void Admit(Tcp::socket socket);
  void RefuseConnection(Tcp::socket socket);
  void Drain();

  HttpMetrics metrics;
  Shared shared;
  asio::io_context context{1};
  Tcp::acceptor acceptor{context};
  std::set<std::shared_ptr<Connection>> connections;  // the io thread's, like all above
  int port = 0;
  std::thread thread;
  std::mutex mutex;
  std::condition_variable closed;
  bool is_closed = false;
};

absl::Status Server::Impl::Open(const net::Address& address, const std::string& listen) {
  ASSIGN_OR_RETURN(const Tcp::endpoint endpoint, Resolve(&context, address));
  Error error;
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(Tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(Tcp::acceptor::max_listen_connections, error);
  if (error) return Unavailable("http.listen: cannot listen on {}: {}", listen, error.message());
  port = acceptor.local_endpoint().port();
  return absl::OkStatus();
}

asio::awaitable<void> Server::Impl::Accept() {
  while (acceptor.is_open()) {
    auto [error, socket] = co_await acceptor.async_accept(kUse);
    if (!error) {
      Admit(std::move(socket));
    } else if (acceptor.is_open()) {
      asio::steady_timer pause(context, kAcceptPause);
      co_await pause.async_wait(kUse);
    }
  }
}

void Server::Impl::Admit(Tcp::socket socket) {
  if (static_cast<int>(connections.size()) >= shared.limits.connections_max) {
    return RefuseConnection(std::move(socket));
  }
  Error ignored;
  socket.set_option(Tcp::no_delay(true), ignored);
  const auto connection = std::make_shared<Connection>(std::move(socket), &shared);
  connections.insert(connection);
  metrics.Connections(static_cast<int>(connections.size()));
  asio::co_spawn(context, connection->Run(), [this, connection](std::exception_ptr failure) {
    if (failure) std::rethrow_exception(failure);
    connections.erase(connection);
    metrics.Connections(static_cast<int>(connections.size()));
  });
}

// An answer as far as the kernel takes it without waiting.
void Server::Impl::RefuseConnection(Tcp::socket socket) {
  metrics.Refused(Refusal::kConnections);
  const std::string body = shared.handler->Error(503, "too many connections").body;
  const std::string answer = fmt::format(
      "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
      "Content-Length: {}\r\nConnection: close\r\n\r\n{}",
      body.size(), body);
  Error ignored;
  socket.non_blocking(true, ignored);
  socket.write_some(asio::buffer(answer), ignored);
  socket.shutdown(Tcp::socket::shutdown_send, ignored);
}

void Server::Impl::Drain() {
  shared.is_draining = true;
  Error ignored;
  acceptor.close(ignored);
  for (const auto& connection : connections) connection->Drain();
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {
  Impl& own = *impl_;
  asio::co_spawn(own.context, own.Accept(), asio::detached);
  // It returns when the acceptor and the last connection are closed.
  own.thread = std::thread([&own] {
    own.context.run();
    const std::lock_guard lock(own.mutex);
    own.is_closed = true;
    own.closed.notify_all();
  });
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(Options options, Handler* handler,
                                                      telemetry::Metrics* metrics) {
  ASSIGN_OR_RETURN(const net::Address address, net::ParseAddress(options.listen));
  if (address.is_unix) return InvalidArgument("http.listen: must be host:port");
  if (options.loopback_only && !address.IsLoopback()) {
    return InvalidArgument(
        "http.listen: {} can be reached from other machines, which needs a cluster token",
        options.listen);
  }
  auto impl = std::make_unique<Impl>(options.limits, handler, metrics);
  RETURN_IF_ERROR(impl->Open(address, options.listen));
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

Server::~Server() {
  Drain();
  Abort();
  impl_->thread.join();
}

int Server::port() const { return impl_->port; }

void Server::Drain() {
  asio::post(impl_->context, [own = impl_.get()] { own->Drain(); });
}

void Server::AwaitClosed() {
  std::unique_lock lock(impl_->mutex);
  impl_->closed.wait(lock, [&] { return impl_->is_closed; });
}

void Server::Abort() {
  asio::post(impl_->context, [own = impl_.get()] {
    const auto all = own->connections;
    for (const auto& connection : all) connection->Abort();
  });
}

}  // namespace trivium::router::http

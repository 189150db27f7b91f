#include "common/net/server.h"

#include <grpc/grpc.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/impl/server_initializer.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "common/net/address.h"
#include "common/net/grpc_log.h"
#include "common/net/health.h"
#include "common/telemetry/log.h"

namespace trivium::net {
namespace {

using telemetry::Level;
using telemetry::Log;

constexpr auto kCancelGrace = std::chrono::seconds(10);

sigset_t Signals(std::initializer_list<int> numbers) {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int number : numbers) sigaddset(&signals, number);
  return signals;
}
sigset_t ShutdownSignals() { return Signals({SIGTERM, SIGINT}); }

// A descriptor that poll() waits on, closed at the end.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {
    TRIVIUM_CHECK(fd >= 0, "no descriptor: errno {}", errno);
  }
  ~Descriptor() { close(fd_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

// An event that stays set, raised from any thread.
class Event {
 public:
  Event() : descriptor_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  void Raise() const {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(descriptor_.fd(), &one, sizeof(one));
  }
  int fd() const { return descriptor_.fd(); }

 private:
  Descriptor descriptor_;
};

enum class Woken { kSignal, kReload, kEvent, kTimeout };

// Learns from the builder which services it registered, and their names: grpc::Service does not
// tell.
class NamesPlugin final : public grpc::ServerBuilderPlugin {
 public:
  explicit NamesPlugin(std::vector<std::string>* names) : names_(names) {}
  std::string name() override { return "trivium_service_names"; }
  void InitServer(grpc::ServerInitializer*) override {}
  void Finish(grpc::ServerInitializer* initializer) override {
    *names_ = *initializer->GetServiceList();
  }
  void ChangeArguments(const std::string&, void*) override {}

 private:
  std::vector<std::string>* names_;
};

class NamesOption final : public grpc::ServerBuilderOption {
 public:
  explicit NamesOption(std::vector<std::string>* names) : names_(names) {}
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    plugins->push_back(std::make_unique<NamesPlugin>(names_));
  }

 private:
  std::vector<std::string>* names_;
};

void SetArguments(grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(kMessageBytesMax);
  builder->SetMaxSendMessageSize(kMessageBytesMax);
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  // Clients may ping once a second; half a second is allowed because their timers are not ours.
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 500);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // A client that is gone without a word holds its requests no longer than this.
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
}

}  // namespace

struct Server::Impl {
  HealthService health;  // outlives the server
  std::unique_ptr<grpc::Server> server;
  int port = 0;
  int drain_timeout_s = 0;
  Event shutdown_asked;
  std::atomic<bool> ended{false};

  Woken Wait(const Descriptor& signals, const Event& event, int timeout_ms) const;
  void AwaitEnd(const Descriptor& signals, const Event& done, Door* door) const;
  void Drain(const Descriptor& signals, Door* door);
};

Woken Server::Impl::Wait(const Descriptor& signals, const Event& event, int timeout_ms) const {
  pollfd waits[] = {{.fd = signals.fd(), .events = POLLIN, .revents = 0},
                    {.fd = event.fd(), .events = POLLIN, .revents = 0}};
  int ready;
  do {
    ready = poll(waits, 2, timeout_ms);
  } while (ready < 0 && errno == EINTR);
  if (ready > 0 && (waits[1].revents & POLLIN) != 0) return Woken::kEvent;
  signalfd_siginfo info;
  if (ready > 0 && read(signals.fd(), &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
    return info.ssi_signo == SIGHUP ? Woken::kReload : Woken::kSignal;
  }
  return Woken::kTimeout;
}

// Returns once `done` is raised; otherwise ends the process, see WaitForShutdown.
void Server::Impl::AwaitEnd(const Descriptor& signals, const Event& done, Door* door) const {
  Woken woken = Wait(signals, done, drain_timeout_s * 1000);
  if (woken == Woken::kEvent) return;
  Log(Level::kWarning, "drain_cut_short",
      {{"reason", woken == Woken::kSignal ? "second signal" : "drain_timeout_s is over"}});
  // When the time is over gRPC does the same by itself: twice does no harm.
  grpc_server_cancel_all_calls(server->c_server());
  if (door != nullptr) door->Abort();
  woken = Wait(signals, done, static_cast<int>(std::chrono::milliseconds(kCancelGrace).count()));
  if (woken == Woken::kEvent) return;
  Log(Level::kError, "shutdown_forced",
      {{"reason", woken == Woken::kSignal ? "third signal" : "a cancelled call does not end"}});
  std::_Exit(1);
}

void Server::Impl::Drain(const Descriptor& signals, Door* door) {
  const Event done;
  if (door != nullptr) door->Drain();
  std::thread shutdown([&] {
    server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(drain_timeout_s));
    server->Wait();
    ended = true;
    if (door != nullptr) door->AwaitClosed();
    done.Raise();
  });
  AwaitEnd(signals, done, door);
  shutdown.join();
}

void BlockShutdownSignals(bool reloads) {
  const sigset_t signals = reloads ? Signals({SIGTERM, SIGINT, SIGHUP}) : ShutdownSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

Server::Server() : impl_(std::make_unique<Impl>()) {}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(ServerOptions options) {
  RedirectGrpcLog();
  ASSIGN_OR_RETURN(const Address address, ParseAddress(options.listen));
  if (options.loopback_only && !address.IsLoopback()) {
    return InvalidArgument(
        "server.listen: {} can be reached from other machines, which needs a cluster token",
        options.listen);
  }
  std::unique_ptr<Server> server(new Server());
  server->impl_->drain_timeout_s = options.drain_timeout_s;
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  std::vector<std::string> names;
  grpc::ServerBuilder builder;
  SetArguments(&builder);
  builder.SetOption(std::make_unique<NamesOption>(&names));
  int port = 0;
  builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &port);
  for (grpc::Service* service : options.services) builder.RegisterService(service);
  builder.RegisterService(&server->impl_->health);
  server->impl_->server = builder.BuildAndStart();
  if (server->impl_->server == nullptr) {
    return Unavailable("cannot listen on {}: address in use, or none of this machine",
                       options.listen);
  }
  server->impl_->port = address.is_unix ? 0 : port;
  server->impl_->health.SetNames(names);
  server->impl_->health.SetServing(true);
  return server;
}

Server::~Server() {
  if (impl_->server == nullptr || impl_->ended) return;
  impl_->server->Shutdown(std::chrono::system_clock::now());
  impl_->server->Wait();
}

int Server::port() const { return impl_->port; }
void Server::Shutdown() { impl_->shutdown_asked.Raise(); }
void Server::SetServing(bool serving) { impl_->health.SetServing(serving); }

void Server::WaitForShutdown(const std::function<void()>& on_drain, Door* door,
                             const std::function<void()>& on_reload) {
  const sigset_t set = ShutdownSignals(), all = Signals({SIGTERM, SIGINT, SIGHUP});
  const Descriptor signals(signalfd(-1, on_reload ? &all : &set, SFD_CLOEXEC | SFD_NONBLOCK));
  Woken woken;
  while ((woken = impl_->Wait(signals, impl_->shutdown_asked, -1)) == Woken::kReload) on_reload();
  const bool signalled = woken == Woken::kSignal;
  // From here on the descriptor tells of shutdown alone.
  TRIVIUM_CHECK(signalfd(signals.fd(), &set, 0) == signals.fd(), "signalfd: errno {}", errno);
  Log(Level::kInfo, "drain_started",
      {{"reason", signalled ? "signal" : "asked"}, {"timeout_s", impl_->drain_timeout_s}});
  impl_->health.Close();
  if (on_drain) on_drain();
  impl_->Drain(signals, door);
  Log(Level::kInfo, "drain_done");
}

}  // namespace trivium::net

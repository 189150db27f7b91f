#include "common/transfer/loop.h"

#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>

#include "common/transfer/engine.h"

namespace trivium::transfer {
namespace {

using Command = std::function<void(Engine&)>;

// How long the last messages of a closing transport may take, and how long one virtual moment may
// be.
constexpr Duration kGoodbye = std::chrono::milliseconds(100);
constexpr Duration kVirtualClockPoll = std::chrono::milliseconds(1);

// What the handles share with the thread. Outlives the transport while a Sender is held.
class Mailbox {
 public:
  // False once the transport is closing: the command is dropped.
  bool Post(Command command) {
    std::lock_guard lock(mutex_);
    if (closed_) return false;
    commands_.push_back(std::move(command));
    if (link_ != nullptr) link_->Wake();
    return true;
  }
  void SetLink(Link* link) {
    std::lock_guard lock(mutex_);
    link_ = link;
  }
  std::vector<Command> TakeAll() {
    std::lock_guard lock(mutex_);
    return std::exchange(commands_, {});
  }
  void Stop() {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    if (link_ != nullptr) link_->Wake();
  }
  bool stopping() const {
    std::lock_guard lock(mutex_);
    return stopping_;
  }
  // The commands given before this still run.
  std::vector<Command> Close() {
    std::lock_guard lock(mutex_);
    closed_ = true;
    link_ = nullptr;
    return std::exchange(commands_, {});
  }

 private:
  mutable std::mutex mutex_;
  std::vector<Command> commands_;
  Link* link_ = nullptr;
  bool stopping_ = false, closed_ = false;
};

class SenderHandle final : public Sender {
 public:
  SenderHandle(uint64_t id, std::shared_ptr<Mailbox> mailbox, int64_t queue_limit)
      : id_(id), mailbox_(std::move(mailbox)), queue_limit_(queue_limit) {}
  ~SenderHandle() override { Abort(); }

  void Send(const RowRange& rows) override {
    if (++*queued_ > queue_limit_) return End(ResourceExhausted("transfer: the queue is full"));
    mailbox_->Post([id = id_, rows, queued = queued_](Engine& engine) {
      --*queued;
      engine.send_side().SendRows(id, rows);
    });
  }
  void Finish(std::string tail, bool kv_complete) override {
    if (tail.size() > kMaxTailBytes) {
      return End(InvalidArgument("transfer: a tail of {} bytes, at most {} are sent", tail.size(),
                                 kMaxTailBytes));
    }
    mailbox_->Post([id = id_, tail = std::move(tail), kv_complete](Engine& engine) {
      engine.send_side().Finish(id, tail, kv_complete);
    });
  }
  void FinishShort() override {
    mailbox_->Post([id = id_](Engine& engine) { engine.send_side().FinishShort(id); });
  }
  void Abort() override { End(absl::CancelledError("the transfer was aborted")); }

 private:
  void End(const absl::Status& why) {
    if (ended_.exchange(true)) return;
    mailbox_->Post([id = id_, why](Engine& engine) { engine.send_side().Abort(id, why); });
  }

  const uint64_t id_;
  const std::shared_ptr<Mailbox> mailbox_;
  const int64_t queue_limit_;
  const std::shared_ptr<std::atomic<int64_t>> queued_ = std::make_shared<std::atomic<int64_t>>(0);
  std::atomic<bool> ended_{false};
};

class LoopTransport final : public Transport {
 public:
  LoopTransport(TransportOptions options, LinkKind kind)
      : options_(std::move(options)),
        rows_(*options_.storage),
        mailbox_(std::make_shared<Mailbox>()) {
    wiring_ = std::make_unique<Wiring>(Wiring{.rows = rows_,
                                              .epoch = options_.epoch,
                                              .transport_id = DrawTransportId(),
                                              .address = {},
                                              .kind = kind,
                                              .timeouts = Scaled(options_.timeouts),
                                              .clock = options_.clock,
                                              .link = nullptr,
                                              .peers = nullptr,
                                              .tally = &tally_,
                                              .limits = {}});
  }
  ~LoopTransport() override {
    mailbox_->Stop();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Start(LinkFactory factory) {
    thread_ = std::thread([this, factory = std::move(factory)] { Run(factory); });
    std::unique_lock lock(start_mutex_);
    started_.wait(lock, [&] { return start_known_; });
    return start_status_;
  }

  const std::string& address() const override { return wiring_->address; }
  WorkerEpoch epoch() const override { return options_.epoch; }
  TransferCounters counters() const override { return tally_.Snapshot(); }

  absl::StatusOr<Ticket> Expect(LandingOptions options) override;
  void KeepAlive(uint64_t id) override {
    mailbox_->Post([id](Engine& engine) { engine.receive_side().KeepAlive(id); });
  }
  void Withdraw(uint64_t id) override {
    mailbox_->Post([id](Engine& engine) { engine.receive_side().Withdraw(id); });
  }
  absl::StatusOr<std::unique_ptr<Sender>> Open(const Ticket& ticket, Credentials credentials,
                                               SequenceBlocks from, DeliveryCallback done) override;

 private:
  void Run(const LinkFactory& factory);
  void Loop(Link& link, Engine& engine);
  void Goodbye(Link& link, Engine& engine);
  void ReportStart(absl::Status status);
  Duration SleepOf(const Engine& engine) const;
  absl::Status CheckRange(int32_t token_begin, int32_t token_end,
                          const SequenceBlocks& blocks) const;
  absl::Status CheckTicket(const Ticket& ticket) const;

  const TransportOptions options_;
  const RowMap rows_;
  Tally tally_;
  std::unique_ptr<Wiring> wiring_;
  const std::shared_ptr<Mailbox> mailbox_;
  std::atomic<uint64_t> next_id_{1};

  std::mutex start_mutex_;
  std::condition_variable started_;
  bool start_known_ = false;
  absl::Status start_status_;
  std::thread thread_;
};

absl::Status LoopTransport::CheckRange(int32_t token_begin, int32_t token_end,
                                       const SequenceBlocks& blocks) const {
  if (token_begin < 0 || token_begin >= token_end) {
    return InvalidArgument("transfer: tokens {}..{} are no range", token_begin, token_end);
  }
  for (const BlockId block : blocks.blocks) {
    if (block.value < 0 || block.value >= rows_.storage().blocks()) {
      return InvalidArgument("transfer: block {} is not in the pool", block.value);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Ticket> LoopTransport::Expect(LandingOptions options) {
  RETURN_IF_ERROR(CheckRange(options.token_begin, options.token_end, options.into));
  const int64_t room = static_cast<int64_t>(options.into.blocks.size()) * rows_.block_tokens();
  if (options.token_end > room) {
    return InvalidArgument("transfer: {} tokens do not fit into {} blocks", options.token_end,
                           options.into.blocks.size());
  }
  if (++tally_.landings_open > wiring_->limits.landings) {
    --tally_.landings_open;
    return ResourceExhausted("transfer: {} landings are open", wiring_->limits.landings);
  }
  Ticket ticket;
  ticket.address = wiring_->address;
  ticket.epoch = options_.epoch;
  ticket.landing_id = next_id_++;
  ticket.generation = options.generation;
  ticket.wire_format = WireFormatOf(rows_.storage().layout().type);
  ticket.layers = rows_.layers();
  ticket.token_begin = options.token_begin;
  ticket.token_end = options.token_end;
  ticket.row_elems = static_cast<int32_t>(rows_.storage().layout().RowElems());
  ticket.block_tokens = rows_.block_tokens();
  const bool posted =
      mailbox_->Post([id = ticket.landing_id, options = std::move(options)](Engine& engine) {
        engine.receive_side().Add(id, options);
      });
  if (!posted) return Unavailable("transfer: the transport is closing");
  return ticket;
}

absl::Status LoopTransport::CheckTicket(const Ticket& ticket) const {
  const WireFormat ours = WireFormatOf(rows_.storage().layout().type);
  if (ticket.wire_format != ours) {
    return InvalidArgument("ticket: wire format {}, this worker's is {}",
                           int{uint8_t(ticket.wire_format)}, int{uint8_t(ours)});
  }
  if (ticket.layers != rows_.layers()) {
    return InvalidArgument("ticket: {} layers, this worker has {}", ticket.layers, rows_.layers());
  }
  if (ticket.row_elems != rows_.storage().layout().RowElems()) {
    return InvalidArgument("ticket: rows of {} elements, this worker's have {}", ticket.row_elems,
                           rows_.storage().layout().RowElems());
  }
  if (ticket.block_tokens != rows_.block_tokens()) {
    return InvalidArgument("ticket: blocks of {} tokens, this worker's have {}",
                           ticket.block_tokens, rows_.block_tokens());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Sender>> LoopTransport::Open(const Ticket& ticket,
                                                            Credentials credentials,
                                                            SequenceBlocks from,
                                                            DeliveryCallback done) {
  RETURN_IF_ERROR(CheckTicket(ticket));
  RETURN_IF_ERROR(CheckRange(ticket.token_begin, ticket.token_end, from));
  ASSIGN_OR_RETURN(const TransportAddress to, DecodeAddress(ticket.address, wiring_->kind));
  if (++tally_.senders_open > wiring_->limits.senders) {
    --tally_.senders_open;
    return ResourceExhausted("transfer: {} transfers are open", wiring_->limits.senders);
  }
  const uint64_t id = next_id_++;
  auto handle = std::make_unique<SenderHandle>(id, mailbox_, wiring_->limits.queued_ranges);
  const bool posted =
      mailbox_->Post([id, ticket, to, credentials = std::move(credentials), from = std::move(from),
                      done = std::move(done)](Engine& engine) {
        engine.send_side().Open(id, ticket, to, credentials, from, done);
      });
  if (!posted) return Unavailable("transfer: the transport is closing");
  return std::unique_ptr<Sender>(std::move(handle));
}

void LoopTransport::ReportStart(absl::Status status) {
  std::lock_guard lock(start_mutex_);
  start_status_ = std::move(status);
  start_known_ = true;
  started_.notify_all();
}

void LoopTransport::Run(const LinkFactory& factory) {
  auto link = factory();
  if (!link.ok()) return ReportStart(link.status());
  PeerTable peers(link->get(), wiring_->clock, wiring_->transport_id, wiring_->timeouts);
  wiring_->link = link->get();
  wiring_->peers = &peers;
  wiring_->address = EncodeAddress({wiring_->kind, wiring_->transport_id, link->get()->address()});
  if (wiring_->address.size() > kMaxAddressBytes) {
    return ReportStart(absl::InternalError("transfer: the address of the wire is too long"));
  }
  Engine engine(wiring_.get());
  mailbox_->SetLink(link->get());
  ReportStart(absl::OkStatus());
  Loop(**link, engine);
  for (const Command& command : mailbox_->Close()) command(engine);
  Goodbye(**link, engine);
  for (const uint64_t peer : peers.All()) peers.Drop(peer);
  link->reset();
}

void LoopTransport::Loop(Link& link, Engine& engine) {
  while (!mailbox_->stopping()) {
    const bool happened = link.Progress(engine);
    std::vector<Command> commands = mailbox_->TakeAll();
    for (Command& command : commands) {
      command(engine);
      command = nullptr;  // a command may hold blocks
    }
    const bool more = engine.Turn();
    if (!more && !happened && commands.empty()) link.Wait(SleepOf(engine));
  }
}

Duration LoopTransport::SleepOf(const Engine& engine) const {
  return wiring_->clock == &Clock::Real() ? engine.MaxSleep() : kVirtualClockPoll;
}

void LoopTransport::Goodbye(Link& link, Engine& engine) {
  engine.Shutdown();
  const TimePoint until = Clock::Real().Now() + kGoodbye;
  while (link.outstanding() > 0 && Clock::Real().Now() < until) {
    if (!link.Progress(engine)) link.Wait(kVirtualClockPoll);
  }
}

}  // namespace

uint64_t DrawTransportId() {
  std::random_device device;
  uint64_t id = 0;
  while (id == 0) id = (uint64_t{device()} << 32) | device();
  return id;
}

absl::StatusOr<std::unique_ptr<Transport>> MakeTransport(TransportOptions options, LinkKind kind,
                                                         LinkFactory factory) {
  if (options.storage == nullptr) return InvalidArgument("transfer: no KV storage given");
  if (options.clock == nullptr) return InvalidArgument("transfer: no clock given");
  if (!(options.timeouts.scale >= 0.01 && options.timeouts.scale <= 1000)) {
    return InvalidArgument("transfer: timeout scale {} is not in 0.01..1000",
                           options.timeouts.scale);
  }
  if (RowMap(*options.storage).TokenBytes() > static_cast<int64_t>(kMaxRowBytes)) {
    return InvalidArgument("transfer: one token of one layer is larger than a message");
  }
  auto transport = std::make_unique<LoopTransport>(std::move(options), kind);
  RETURN_IF_ERROR(transport->Start(std::move(factory)));
  return std::unique_ptr<Transport>(std::move(transport));
}

}  // namespace trivium::transfer

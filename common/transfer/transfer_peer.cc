// The other side of a transfer, as a process: for tests that stop it and for benchmarks.
//
//   transfer_peer BACKEND SCALE LAYERS KV_HEADS HEAD_DIM BLOCKS
//
// Commands on standard input, one answer line each:
//   expect TOKENS SEED   a landing; answers its ticket
//   arrived              waits for that landing; answers "ok" or the status
//   verify               what landed so far is zero or right for its seed: "right", else what is
//   wrong send TICKET SEED     sends rows of the seed; answers "sending" delivered            waits
//   for that transfer; answers "ok NANOSECONDS BYTES" or the status release              lets go of
//   all blocks; answers "free" once all are free spin N               N threads compute from now
//   on; answers "spinning"
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <sstream>

#include "common/transfer/peer_process.h"
#include "common/transfer/spinner.h"
#include "common/transfer/testing.h"

namespace trivium::transfer {
namespace {

class Peer {
 public:
  Peer(const Backend& backend, double scale, WorkerShape shape)
      : worker_(backend, static_cast<uint64_t>(getpid()), scale, shape) {}

  std::string Answer(const std::string& line) {
    std::istringstream in(line);
    std::string verb;
    in >> verb;
    if (verb == "expect") return Expect(in);
    if (verb == "arrived") return Say(arrival_.Wait().status());
    if (verb == "verify") return Verify();
    if (verb == "send") return Send(in);
    if (verb == "delivered") return Delivered();
    if (verb == "release") return Release();
    if (verb == "spin") return Spin(in);
    return "unknown command";
  }

 private:
  static std::string Say(const absl::Status& status) {
    return status.ok() ? "ok" : absl::StatusCodeToString(status.code()) + ": " + Message(status);
  }

  std::string Expect(std::istream& in) {
    in >> tokens_ >> seed_;
    auto reserved = worker_.pool->Reserve(BlocksFor(tokens_));
    if (!reserved.ok()) return Say(reserved.status());
    landing_ = *std::move(reserved);
    arrival_ = {};
    LandingOptions options;
    options.credentials = PeerCredentials(seed_);
    options.into = Blocks(landing_);
    options.generation = 1;
    options.token_end = tokens_;
    options.on_arrival = arrival_.Callback();
    const auto ticket = worker_.transport->Expect(std::move(options));
    return ticket.ok() ? TicketToWord(*ticket) : Say(ticket.status());
  }

  std::string Verify() const {
    const std::string wrong = CheckRows(*worker_.storage, Blocks(landing_).blocks, 0, tokens_,
                                        seed_, false, /*allow_zero=*/true);
    return wrong.empty() ? "right" : wrong;
  }

  std::string Send(std::istream& in) {
    std::string word;
    uint64_t seed = 0;
    in >> word >> seed;
    const auto ticket = TicketFromWord(word);
    if (!ticket.ok()) return Say(ticket.status());
    auto reserved = worker_.pool->Reserve(BlocksFor(ticket->token_end));
    if (!reserved.ok()) return Say(reserved.status());
    rows_ = *std::move(reserved);
    FillRows(*worker_.storage, Blocks(rows_).blocks, 0, ticket->token_end, seed);
    delivery_ = {};
    auto sender = worker_.transport->Open(*ticket, PeerCredentials(seed), Blocks(rows_),
                                          delivery_.Callback());
    if (!sender.ok()) return Say(sender.status());
    sender_ = *std::move(sender);
    for (int layer = 0; layer < ticket->layers; ++layer) {
      sender_->Send({layer, layer + 1, 0, ticket->token_end});
    }
    sender_->Finish("tail", true);
    return "sending";
  }

  std::string Delivered() {
    const auto stats = delivery_.Wait();
    if (!stats.ok()) return Say(stats.status());
    return fmt::format("ok {} {}", stats->first_send_to_last_ack.count(), stats->kv_bytes);
  }

  std::string Release() {
    sender_.reset();
    landing_ = {};
    rows_ = {};
    return Eventually([&] { return worker_.AllBlocksFree(); }) ? "free" : "leased";
  }

  std::string Spin(std::istream& in) {
    int threads = 0;
    in >> threads;
    spinner_ = std::make_unique<Spinner>(threads);
    return "spinning";
  }

  TestWorker worker_;
  kv::Reservation landing_, rows_;
  int32_t tokens_ = 0;
  uint64_t seed_ = 0;
  Outcome<Arrival> arrival_;
  Outcome<TransferStats> delivery_;
  std::unique_ptr<Sender> sender_;
  std::unique_ptr<Spinner> spinner_;
};

int Main(int argc, char** argv) {
  const Backend* backend = argc == 7 ? FindBackend(argv[1]) : nullptr;
  if (backend == nullptr) {
    std::cerr << "usage: transfer_peer BACKEND SCALE LAYERS KV_HEADS HEAD_DIM BLOCKS\n";
    return 2;
  }
  Peer peer(*backend, std::atof(argv[2]),
            {std::atoi(argv[3]), std::atoi(argv[4]), std::atoi(argv[5]), std::atoi(argv[6])});
  std::cout << "ready" << std::endl;
  std::string line;
  while (std::getline(std::cin, line)) std::cout << peer.Answer(line) << std::endl;
  return 0;
}

}  // namespace
}  // namespace trivium::transfer

int main(int argc, char** argv) { return trivium::transfer::Main(argc, argv); }

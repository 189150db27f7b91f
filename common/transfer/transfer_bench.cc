// How fast KV moves between two processes, idle and while both compute, beside ucx_perftest with
// the same settings. Prints one JSON object.
//
//   transfer_bench [--rounds 8] [--tokens 4032] [--spin 1] [--backend posix|tcp]
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "common/transfer/copy.h"
#include "common/transfer/peer_process.h"
#include "common/transfer/rows.h"
#include "common/transfer/spinner.h"
#include "common/transfer/testing.h"

namespace trivium::transfer {
namespace {

using nlohmann::json;

struct BenchOptions {
  int rounds = 8;
  int32_t tokens = 4032;
  int spin = 1;  // computing threads in each process
  std::string backend;
  std::string peer_program;
};

// SmolLM2-135M: 30 layers, rows of 3 x 64.
WorkerShape ShapeFor(const BenchOptions& options) {
  return {30, 3, 64, BlocksFor(options.tokens) + 4};
}

double Gbps(int64_t bytes, Duration time) {
  return static_cast<double>(bytes) / static_cast<double>(time.count());
}

// Pages of one sequence that do not follow each other in memory.
SequenceBlocks Shuffled(const kv::Reservation& reservation) {
  SequenceBlocks blocks = Blocks(reservation);
  std::mt19937 random(7);
  std::shuffle(blocks.blocks.begin(), blocks.blocks.end(), random);
  return blocks;
}

absl::StatusOr<TransferStats> SendOnce(TestWorker& worker, const SequenceBlocks& blocks,
                                       PeerProcess& peer, const BenchOptions& options,
                                       uint64_t seed) {
  ASSIGN_OR_RETURN(const std::string word,
                   peer.Ask(fmt::format("expect {} {}", options.tokens, seed)));
  ASSIGN_OR_RETURN(const Ticket ticket, TicketFromWord(word));
  Outcome<TransferStats> delivery;
  ASSIGN_OR_RETURN(auto sender, worker.transport->Open(ticket, PeerCredentials(seed), blocks,
                                                       delivery.Callback()));
  for (int layer = 0; layer < ticket.layers; ++layer) {
    sender->Send({layer, layer + 1, 0, ticket.token_end});
  }
  sender->Finish("tail", true);
  absl::StatusOr<TransferStats> stats = delivery.Wait();
  ASSIGN_OR_RETURN(const std::string arrived, peer.Ask("arrived"));
  ASSIGN_OR_RETURN(const std::string released, peer.Ask("release"));
  if (stats.ok() && (arrived != "ok" || released != "free")) return Unavailable("{}", arrived);
  return stats;
}

absl::StatusOr<json> Series(TestWorker& worker, const SequenceBlocks& blocks, PeerProcess& peer,
                            const BenchOptions& options, uint64_t* seed) {
  std::vector<double> rates;
  TransferStats last;
  for (int round = 0; round < options.rounds; ++round) {
    ASSIGN_OR_RETURN(last, SendOnce(worker, blocks, peer, options, ++*seed));
    rates.push_back(Gbps(last.kv_bytes, last.first_send_to_last_ack));
  }
  std::sort(rates.begin(), rates.end());
  return json{{"gb_per_s_best", rates.back()},     {"gb_per_s_median", rates[rates.size() / 2]},
              {"gb_per_s_worst", rates.front()},   {"kv_bytes", last.kv_bytes},
              {"header_bytes", last.header_bytes}, {"messages", last.messages}};
}

// What ucx_perftest sends, again and again: the pages of one message of ours, which stay in cache;
// or half of a round's in one list, which do not (a whole round's are more than it takes).
enum class PerftestList : int { kMessage = 21, kHalfRound = 3780 };

std::vector<std::string> PerftestArguments(PerftestList list) {
  const int pages = static_cast<int>(list);
  std::string sizes = "12288";
  for (int page = 1; page < pages; ++page) sizes += ",12288";
  const int rounds = 84000 / pages;
  return {"-D", "iov,iov", "-s", sizes, "-n", std::to_string(rounds), "-w", "4"};
}

// The last field but one of the final line that ucx_perftest prints: overall MB/s.
absl::StatusOr<double> Perftest(const std::string& backend, PerftestList list) {
  const std::vector<std::string> common = {"UCX_TLS=" + backend + ",self",
                                           "UCX_NET_DEVICES=lo",
                                           "UCX_MM_ERROR_HANDLING=y",
                                           "UCX_MM_FIFO_SIZE=256",
                                           "UCX_MM_SEG_SIZE=32k",
                                           "UCX_KEEPALIVE_INTERVAL=inf",
                                           "UCX_TCP_PUT_ENABLE=n",
                                           "UCX_RNDV_THRESH=4096",
                                           "UCX_TCP_RX_SEG_SIZE=512k",
                                           "UCX_TCP_SNDBUF=2m",
                                           "UCX_TCP_RCVBUF=2m",
                                           "UCX_WARN_UNUSED_ENV_VARS=n",
                                           "ucx_perftest",
                                           "-p",
                                           "13977"};
  std::vector<std::string> client = common;
  for (const char* word : {"127.0.0.1", "-t", "ucp_am_bw", "-e", "-E", "sleep", "-f", "-v"}) {
    client.push_back(word);
  }
  for (const std::string& word : PerftestArguments(list)) client.push_back(word);
  ASSIGN_OR_RETURN(auto server, PeerProcess::Start("/usr/bin/env", common));
  // The server says nothing when it listens: the client is tried until it gets through.
  for (int attempt = 0; attempt < 20; ++attempt) {
    ASSIGN_OR_RETURN(auto process, PeerProcess::Start("/usr/bin/env", client));
    std::string last;
    while (true) {
      const auto line = process->Hear(std::chrono::seconds(60));
      if (!line.ok()) break;
      if (line->find(',') != std::string::npos) last = *line;
    }
    std::vector<std::string> fields;
    std::istringstream in(last);
    for (std::string field; std::getline(in, field, ',');) fields.push_back(field);
    if (fields.size() >= 7) return std::atof(fields[5].c_str()) * 1048576.0 / 1e9;
  }
  return Unavailable("ucx_perftest gave no result");
}

absl::StatusOr<json> BenchBackend(const Backend& backend, const BenchOptions& options) {
  const WorkerShape shape = ShapeFor(options);
  TestWorker worker(backend, 1, 1.0, shape);
  ASSIGN_OR_RETURN(
      auto peer, PeerProcess::Start(options.peer_program,
                                    {backend.name, "1", std::to_string(shape.layers),
                                     std::to_string(shape.kv_heads), std::to_string(shape.head_dim),
                                     std::to_string(shape.blocks)}));
  RETURN_IF_ERROR(peer->Hear().status());
  ASSIGN_OR_RETURN(const kv::Reservation rows, worker.pool->Reserve(BlocksFor(options.tokens)));
  const SequenceBlocks blocks = Shuffled(rows);
  FillRows(*worker.storage, blocks.blocks, 0, options.tokens, 1);
  uint64_t seed = 0;
  json result;
  RETURN_IF_ERROR(SendOnce(worker, blocks, *peer, options, ++seed).status());  // connects
  ASSIGN_OR_RETURN(result["idle"], Series(worker, blocks, *peer, options, &seed));
  double cached = 0, uncached = 0;
  for (int i = 0; i < 3; ++i) {
    cached = std::max(cached, Perftest(backend.name, PerftestList::kMessage).value_or(0));
    uncached = std::max(uncached, Perftest(backend.name, PerftestList::kHalfRound).value_or(0));
  }
  ASSIGN_OR_RETURN(const json again, Series(worker, blocks, *peer, options, &seed));
  if (again["gb_per_s_best"] > result["idle"]["gb_per_s_best"]) result["idle"] = again;
  const double idle = result["idle"]["gb_per_s_best"];
  result["ucx_perftest"] = {{"pages_in_cache_gb_per_s_best", cached},
                            {"pages_in_memory_gb_per_s_best", uncached}};
  if (cached > 0) result["idle_over_perftest"]["pages_in_cache"] = idle / cached;
  if (uncached > 0) result["idle_over_perftest"]["pages_in_memory"] = idle / uncached;
  RETURN_IF_ERROR(peer->Ask(fmt::format("spin {}", options.spin)).status());
  const Spinner spinner(options.spin);
  ASSIGN_OR_RETURN(result["computing"], Series(worker, blocks, *peer, options, &seed));
  return result;
}

// What one byte costs on each side, with and without the checksum.
json ChecksumCost() {
  TestWorker worker(*FindBackend("in-process"), 1, 1.0, {30, 3, 64, 256});
  const kv::Reservation rows = *worker.pool->Reserve(252);
  const SequenceBlocks blocks = Shuffled(rows);
  FillRows(*worker.storage, blocks.blocks, 0, 4032, 1);
  const RowMap map(*worker.storage);
  std::deque<RowRange> messages;
  map.Split({0, 30, 0, 4032}, kMaxRowBytes, &messages);
  std::vector<uint8_t> buffer(kMaxPayloadBytes);
  const auto best = [&](auto&& work) {
    double rate = 0;
    for (int i = 0; i < 5; ++i) {
      const TimePoint start = Clock::Real().Now();
      int64_t bytes = 0;
      for (const RowRange& message : messages) {
        const std::span<uint8_t> payload(buffer.data(), static_cast<size_t>(map.Bytes(message)));
        work(message, payload);
        bytes += map.Bytes(message);
      }
      rate = std::max(rate, Gbps(bytes, Clock::Real().Now() - start));
    }
    return rate;
  };
  const auto runs = [&](const RowRange& message) { return map.Runs(blocks.blocks, message); };
  const double gather = best([&](const RowRange& m, std::span<uint8_t> payload) {
    const RowRuns all = runs(m);
    for (size_t i = 0; i < all.size(); ++i) {
      CopyRun(all[i], payload.data(), i + 1 < all.size() ? all[i + 1] : RowRuns::value_type());
      payload = payload.subspan(all[i].size());
    }
  });
  const double gather_hashed = best([&](const RowRange& m, std::span<uint8_t> payload) {
    SealedRows({}, runs(m), nullptr).Read(0, payload);
  });
  const double scatter = best([&](const RowRange& m, std::span<uint8_t> payload) {
    for (const auto run : runs(m)) {
      StreamRun(payload.data(), run.data(), run.size());
      payload = payload.subspan(run.size());
    }
    EndStream();
  });
  const double scatter_hashed = best([&](const RowRange& m, std::span<uint8_t> payload) {
    ArrivingRows landing({}, runs(m), nullptr);
    landing.Write(0, payload);
    TRIVIUM_CHECK(!landing.IsRight(), "rows without a seal");
  });
  const auto cost = [](double plain, double hashed) {
    return json{
        {"gb_per_s", plain}, {"hashed_gb_per_s", hashed}, {"share_of_time", 1 - hashed / plain}};
  };
  return {{"sender", cost(gather, gather_hashed)}, {"receiver", cost(scatter, scatter_hashed)}};
}

bool Parse(int argc, char** argv, BenchOptions* options) {
  options->peer_program = (std::filesystem::path(argv[0]).parent_path() / "transfer_peer").string();
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--rounds") {
      options->rounds = std::atoi(value.c_str());
    } else if (flag == "--tokens") {
      options->tokens = std::atoi(value.c_str());
    } else if (flag == "--spin") {
      options->spin = std::atoi(value.c_str());
    } else if (flag == "--backend") {
      options->backend = value;
    } else {
      return false;
    }
  }
  return argc % 2 == 1 && options->rounds > 0 && options->tokens > 0 && options->spin > 0;
}

int Main(int argc, char** argv) {
  BenchOptions options;
  if (!Parse(argc, argv, &options)) {
    std::cerr << "usage: transfer_bench [--rounds N] [--tokens N] [--spin N] [--backend NAME]\n";
    return 2;
  }
  json report;
  report["tokens"] = options.tokens;
  report["rounds"] = options.rounds;
  report["computing_threads_per_process"] = options.spin;
  report["checksum_cost"] = ChecksumCost();
  for (const char* name : {"posix", "tcp"}) {
    if (!options.backend.empty() && options.backend != name) continue;
    const auto result = BenchBackend(*FindBackend(name), options);
    if (!result.ok()) {
      std::cerr << name << ": " << result.status() << "\n";
      return 1;
    }
    report[name] = *result;
  }
  std::cout << report.dump(2) << std::endl;
  return 0;
}

}  // namespace
}  // namespace trivium::transfer

int main(int argc, char** argv) { return trivium::transfer::Main(argc, argv); }

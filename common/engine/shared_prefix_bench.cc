// Decode speed of sequences over one prefix: on shared blocks, and on copies of their own. Each row
// of the table stands beside what memory traffic alone would make of it.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/engine/engine.h"
#include "common/engine/sampler.h"
#include "common/kv/kv_storage.h"
#include "common/model/model.h"
#include "kernels/ops.h"

namespace trivium::engine {
namespace {

constexpr int kBlock = 16;

struct Flags {
  std::string model;
  int threads = 2;
  std::string numerics = "fast";
  std::vector<int> prefixes = {256, 1024, 2048, 4096};
  std::vector<int> sequences = {1, 4, 16, 32};
  int suffix = 32;
  int steps = 64;
};

int BlocksOf(int tokens) { return (tokens + kBlock - 1) / kBlock; }
int MostOf(const std::vector<int>& some) { return *std::max_element(some.begin(), some.end()); }
// Of each sequence: the prefix, the suffix, the decoded tokens.
int BlocksOfSequence(const Flags& flags) {
  return BlocksOf(MostOf(flags.prefixes)) + BlocksOf(flags.suffix + flags.steps + 1);
}

double SecondsOf(const auto& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Of all threads of this process: what other processes take does not count.
double ProcessorSeconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

double MedianOf(std::vector<double> some) {
  const auto middle = some.begin() + static_cast<ptrdiff_t>(some.size() / 2);
  std::nth_element(some.begin(), middle, some.end());
  return *middle;
}

struct Decoded {
  double step_s = 0, processor_s = 0;  // medians
  int64_t bytes = 0;                   // of keys and values read by the last step
  std::vector<int32_t> ids;
};

class Bench {
 public:
  Bench(std::shared_ptr<const model::Model> model, const kernels::OpsOptions& options,
        const Flags& flags, std::shared_ptr<kv::KvStorage> storage)
      : flags_(flags),
        most_prefix_(MostOf(flags.prefixes)),
        engine_(std::move(model), kernels::MakeOps(options), std::move(storage)) {}

  // Computes the longest prefix once and gives every sequence a copy of it.
  void Fill() {
    const auto ids = RandomIds(most_prefix_);
    const auto table = Table(0, 0, most_prefix_);
    const SequenceRange range{.tokens = ids, .block_table = table, .logits = LogitsWanted::kNone};
    engine_.Step({&range, 1});
    for (int i = 1; i < MostOf(flags_.sequences); ++i) {
      for (int b = 0; b < most_prefix_ / kBlock; ++b) {
        engine_.storage().CopyRows(BlockId{b}, BlockId{i * BlocksOfSequence(flags_) + b}, kBlock);
      }
    }
  }

  // GB/s at which the threads read the KV storage from one end to the other.
  double ReadSpeed() {
    const auto* words = reinterpret_cast<const uint64_t*>(engine_.storage().layer(0));
    const size_t count = engine_.storage().bytes() / sizeof(uint64_t);
    const auto threads = static_cast<size_t>(flags_.threads);
    std::vector<uint64_t> sums(threads);
    const double seconds = SecondsOf([&] {
      std::vector<std::thread> readers;
      for (size_t t = 0; t < threads; ++t) {
        readers.emplace_back([&, t] {
          uint64_t sum = 0;
          for (size_t i = count * t / threads; i < count * (t + 1) / threads; ++i) sum += words[i];
          sums[t] = sum;
        });
      }
      for (std::thread& reader : readers) reader.join();
    });
    uint64_t total = 0;
    for (const uint64_t sum : sums) total += sum;
    TRIVIUM_CHECK(total != 0, "an empty KV storage");
    return static_cast<double>(count * sizeof(uint64_t)) / seconds / 1e9;
  }

  // `prefix` tokens from copies of their own or from the first sequence's, then a suffix of their
  // own, then greedy decoding of all together. Each goes on with the tokens of `given`, if there
  // are some, whatever it would have taken.
  Decoded Decode(int sequences, int prefix, bool shared, std::span<const int32_t> given = {}) {
    random_.seed(7);
    std::vector<std::vector<int32_t>> tables, suffixes;
    std::vector<SequenceRange> batch;
    for (int i = 0; i < sequences; ++i) {
      tables.push_back(Table(i, shared ? 0 : i, prefix));
      suffixes.push_back(RandomIds(flags_.suffix));
    }
    for (size_t i = 0; i < tables.size(); ++i) {
      batch.push_back({.tokens = suffixes[i], .position = prefix, .block_table = tables[i]});
    }
    Decoded decoded;
    std::vector<int32_t> last(tables.size());
    const auto take = [&] {
      const size_t at = decoded.ids.size();
      decoded.ids.insert(decoded.ids.end(), last.begin(), last.end());
      if (!given.empty()) std::ranges::copy(given.subspan(at, last.size()), last.begin());
    };
    Run(batch, last, 0);
    take();
    std::vector<double> seconds, processor_seconds;
    for (int step = 0; step < flags_.steps; ++step) {
      for (size_t i = 0; i < tables.size(); ++i) {
        batch[i].tokens = {&last[i], 1};
        batch[i].position = prefix + flags_.suffix + step;
      }
      const double begin_s = ProcessorSeconds();
      seconds.push_back(SecondsOf([&] { decoded.bytes = Run(batch, last, step + 1); }));
      processor_seconds.push_back(ProcessorSeconds() - begin_s);
      take();
    }
    decoded.step_s = MedianOf(std::move(seconds));
    decoded.processor_s = MedianOf(std::move(processor_seconds));
    return decoded;
  }

 private:
  // Each sequence owns a row of blocks: first its copy of the prefix, then the rest.
  std::vector<int32_t> Table(int sequence, int prefix_owner, int prefix) const {
    std::vector<int32_t> table;
    const int all = BlocksOfSequence(flags_);
    for (int b = 0; b < prefix / kBlock; ++b) table.push_back(prefix_owner * all + b);
    for (int b = most_prefix_ / kBlock; b < all; ++b) table.push_back(sequence * all + b);
    return table;
  }

  int64_t Run(const std::vector<SequenceRange>& batch, std::vector<int32_t>& last, int index) {
    const StepResult result = engine_.Step(batch);
    const auto vocab = static_cast<size_t>(engine_.model().config.vocab);
    for (size_t i = 0; i < batch.size(); ++i) {
      last[i] = Sample(result.logits.subspan(i * vocab, vocab), {}, index, {}).id;
    }
    return result.kv_bytes_read;
  }

  std::vector<int32_t> RandomIds(int count) {
    std::vector<int32_t> ids(static_cast<size_t>(count));
    const auto vocab = static_cast<uint32_t>(engine_.model().config.vocab);
    for (int32_t& id : ids) id = static_cast<int32_t>(random_() % vocab);
    return ids;
  }

  const Flags& flags_;
  const int most_prefix_;
  Engine engine_;
  std::mt19937 random_{7};
};

// Which of the tokens are equal, of one.
double EqualPart(const Decoded& a, const Decoded& b) {
  size_t equal = 0;
  for (size_t i = 0; i < a.ids.size(); ++i) equal += a.ids[i] == b.ids[i] ? 1 : 0;
  return static_cast<double>(equal) / static_cast<double>(a.ids.size());
}

void PrintRow(int sequences, int prefix, const Decoded& alone, const Decoded& copies,
              const Decoded& shared, double bytes_per_s) {
  const double rate = sequences / shared.step_s;
  const auto modelled = [&](const Decoded& what) {
    const int64_t more = std::max<int64_t>(0, what.bytes - alone.bytes);
    return alone.step_s + static_cast<double>(more) / bytes_per_s;
  };
  fmt::print("| {} | {} | {:.1f} | {:.1f} | {:.1f} | {:.1f} | {:.2f} | {:.2f} | {:.2f} |\n",
             sequences, prefix, static_cast<double>(copies.bytes) / 1e6,
             static_cast<double>(shared.bytes) / 1e6, sequences / copies.step_s, rate,
             copies.step_s / shared.step_s, copies.processor_s / shared.processor_s,
             modelled(copies) / modelled(shared));
  std::fflush(stdout);
}

absl::Status Run(const Flags& flags) {
  ASSIGN_OR_RETURN(auto model, model::Model::Load(flags.model));
  const int longest = BlocksOfSequence(flags) * kBlock;
  if (longest > model->config.context) {
    return InvalidArgument("{} positions exceed the context of {}", longest, model->config.context);
  }
  for (const int prefix : flags.prefixes) {
    if (prefix % kBlock != 0) return InvalidArgument("--prefixes: {} is no whole block", prefix);
  }
  kernels::OpsOptions options{.isa = kernels::BestIsa(), .threads = flags.threads};
  if (flags.numerics == "batch_invariant") options.numerics = kernels::Numerics::kBatchInvariant;
  const int blocks = MostOf(flags.sequences) * BlocksOfSequence(flags);
  ASSIGN_OR_RETURN(
      std::shared_ptr<kv::KvStorage> storage,
      kv::KvStorage::Create(KvLayoutOf(model->config, kBlock), model->config.layers, blocks));
  Bench bench(std::move(model), options, flags, std::move(storage));
  bench.Fill();
  const double speed = bench.ReadSpeed();
  fmt::print("{} {}, {} threads, suffix {}, median of {} steps; memory reads {:.1f} GB/s\n",
             kernels::IsaName(options.isa), flags.numerics, flags.threads, flags.suffix,
             flags.steps, speed);
  fmt::print(
      "| sequences | prefix | MB a step, copies | MB, shared | tok/s, copies | tok/s, shared "
      "| ratio | of processor time | by traffic |\n| ---: | ---: | ---: | ---: | ---: | ---: | "
      "---: "
      "| ---: | ---: |\n");
  // On tiles sharers are attended in another precision.
  const bool may_differ =
      options.numerics == kernels::Numerics::kFast && options.isa == kernels::Isa::kAmx;
  const double least_equal = may_differ ? 0.95 : 1;
  for (const int sequences : flags.sequences) {
    const Decoded alone = bench.Decode(sequences, 0, false);
    for (const int prefix : flags.prefixes) {
      const Decoded copies = bench.Decode(sequences, prefix, false);
      const Decoded shared = bench.Decode(sequences, prefix, true, copies.ids);
      const double equal = EqualPart(copies, shared);
      if (equal < least_equal) {
        return absl::InternalError(
            fmt::format("sharing left only {:.3f} of the tokens as they were", equal));
      }
      PrintRow(sequences, prefix, alone, copies, shared, speed * 1e9);
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace trivium::engine

int main(int argc, char** argv) {
  trivium::engine::Flags flags;
  CLI::App app("Decode speed of sequences over one prefix, with and without shared blocks");
  app.add_option("--model", flags.model, "GGUF file")->required();
  app.add_option("--threads", flags.threads)->check(CLI::Range(1, 256))->capture_default_str();
  app.add_option("--numerics", flags.numerics)
      ->check(CLI::IsMember({"fast", "batch_invariant"}))
      ->capture_default_str();
  app.add_option("--prefixes", flags.prefixes, "tokens, multiples of 16")
      ->delimiter(',')
      ->check(CLI::Range(16, 8192))
      ->capture_default_str();
  app.add_option("--sequences", flags.sequences, "decoded together")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--suffix", flags.suffix, "tokens of each sequence behind the prefix")
      ->check(CLI::Range(1, 8192))
      ->capture_default_str();
  app.add_option("--steps", flags.steps)->check(CLI::Range(1, 8192))->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = trivium::engine::Run(flags);
  if (!status.ok()) {
    fmt::print(stderr, "shared_prefix_bench: {}\n", trivium::Message(status));
    return 1;
  }
  return 0;
}

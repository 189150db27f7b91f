// Prefill and decode speed of the engine alone, on random tokens.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "common/engine/engine.h"
#include "common/engine/sampler.h"
#include "common/kv/block_pool.h"
#include "common/kv/kv_storage.h"
#include "common/model/model.h"
#include "kernels/ops.h"

namespace trivium::engine {
namespace {

struct Flags {
  std::string model;
  int threads = 2;
  std::string isa;
  std::string numerics = "fast";
  int prompt = 512;
  int output = 64;
  int context = 128;  // of each sequence when decoding begins
  int repeats = 5;
  std::vector<int> sequences = {1, 16};
  bool json = false;
};

double SecondsOf(const auto& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

class Bench {
 public:
  Bench(std::shared_ptr<const model::Model> model, const kernels::OpsOptions& options,
        const Flags& flags, std::shared_ptr<kv::KvStorage> storage)
      : flags_(flags),
        pool_(storage->blocks()),
        block_tokens_(storage->layout().block_tokens),
        engine_(std::move(model), kernels::MakeOps(options), std::move(storage)) {}

  // Tokens a second, best of the repeats; the first run, which warms everything up, does not count.
  double Prefill() {
    double best = 1e30;
    for (int i = 0; i <= flags_.repeats; ++i) {
      const auto ids = RandomIds(flags_.prompt);
      const kv::Reservation blocks = Reserve(flags_.prompt);
      const SequenceRange range{.tokens = ids, .position = 0, .block_table = blocks.block_table()};
      const double seconds = SecondsOf([&] {
        Sample(engine_.Step({&range, 1}).logits, {}, 0, {});
      });
      if (i > 0) best = std::min(best, seconds);
    }
    return flags_.prompt / best;
  }

  // Tokens a second of all sequences together, sampling included.
  double Decode(int sequences) {
    std::vector<kv::Reservation> blocks;
    std::vector<int32_t> last(static_cast<size_t>(sequences));
    for (int32_t& id : last) {
      blocks.push_back(Reserve(flags_.context + flags_.output + 1));
      const auto ids = RandomIds(flags_.context);
      const SequenceRange range{.tokens = ids, .block_table = blocks.back().block_table()};
      id = Sample(engine_.Step({&range, 1}).logits, {}, 0, {}).id;
    }
    double best = 1e30;
    for (int i = 0; i <= flags_.repeats; ++i) {
      const double seconds = SecondsOf([&] { DecodeOnce(blocks, last); });
      if (i > 0) best = std::min(best, seconds);
    }
    return static_cast<double>(sequences) * flags_.output / best;
  }

 private:
  void DecodeOnce(const std::vector<kv::Reservation>& blocks, std::vector<int32_t> last) {
    std::vector<SequenceRange> batch(last.size());
    for (int index = 0; index < flags_.output; ++index) {
      for (size_t i = 0; i < batch.size(); ++i) {
        batch[i] = {.tokens = {&last[i], 1},
                    .position = flags_.context + index,
                    .block_table = blocks[i].block_table()};
      }
      const StepResult result = engine_.Step(batch);
      const auto vocab = static_cast<size_t>(engine_.model().config.vocab);
      for (size_t i = 0; i < batch.size(); ++i) {
        last[i] = Sample(result.logits.subspan(i * vocab, vocab), {}, index, {}).id;
      }
    }
  }

  std::vector<int32_t> RandomIds(int count) {
    std::vector<int32_t> ids(static_cast<size_t>(count));
    const auto vocab = static_cast<uint32_t>(engine_.model().config.vocab);
    for (int32_t& id : ids) id = static_cast<int32_t>(random_() % vocab);
    return ids;
  }
  kv::Reservation Reserve(int tokens) {
    auto blocks = pool_.Reserve((tokens + block_tokens_ - 1) / block_tokens_);
    TRIVIUM_CHECK(blocks.ok(), "{}", Message(blocks.status()));
    return std::move(*blocks);
  }

  const Flags& flags_;
  kv::BlockPool pool_;
  const int block_tokens_;
  Engine engine_;
  std::mt19937 random_{7};
};

absl::StatusOr<kernels::OpsOptions> OptionsOf(const Flags& flags) {
  kernels::OpsOptions options{.isa = kernels::BestIsa(), .threads = flags.threads};
  if (!flags.isa.empty() && !kernels::ParseIsa(flags.isa, &options.isa)) {
    return InvalidArgument("--isa: {} is not known", flags.isa);
  }
  if (kernels::MakeOps(options) == nullptr) {
    return InvalidArgument("--isa: this machine lacks {}", kernels::IsaName(options.isa));
  }
  if (flags.numerics == "batch_invariant") options.numerics = kernels::Numerics::kBatchInvariant;
  return options;
}

void Print(const Flags& flags, const kernels::OpsOptions& options, double prefill,
           const std::vector<std::pair<int, double>>& decode) {
  const char* isa = kernels::IsaName(options.isa);
  if (!flags.json) {
    fmt::print("{} {} {} threads: prefill {} tokens: {:.1f} tok/s\n", isa, flags.numerics,
               flags.threads, flags.prompt, prefill);
    for (const auto& [sequences, speed] : decode) {
      fmt::print("decode {} sequences from {} tokens: {:.1f} tok/s\n", sequences, flags.context,
                 speed);
    }
    return;
  }
  nlohmann::json report = {{"isa", isa},
                           {"numerics", flags.numerics},
                           {"threads", flags.threads},
                           {"prompt", flags.prompt},
                           {"context", flags.context},
                           {"output", flags.output},
                           {"prefill_tokens_per_second", prefill},
                           {"decode", nlohmann::json::array()}};
  for (const auto& [sequences, speed] : decode) {
    report["decode"].push_back({{"sequences", sequences}, {"tokens_per_second", speed}});
  }
  fmt::print("{}\n", report.dump());
}

absl::Status Run(const Flags& flags) {
  ASSIGN_OR_RETURN(const kernels::OpsOptions options, OptionsOf(flags));
  ASSIGN_OR_RETURN(auto model, model::Model::Load(flags.model));
  const int longest = std::max(flags.prompt, flags.context + flags.output + 1);
  if (longest > model->config.context) {
    return InvalidArgument("{} positions exceed the context of {}", longest, model->config.context);
  }
  int most = 1;
  for (int sequences : flags.sequences) most = std::max(most, sequences);
  const kernels::KvLayout layout = KvLayoutOf(model->config);
  const int blocks = most * (longest / layout.block_tokens + 2);
  ASSIGN_OR_RETURN(std::shared_ptr<kv::KvStorage> storage,
                   kv::KvStorage::Create(layout, model->config.layers, blocks));
  Bench bench(std::move(model), options, flags, std::move(storage));
  const double prefill = flags.prompt > 0 ? bench.Prefill() : 0;
  std::vector<std::pair<int, double>> decode;
  for (int sequences : flags.sequences) decode.emplace_back(sequences, bench.Decode(sequences));
  Print(flags, options, prefill, decode);
  return absl::OkStatus();
}

}  // namespace
}  // namespace trivium::engine

int main(int argc, char** argv) {
  trivium::engine::Flags flags;
  CLI::App app("Prefill and decode speed of the engine, in tokens a second");
  app.add_option("--model", flags.model, "GGUF file")->required();
  app.add_option("--threads", flags.threads)->check(CLI::Range(1, 256))->capture_default_str();
  app.add_option("--isa", flags.isa, "reference, avx2, avx512 or amx; the best one if left out");
  app.add_option("--numerics", flags.numerics)
      ->check(CLI::IsMember({"fast", "batch_invariant"}))
      ->capture_default_str();
  app.add_option("--prompt", flags.prompt, "tokens to prefill; 0: no prefill")
      ->check(CLI::Range(0, 8192))
      ->capture_default_str();
  app.add_option("--output", flags.output)->check(CLI::Range(1, 8192))->capture_default_str();
  app.add_option("--context", flags.context, "tokens before the first decoded one")
      ->check(CLI::Range(1, 8192))
      ->capture_default_str();
  app.add_option("--repeats", flags.repeats)->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--sequences", flags.sequences, "decoded together, e.g. 1,16")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_flag("--json", flags.json);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = trivium::engine::Run(flags);
  if (!status.ok()) {
    fmt::print(stderr, "engine_bench: {}\n", trivium::Message(status));
    return 1;
  }
  return 0;
}

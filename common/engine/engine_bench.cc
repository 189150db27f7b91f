// Prefill and decode speed of the engine alone, on random tokens.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
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
#include "kernels/thread_pool.h"

namespace trivium::engine {
namespace {

struct Flags {
  std::string model;
  int threads = 2;
  std::string isa;
  std::string numerics = "fast";
  std::vector<int> prompts = {512};
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

  void FirstToken() {
    const std::vector<int32_t> ids = {1};
    const kv::Reservation blocks = Reserve(1);
    const SequenceRange range{.tokens = ids, .position = 0, .block_table = blocks.block_table()};
    Sample(engine_.Step({&range, 1}).logits, {}, 0, {});
  }

  // Tokens a second, best of the repeats; the first run, which warms everything up, does not count.
  double Prefill(int prompt) {
    double best = 1e30;
    for (int i = 0; i <= flags_.repeats; ++i) {
      const auto ids = RandomIds(prompt);
      const kv::Reservation blocks = Reserve(prompt);
      const SequenceRange range{.tokens = ids, .position = 0, .block_table = blocks.block_table()};
      const double seconds = SecondsOf([&] {
        Sample(engine_.Step({&range, 1}).logits, {}, 0, {});
      });
      if (i > 0) best = std::min(best, seconds);
    }
    return prompt / best;
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

// Bytes of the matrices that a step reads once, as they lie in the file; of experts, all of them.
int64_t WeightBytes(const model::Model& model) {
  const auto bytes = [](const kernels::WeightView& w) {
    return w.rows == 0 ? 0 : w.rows * kernels::RowBytes(w.type, w.cols);
  };
  const auto ffn_bytes = [&](const model::FfnWeights& w) {
    return bytes(w.gate) + bytes(w.up) + bytes(w.down);
  };
  int64_t sum = bytes(model.output);
  for (const model::LayerWeights& layer : model.layers) {
    sum += bytes(layer.q) + bytes(layer.k) + bytes(layer.v) + bytes(layer.attn_out);
    sum += ffn_bytes(layer.ffn) + ffn_bytes(layer.shared);
    sum += bytes(layer.router) + bytes(layer.shared_router);
    for (const model::FfnWeights& expert : layer.experts) sum += ffn_bytes(expert);
  }
  return sum;
}

// A layer's matrices but those of experts.
std::vector<kernels::WeightView> MatricesOf(const model::LayerWeights& layer) {
  std::vector<kernels::WeightView> all = {layer.q, layer.k, layer.v, layer.attn_out};
  for (const kernels::WeightView& w : {layer.ffn.gate, layer.ffn.up, layer.ffn.down}) {
    if (w.rows > 0) all.push_back(w);
  }
  return all;
}

// Multiplications and additions of a prompt token in these matrices of all layers, in GFLOP.
double GigaflopsOfToken(const model::Model& model) {
  double sum = 0;
  for (const model::LayerWeights& layer : model.layers) {
    for (const auto& w : MatricesOf(layer)) sum += 2e-9 * static_cast<double>(w.rows * w.cols);
  }
  return sum;
}

// GFLOP/s of products with one layer's matrices and 512 rows, each the best of the repeats: what
// prefill would reach if it did nothing else.
double MatmulPeak(const Flags& flags, const kernels::OpsOptions& options,
                  const model::Model& model) {
  constexpr int kRows = 512;
  const auto ops = kernels::MakeOps(options);
  double gigaflops = 0, seconds = 0;
  for (const kernels::WeightView& w : MatricesOf(model.layers[0])) {
    const auto matrix = ops->Pack(w);
    const std::vector<float> x(static_cast<size_t>(kRows * w.cols), 0.5f);
    std::vector<float> y(static_cast<size_t>(kRows * w.rows));
    double best = 1e30;
    for (int i = 0; i <= flags.repeats; ++i) {
      best = std::min(best, SecondsOf([&] { ops->Matmul(*matrix, x.data(), kRows, y.data()); }));
    }
    gigaflops += 2e-9 * kRows * static_cast<double>(w.rows * w.cols);
    seconds += best;
  }
  return gigaflops / seconds;
}

// GB/s of all threads reading once as many bytes as a step reads of weights, which the last cache
// may hold; best of the repeats.
double ReadBandwidth(const Flags& flags, int64_t bytes) {
  kernels::ThreadPool pool(flags.threads);
  const std::vector<uint64_t> words(static_cast<size_t>(bytes / 8), 1);
  std::vector<uint64_t> sums(static_cast<size_t>(flags.threads) * 8);
  double best = 1e30;
  for (int i = 0; i <= flags.repeats; ++i) {
    best = std::min(best, SecondsOf([&] {
                      pool.ParallelFor(static_cast<int64_t>(words.size()), 4096,
                                       [&](int64_t begin, int64_t end, int thread) {
                                         uint64_t sum = 0;
                                         for (int64_t at = begin; at < end; ++at)
                                           sum += words[static_cast<size_t>(at)];
                                         sums[static_cast<size_t>(thread) * 8] += sum;
                                       });
                    }));
  }
  uint64_t total = 0;
  for (uint64_t sum : sums) total += sum;
  TRIVIUM_CHECK(total == words.size() * (static_cast<uint64_t>(flags.repeats) + 1), "read {} words",
                total);
  return static_cast<double>(words.size()) * 8e-9 / best;
}

// Resident memory of this process in MB.
double ResidentMegabytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t pages = 0, resident = 0;
  statm >> pages >> resident;
  return static_cast<double>(resident) * 4096e-6;
}

nlohmann::json Measure(const Flags& flags, const kernels::OpsOptions& options, Bench& bench) {
  nlohmann::json report = {{"isa", kernels::IsaName(options.isa)},
                           {"numerics", flags.numerics},
                           {"threads", flags.threads},
                           {"context", flags.context},
                           {"output", flags.output},
                           {"prefill", nlohmann::json::array()},
                           {"decode", nlohmann::json::array()}};
  for (int prompt : flags.prompts) {
    report["prefill"].push_back({{"prompt", prompt}, {"tokens_per_second", bench.Prefill(prompt)}});
  }
  for (int sequences : flags.sequences) {
    report["decode"].push_back(
        {{"sequences", sequences}, {"tokens_per_second", bench.Decode(sequences)}});
  }
  return report;
}

void Print(const Flags& flags, const nlohmann::json& report) {
  if (flags.json) {
    fmt::print("{}\n", report.dump());
    return;
  }
  fmt::print("{} {} {} threads\n", report["isa"].get<std::string>(), flags.numerics, flags.threads);
  for (const auto& entry : report["prefill"]) {
    fmt::print("prefill {} tokens: {:.1f} tok/s\n", entry["prompt"].get<int>(),
               entry["tokens_per_second"].get<double>());
  }
  for (const auto& entry : report["decode"]) {
    fmt::print("decode {} sequences from {} tokens: {:.1f} tok/s\n", entry["sequences"].get<int>(),
               flags.context, entry["tokens_per_second"].get<double>());
  }
  for (const char* name :
       {"load_to_first_token_seconds", "resident_megabytes_after_load", "kv_pool_megabytes",
        "weight_megabytes_a_step", "gigaflops_a_prompt_token", "matmul_gigaflops_per_second",
        "read_gigabytes_per_second"}) {
    fmt::print("{}: {:.2f}\n", name, report[name].get<double>());
  }
}

absl::Status Run(const Flags& flags) {
  ASSIGN_OR_RETURN(const kernels::OpsOptions options, OptionsOf(flags));
  const auto begin = std::chrono::steady_clock::now();
  ASSIGN_OR_RETURN(auto model, model::Model::Load(flags.model));
  int longest = flags.context + flags.output + 1;
  for (int prompt : flags.prompts) longest = std::max(longest, prompt);
  if (longest > model->config.context) {
    return InvalidArgument("{} positions exceed the context of {}", longest, model->config.context);
  }
  int most = 1;
  for (int sequences : flags.sequences) most = std::max(most, sequences);
  const kernels::KvLayout layout = KvLayoutOf(model->config);
  const int each = (flags.context + flags.output + 1) / layout.block_tokens + 2;
  const int blocks = std::max(most * each, longest / layout.block_tokens + 2);
  ASSIGN_OR_RETURN(std::shared_ptr<kv::KvStorage> storage,
                   kv::KvStorage::Create(layout, model->config.layers, blocks));
  const int64_t weights = WeightBytes(*model);
  const double token_gigaflops = GigaflopsOfToken(*model);
  const std::shared_ptr<const model::Model> layers = model;
  const double pool = static_cast<double>(blocks) * model->config.layers *
                      static_cast<double>(layout.PageBytes()) * 1e-6;
  Bench bench(std::move(model), options, flags, std::move(storage));
  bench.FirstToken();
  const std::chrono::duration<double> load = std::chrono::steady_clock::now() - begin;
  const double resident = ResidentMegabytes();
  nlohmann::json report = Measure(flags, options, bench);
  report["load_to_first_token_seconds"] = load.count();
  report["resident_megabytes_after_load"] = resident;
  report["kv_pool_megabytes"] = pool;
  report["weight_megabytes_a_step"] = static_cast<double>(weights) * 1e-6;
  report["gigaflops_a_prompt_token"] = token_gigaflops;
  report["matmul_gigaflops_per_second"] = MatmulPeak(flags, options, *layers);
  report["read_gigabytes_per_second"] = ReadBandwidth(flags, weights);
  Print(flags, report);
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
  app.add_option("--prompt", flags.prompts, "tokens to prefill, e.g. 128,512,2048")
      ->delimiter(',')
      ->check(CLI::Range(1, 8192))
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

// Writes a synthetic model with experts for benchmarks: the layers and sizes of SmolLM2-135M, each
// feed-forward network as 16 random experts of a quarter of its size, of which each row uses two.
// Random weights: its text means nothing. The same seed gives the same bytes.
//
//   synthetic_moe --out PATH.gguf [--type Q4_0|Q8_0] [--layers 30] [--seed 1]
#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>
#include <string>

#include "common/model/testing/tiny_model.h"

namespace trivium {
namespace {

using kernels::WeightType;

model::TinyModelOptions SmolMoe(WeightType type, int layers, uint64_t seed) {
  return {.name = "synthetic MoE, random weights",
          .layers = layers,
          .hidden = 576,
          .heads = 9,
          .kv_heads = 3,
          .head_dim = 64,
          .ffn = 384,
          .experts = 16,
          .experts_used = 2,
          .vocab = 935,
          .context = 8192,
          .linear_type = type,
          .embedding_type = WeightType::kQ8_0,
          .seed = seed};
}

int Main(int argc, char** argv) {
  CLI::App app{"Writes a synthetic model with experts, of random weights"};
  std::string out;
  WeightType type = WeightType::kQ4_0;
  int layers = 30;
  uint64_t seed = 1;
  const std::map<std::string, WeightType> types = {{"Q4_0", WeightType::kQ4_0},
                                                   {"Q8_0", WeightType::kQ8_0}};
  app.add_option("--out", out, "path of the GGUF file")->required();
  app.add_option("--type", type, "of the weights: Q4_0 or Q8_0")
      ->transform(CLI::CheckedTransformer(types));
  app.add_option("--layers", layers)->check(CLI::Range(1, 512));
  app.add_option("--seed", seed);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = model::WriteTinyModel(out, SmolMoe(type, layers, seed));
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", Message(status).c_str());
  return 1;
}

}  // namespace
}  // namespace trivium

int main(int argc, char** argv) { return trivium::Main(argc, argv); }

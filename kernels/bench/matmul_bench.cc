// Matrix products of SmolLM2-135M shapes: GFLOP/s, and GB/s of weights in the file's format.
//   matmul_bench --benchmark_filter=Q4_1
#include <benchmark/benchmark.h>

#include <random>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "kernels/random_weights.h"

namespace trivium::kernels {
namespace {

struct Shape {
  int64_t n, k;
};

std::vector<uint8_t> RandomWeights(WeightType type, int64_t n, int64_t k) {
  std::mt19937 random(1);
  std::vector<uint8_t> bytes(n * RowBytes(type, k));
  for (size_t i = 0; i < bytes.size(); i += BlockBytes(type)) {
    FillRandomBlock(random, type, 0.03f, &bytes[i]);
  }
  return bytes;
}

void RunMatmul(benchmark::State& state, const OpsOptions& options, WeightType type, Shape shape) {
  const auto rows = static_cast<int>(state.range(0));
  const auto ops = MakeOps(options);
  const std::vector<uint8_t> bytes = RandomWeights(type, shape.n, shape.k);
  // As many copies as a model has layers: a step finds no weights in the cache.
  const int64_t copies =
      std::max<int64_t>(1, (int64_t{64} << 20) / static_cast<int64_t>(bytes.size()));
  std::vector<std::unique_ptr<Matrix>> matrices;
  for (int64_t i = 0; i < copies; ++i) {
    matrices.push_back(ops->Pack({type, bytes.data(), shape.n, shape.k}));
  }
  std::vector<float> x(rows * shape.k, 0.5f), y(rows * shape.n);
  for (const auto& matrix : matrices) {  // builds the layouts that are built at first use
    ops->Matmul(*matrix, x.data(), rows, y.data());
  }
  size_t next = 0;
  for (auto _ : state) {
    ops->Matmul(*matrices[next++ % matrices.size()], x.data(), rows, y.data());
    benchmark::DoNotOptimize(y.data());
  }
  const auto calls = static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] =
      benchmark::Counter(2e-9 * rows * shape.n * shape.k * calls, benchmark::Counter::kIsRate);
  state.counters["GB/s"] =
      benchmark::Counter(1e-9 * bytes.size() * calls, benchmark::Counter::kIsRate);
}

void Register(Isa isa, WeightType type, Shape shape, int threads) {
  const std::string name = std::string(IsaName(isa)) + "/" + WeightTypeName(type) + "/" +
                           std::to_string(shape.k) + "->" + std::to_string(shape.n) +
                           "/threads:" + std::to_string(threads) + "/rows";
  const OpsOptions options{.isa = isa, .numerics = Numerics::kFast, .threads = threads};
  benchmark::RegisterBenchmark(
      name.c_str(), [=](benchmark::State& state) { RunMatmul(state, options, type, shape); })
      ->Arg(1)
      ->Arg(4)
      ->Arg(16)
      ->Arg(64)
      ->Arg(512)
      ->UseRealTime();
}

void RegisterAll() {
  for (const Isa isa : SupportedIsas()) {
    if (isa == Isa::kReference) continue;
    for (const int threads : {1, 2}) {
      for (const WeightType type :
           {WeightType::kQ4_1, WeightType::kQ8_0, WeightType::kF16, WeightType::kF32}) {
        for (const Shape shape :
             {Shape{1536, 576}, Shape{576, 1536}, Shape{576, 576}, Shape{192, 576}}) {
          Register(isa, type, shape, threads);
        }
      }
      Register(isa, WeightType::kQ8_0, {49152, 576}, threads);
      // Rows of whole super-blocks, the same for every format that has blocks.
      for (const WeightType type : AllWeightTypes()) {
        if (BlockElems(type) > 1) Register(isa, type, {2048, 1024}, threads);
      }
    }
  }
}

}  // namespace
}  // namespace trivium::kernels

int main(int argc, char** argv) {
  trivium::kernels::RegisterAll();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}

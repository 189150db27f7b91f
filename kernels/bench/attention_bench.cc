// Attention with the heads of SmolLM2-135M (9 query heads, 3 kv heads, head size 64): GFLOP/s, and
// GB/s of keys and values read.
//   attention_bench --benchmark_filter=decode
#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "kernels/ops.h"

namespace trivium::kernels {
namespace {

constexpr int kHeads = 9;
constexpr KvLayout kLayout{.block_tokens = 16, .kv_heads = 3, .head_dim = 64};

// `sequences` sequences of `keys` keys each, with queries at their last `rows` positions. The first
// `prefix` keys of all lie in the same pages; `told` says whether Attention hears of it.
struct Shape {
  int sequences, rows, keys;
  int prefix = 0;
  bool told = false;
};

// Keys and values as a server keeps them: in large pages, where the machine has some.
struct Unmap {
  int64_t bytes;
  void operator()(uint16_t* memory) const { munmap(memory, static_cast<size_t>(bytes)); }
};

std::unique_ptr<uint16_t, Unmap> MakeKv(int64_t elems) {
  const int64_t bytes = elems * 2;
  void* memory = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  (void)madvise(memory, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  auto* halves = static_cast<uint16_t*>(memory);
  std::fill_n(halves, elems, 0x3000);
  return {halves, Unmap{bytes}};
}

void RunAttention(benchmark::State& state, const OpsOptions& options, const Shape& shape) {
  const auto [sequences, rows, keys, prefix, told] = shape;
  const auto ops = MakeOps(options);
  const int pages = (keys + kLayout.block_tokens - 1) / kLayout.block_tokens;
  const auto kv = MakeKv(sequences * pages * kLayout.PageWords());
  std::vector<int32_t> tables(sequences * pages), positions;
  for (size_t i = 0; i < tables.size(); ++i)
    tables[i] = static_cast<int32_t>(tables.size() - 1 - i);
  std::vector<SequenceSpan> spans;
  for (int s = 0; s < sequences; ++s) {
    spans.push_back({s * rows, rows, tables.data() + s * pages, told && s > 0 ? prefix : 0});
    std::copy_n(tables.begin(), prefix / kLayout.block_tokens, tables.begin() + s * pages);
    for (int r = 0; r < rows; ++r) positions.push_back(keys - rows + r);
  }
  std::vector<float> q(positions.size() * kHeads * kLayout.head_dim, 0.1f), out(q.size());
  AttentionArgs args{.q = q.data(),
                     .positions = positions.data(),
                     .spans = spans,
                     .kv_layer = kv.get(),
                     .layout = kLayout,
                     .heads = kHeads,
                     .scale = 0.125f,
                     .out = out.data(),
                     .lse = nullptr};
  for (auto _ : state) ops->Attention(args);
  double pairs = 0;
  for (const int32_t p : positions) pairs += p + 1;
  const auto calls = static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] = benchmark::Counter(4e-9 * pairs * kHeads * kLayout.head_dim * calls,
                                                 benchmark::Counter::kIsRate);
  state.counters["GB/s"] = benchmark::Counter(4e-9 * sequences * keys * kLayout.RowElems() * calls,
                                              benchmark::Counter::kIsRate);
}

void Register(Isa isa, const std::string& what, const Shape& shape) {
  for (const int threads : {1, 2}) {
    const std::string name =
        std::string(IsaName(isa)) + "/" + what + "/sequences:" + std::to_string(shape.sequences) +
        "/threads:" + std::to_string(threads) + "/keys:" + std::to_string(shape.keys);
    const OpsOptions options{.isa = isa, .numerics = Numerics::kFast, .threads = threads};
    benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
      RunAttention(state, options, shape);
    })->UseRealTime();
  }
}

void RegisterAll() {
  for (const Isa isa : SupportedIsas()) {
    if (isa == Isa::kReference) continue;
    for (const int keys : {512, 2048, 8192}) {
      Register(isa, "prefill", {1, keys, keys});
      Register(isa, "chunk64", {1, 64, keys});
      for (const int rows : {2, 4, 8, 16}) {
        Register(isa, "suffix" + std::to_string(rows), {1, rows, keys});
      }
    }
    for (const int keys : {128, 1024, 8192}) {
      Register(isa, "decode", {1, 1, keys});
      Register(isa, "decode", {16, 1, keys});
    }
    for (const int prefix : {16, 32, 64, 128, 1024}) {
      for (const int sequences : {2, 16}) {
        for (const bool told : {false, true}) {
          Register(isa, (told ? "together/" : "apart/") + std::to_string(prefix),
                   {sequences, 1, prefix + 160, prefix, told});
        }
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

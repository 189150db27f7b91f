// What the router spends on one placement of a 2,048-token prompt: hashing its 128 blocks, looking
// them up among a million, choosing among 64 workers. Processor time beside wall time, since on a
// busy machine the tail of the latter is the machine's.
//   prefix_lookup_bench
#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <random>
#include <thread>

#include "services/router/prefix_index/prefix_index.h"
#include "services/router/prefix_index/prompt_keys.h"

namespace trivium::router {
namespace {

constexpr size_t kWorkers = 64;
constexpr size_t kPromptTokens = 2048;
constexpr size_t kPrompts = 7850;  // of 128 blocks each: a million

const kv::KeySpace kSpace{
    .model = std::string(64, 'm'), .numerics_class = "fast/avx512", .kv_format = 1};

std::vector<kv::Domain> Domains() {
  kv::Domain domain;
  domain.key.bytes.fill(7);
  domain.token_end = std::numeric_limits<int32_t>::max();
  return {domain};
}

std::vector<int32_t> Prompt(uint64_t name) {
  std::mt19937_64 random(name);
  std::vector<int32_t> ids(kPromptTokens + 1);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % 49152);
  return ids;
}

void Append(const std::vector<kv::CutKey>& keys, v1::KvEvents* events) {
  v1::KvStored* stored = events->add_events()->mutable_stored();
  for (const kv::CutKey& key : keys) kv::AppendBytes(key, stored->mutable_keys());
}

// Each prompt lies at one prefill and one decode worker.
struct Fixture {
  Fixture() {
    std::vector<v1::KvEvents> events(kWorkers);
    for (v1::KvEvents& one : events) one.set_is_snapshot_begin(true);
    for (uint64_t name = 0; name < kPrompts; ++name) {
      const auto keys = KeysOf(Prompt(name), Domains(), {&kSpace, 1})[0].keys;
      Append(keys, &events[name % (kWorkers / 2)]);
      Append(keys, &events[kWorkers / 2 + name % (kWorkers / 2)]);
    }
    for (size_t i = 0; i < kWorkers; ++i) {
      TRIVIUM_CHECK(index.Apply(i, events[i]), "worker {}", i);
      WorkerView& worker = cluster.workers.emplace_back();
      worker.role = i < kWorkers / 2 ? Role::kPrefill : Role::kDecode;
      worker.condition = WorkerCondition::kReady;
      worker.numerics_class = kSpace.numerics_class;
      worker.wire_format = 1;
      worker.blocks_total = worker.blocks_free = 100000;
      worker.block_tokens = 16;
      worker.requests_max = 64;
      worker.requests = static_cast<int32_t>(i % 9);
      worker.step_cost = {.per_row_s = 1e-4, .base_s = 2e-3, .per_key_s = 1e-9};
    }
    cluster.kv_bytes_per_token = 23040;
  }
  PrefixIndex index{{.workers = kWorkers + 1}};
  ClusterSnapshot cluster;
};

Fixture& TheFixture() {
  static Fixture fixture;
  return fixture;
}

// A worker beside the others stores and removes 16 blocks every 50 us or so.
void Churn(PrefixIndex& index, const std::atomic<bool>& stops) {
  v1::KvEvents begin;
  begin.set_is_snapshot_begin(true);
  index.Apply(kWorkers, begin);
  std::mt19937_64 random(1);
  for (uint64_t next = 0; !stops; next += 2) {
    v1::KvEvents events;
    events.set_first(next);
    std::vector<kv::CutKey> keys(16);
    for (kv::CutKey& key : keys) key = {random(), random()};
    Append(keys, &events);
    *events.add_events()->mutable_removed() = events.events(0).stored();
    TRIVIUM_CHECK(index.Apply(kWorkers, events), "event {}", next);
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

double CpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void Report(const char* name, std::vector<double>& times_s, benchmark::State& state) {
  std::sort(times_s.begin(), times_s.end());
  state.counters[std::string(name) + "_p50_us"] = 1e6 * times_s[times_s.size() / 2];
  state.counters[std::string(name) + "_p99_us"] = 1e6 * times_s[times_s.size() * 99 / 100];
}

void BM_PlaceAPrompt(benchmark::State& state) {
  Fixture& fixture = TheFixture();
  std::atomic<bool> stops = false;
  std::thread churn;
  if (state.range(0) != 0) churn = std::thread([&] { Churn(fixture.index, stops); });
  std::vector<double> wall_s, cpu_s;
  uint64_t turn = 0;
  for (auto _ : state) {
    const std::vector<int32_t> prompt = Prompt(turn * 7919 % kPrompts);
    const auto begin = std::chrono::steady_clock::now();
    const double cpu_begin_s = CpuSeconds();
    const std::vector<PromptKeys> keys = KeysOf(prompt, Domains(), {&kSpace, 1});
    RequestShape shape;
    shape.prompt_tokens = static_cast<int32_t>(prompt.size());
    shape.output_tokens = 256;
    shape.turn = ++turn;
    fixture.index.LookUp(keys[0].keys, 16, &shape.held);
    auto placement = Choose(fixture.cluster, shape);
    benchmark::DoNotOptimize(placement);
    cpu_s.push_back(CpuSeconds() - cpu_begin_s);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    TRIVIUM_CHECK(shape.held.size() == 2 && placement.ok(), "{} hold it", shape.held.size());
    state.SetIterationTime(took.count());
    wall_s.push_back(took.count());
  }
  stops = true;
  if (churn.joinable()) churn.join();
  Report("wall", wall_s, state);
  Report("cpu", cpu_s, state);
  const PrefixIndex::Counts counts = fixture.index.counts();
  state.counters["pairs"] = static_cast<double>(counts.pairs);
  state.counters["bytes_a_pair"] =
      static_cast<double>(counts.bytes) / static_cast<double>(counts.pairs);
}
BENCHMARK(BM_PlaceAPrompt)->ArgName("events")->Arg(0)->Arg(1)->UseManualTime()->Iterations(20000);

void BM_LookUp(benchmark::State& state) {
  Fixture& fixture = TheFixture();
  std::vector<std::vector<kv::CutKey>> prompts;
  for (uint64_t name = 0; name < 500; ++name) {
    prompts.push_back(KeysOf(Prompt(name * 13), Domains(), {&kSpace, 1})[0].keys);
  }
  size_t next = static_cast<size_t>(state.thread_index()) * 100;
  std::vector<Held> held;
  for (auto _ : state) {
    held.clear();
    fixture.index.LookUp(prompts[next++ % prompts.size()], 16, &held);
    benchmark::DoNotOptimize(held.data());
  }
  state.counters["keys/s"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * kPromptTokens / 16, benchmark::Counter::kIsRate);
}
BENCHMARK(BM_LookUp)->Threads(1)->Threads(2)->UseRealTime();

}  // namespace
}  // namespace trivium::router

BENCHMARK_MAIN();

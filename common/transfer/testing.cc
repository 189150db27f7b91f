#include "common/transfer/testing.h"

#include <thread>

#include "common/transfer/in_process_link.h"
#include "common/transfer/ucx_link.h"

namespace trivium::transfer {
namespace {

constexpr int kBlockTokens = 16;

uint16_t Value(uint64_t seed, int64_t layer, int64_t token, int64_t part, int64_t element) {
  uint64_t x = seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(layer) * 1000003u +
               static_cast<uint64_t>(token) * 7919u + static_cast<uint64_t>(part) * 104729u +
               static_cast<uint64_t>(element);
  x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u;
  x ^= x >> 32;
  return static_cast<uint16_t>(x | 1);  // never zero
}

// visit(value in the page, what the pattern says)
template <typename F>
void ForEachValue(const kv::KvStorage& storage, const std::vector<BlockId>& blocks, int32_t begin,
                  int32_t end, uint64_t seed, F&& visit) {
  const int64_t row = storage.layout().RowWords();
  for (int layer = 0; layer < storage.layers(); ++layer) {
    for (int32_t token = begin; token < end; ++token) {
      uint16_t* page = storage.page(layer, blocks[static_cast<size_t>(token / kBlockTokens)]);
      for (int part = 0; part < 2; ++part) {
        uint16_t* values = page + (part * kBlockTokens + token % kBlockTokens) * row;
        for (int64_t i = 0; i < row; ++i) {
          visit(values[i], Value(seed, layer, token, part, i), layer, token);
        }
      }
    }
  }
}

TransportOptions OptionsOf(const std::string& name, TransportOptions options) {
  options.transports = name + ",self";
  return options;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Transport>> Backend::MakeTransport(TransportOptions options) const {
  if (kind == LinkKind::kInProcess) return MakeInProcessTransport(std::move(options));
  return MakeUcxTransport(OptionsOf(name, std::move(options)));
}

absl::StatusOr<std::unique_ptr<Link>> Backend::MakeLink() const {
  if (kind == LinkKind::kInProcess) return MakeInProcessLink();
  return MakeUcxLink({.transports = name + ",self", .interface = "lo"});
}

std::vector<Backend> AllBackends() {
  return {{"in-process", LinkKind::kInProcess}, {"posix", LinkKind::kUcx}, {"tcp", LinkKind::kUcx}};
}

const Backend* FindBackend(const std::string& name) {
  static const std::vector<Backend> backends = AllBackends();
  for (const Backend& backend : backends) {
    if (backend.name == name) return &backend;
  }
  return nullptr;
}

std::vector<uint8_t> Gather(const RowMap& map, std::span<const BlockId> blocks,
                            const RowRange& rows) {
  std::vector<uint8_t> bytes;
  for (const auto run : map.Runs(blocks, rows)) bytes.insert(bytes.end(), run.begin(), run.end());
  return bytes;
}

void Scatter(const RowMap& map, std::span<const BlockId> blocks, const RowRange& rows,
             std::span<const uint8_t> bytes) {
  ArrivingRows(HeaderBytes{}, map.Runs(blocks, rows), nullptr).Write(0, bytes);
}

TestWorker::TestWorker(const Backend& backend, uint64_t epoch, double timeout_scale,
                       WorkerShape shape) {
  auto made = kv::KvStorage::Create({kBlockTokens, shape.kv_heads, shape.head_dim, shape.type},
                                    shape.layers, shape.blocks);
  TRIVIUM_CHECK(made.ok(), "{}", Message(made.status()));
  storage = *std::move(made);
  pool = std::make_unique<kv::BlockPool>(
      shape.blocks, [storage = storage](BlockId block) { storage->Scrub(block); });
  TransportOptions options;
  options.storage = storage;
  options.epoch = WorkerEpoch{epoch};
  options.timeouts.scale = timeout_scale;
  auto opened = backend.MakeTransport(options);
  TRIVIUM_CHECK(opened.ok(), "{}", Message(opened.status()));
  transport = *std::move(opened);
}

TestWorker::~TestWorker() { transport.reset(); }

bool TestWorker::AllBlocksFree() const { return pool->counts().free == pool->counts().total; }

SequenceBlocks Blocks(const kv::Reservation& reservation) {
  return {{reservation.blocks().begin(), reservation.blocks().end()}, reservation.Lease()};
}

int32_t BlocksFor(int32_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

void FillRows(const kv::KvStorage& storage, const std::vector<BlockId>& blocks, int32_t begin,
              int32_t end, uint64_t seed) {
  ForEachValue(storage, blocks, begin, end, seed,
               [](uint16_t& value, uint16_t wanted, int, int32_t) { value = wanted; });
}

std::string CheckRows(const kv::KvStorage& storage, const std::vector<BlockId>& blocks,
                      int32_t begin, int32_t end, uint64_t seed, bool zero_tail, bool allow_zero) {
  std::string wrong;
  ForEachValue(storage, blocks, begin, end, seed,
               [&](uint16_t value, uint16_t wanted, int layer, int32_t token) {
                 if (value == wanted || (allow_zero && value == 0) || !wrong.empty()) return;
                 wrong = fmt::format("layer {} token {}: {} instead of {}", layer, token, value,
                                     wanted);
               });
  if (!zero_tail) return wrong;
  ForEachValue(storage, blocks, end, BlocksFor(end) * kBlockTokens, seed,
               [&](uint16_t value, uint16_t, int layer, int32_t token) {
                 if (value == 0 || !wrong.empty()) return;
                 wrong = fmt::format("layer {} token {}: {} behind the end", layer, token, value);
               });
  return wrong;
}

std::string CheckZero(const kv::KvStorage& storage, const std::vector<BlockId>& blocks) {
  std::string wrong;
  ForEachValue(storage, blocks, 0, static_cast<int32_t>(blocks.size()) * kBlockTokens, 0,
               [&](uint16_t value, uint16_t, int layer, int32_t token) {
                 if (value == 0 || !wrong.empty()) return;
                 wrong = fmt::format("layer {} token {}: {}", layer, token, value);
               });
  return wrong;
}

bool Eventually(const std::function<bool()>& done) {
  const TimePoint until = Clock::Real().Now() + std::chrono::seconds(30);
  while (!done()) {
    if (Clock::Real().Now() > until) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace trivium::transfer

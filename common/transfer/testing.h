// What the tests and benchmarks of transports share: a worker with a pool, storage and transport,
// recognisable rows, and callbacks that can be waited for. Not for services.
// Thread-safety: Outcome from any thread, the rest from the test's thread.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/kv/block_pool.h"
#include "common/kv/kv_storage.h"
#include "common/transfer/link.h"
#include "common/transfer/transport.h"
#include "common/transfer/wiring.h"

namespace trivium::transfer {

// One way to move bytes, as the conformance suite and the helper programs name it.
struct Backend {
  std::string name;  // in-process, posix, tcp
  LinkKind kind;
  absl::StatusOr<std::unique_ptr<Transport>> MakeTransport(TransportOptions options) const;
  absl::StatusOr<std::unique_ptr<Link>> MakeLink() const;
};
std::vector<Backend> AllBackends();
// Null when there is none of this name.
const Backend* FindBackend(const std::string& name);

// The one result of a callback, and how often it was called.
template <typename T>
class Outcome {
 public:
  // Keeps its state alive for callbacks that come late.
  std::function<void(absl::StatusOr<T>)> Callback() const {
    return [state = state_](absl::StatusOr<T> result) {
      std::lock_guard lock(state->mutex);
      ++state->calls;
      state->result = std::move(result);
      state->came.notify_all();
    };
  }
  // DEADLINE_EXCEEDED after half a minute: no correct transport takes so long in a test.
  absl::StatusOr<T> Wait() const {
    std::unique_lock lock(state_->mutex);
    const bool came = state_->came.wait_for(lock, std::chrono::seconds(30),
                                            [&] { return state_->result.has_value(); });
    if (!came) return absl::DeadlineExceededError("the callback never came");
    return *state_->result;
  }
  bool came() const { return calls() > 0; }
  int calls() const {
    std::lock_guard lock(state_->mutex);
    return state_->calls;
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable came;
    int calls = 0;
    std::optional<absl::StatusOr<T>> result;
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

// The rows of a message in one piece, and back into their pages.
std::vector<uint8_t> Gather(const RowMap& map, std::span<const BlockId> blocks,
                            const RowRange& rows);
void Scatter(const RowMap& map, std::span<const BlockId> blocks, const RowRange& rows,
             std::span<const uint8_t> bytes);

struct WorkerShape {
  int layers = 6;
  int kv_heads = 2;
  int head_dim = 16;
  int32_t blocks = 96;
  kernels::KvType type = kernels::KvType::kF16;
};

struct TestWorker {
  std::shared_ptr<kv::KvStorage> storage;
  std::unique_ptr<kv::BlockPool> pool;
  std::unique_ptr<Transport> transport;  // goes first

  TestWorker(const Backend& backend, uint64_t epoch, double timeout_scale, WorkerShape shape = {});
  ~TestWorker();
  bool AllBlocksFree() const;
};

// Tokens of a sequence in reserved blocks.
SequenceBlocks Blocks(const kv::Reservation& reservation);
int32_t BlocksFor(int32_t tokens);

// Writes / checks the rows that `seed` gives to tokens begin … end - 1 of every layer.
void FillRows(const kv::KvStorage& storage, const std::vector<BlockId>& blocks, int32_t begin,
              int32_t end, uint64_t seed);
// Empty when right, else what differs first. With `zero_tail`, rows behind `end` in its block are
// zeros.
std::string CheckRows(const kv::KvStorage& storage, const std::vector<BlockId>& blocks,
                      int32_t begin, int32_t end, uint64_t seed, bool zero_tail,
                      bool allow_zero = false);
// Empty when every byte of the blocks is zero.
std::string CheckZero(const kv::KvStorage& storage, const std::vector<BlockId>& blocks);

// Waits until `done` says so; false after half a minute.
bool Eventually(const std::function<bool()>& done);

}  // namespace trivium::transfer

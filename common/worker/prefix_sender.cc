#include "common/worker/prefix_sender.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

namespace trivium::worker {

struct PrefixSender::State {
  struct Active {
    int32_t tokens = 0;
    EndCallback on_end;
    kv::Reservation blocks;
    std::unique_ptr<transfer::Sender> sender;  // goes first: it stops reading before the blocks go
  };
  std::mutex mutex;
  std::map<uint64_t, Active> active;
  uint64_t last_number = 0;
  Counts counts;
};

PrefixSender::PrefixSender(kv::BlockPool* pool, transfer::Transport* transport, int32_t layers,
                           int32_t block_tokens)
    : pool_(*pool),
      transport_(*transport),
      layers_(layers),
      block_tokens_(block_tokens),
      state_(std::make_shared<State>()) {}

PrefixSender::~PrefixSender() = default;

absl::StatusOr<uint64_t> PrefixSender::Send(const PrefixRequest& request, EndCallback on_end) {
  uint64_t number = 0;
  {
    std::lock_guard lock(state_->mutex);
    if (state_->active.size() >= kSendsMax) {
      ++state_->counts.refused;
      return ResourceExhausted("{} prefixes are being sent", kSendsMax);
    }
    number = ++state_->last_number;
    state_->active[number].on_end = std::move(on_end);
  }
  kv::Reservation blocks = pool_.ReserveFound(
      {.chain = &request.chain, .blocks_max = request.ticket.token_end / block_tokens_});
  const absl::Status status = Begin(number, request, std::move(blocks));
  if (status.ok()) return number;
  std::lock_guard lock(state_->mutex);
  ++state_->counts.refused;
  state_->active.erase(number);
  return status;
}

absl::Status PrefixSender::Begin(uint64_t number, const PrefixRequest& request,
                                 kv::Reservation blocks) {
  const std::weak_ptr<State> weak = state_;
  auto done = [weak, number](absl::StatusOr<transfer::TransferStats> stats) {
    if (const auto state = weak.lock()) End(*state, number, std::move(stats));
  };
  const int32_t tokens = static_cast<int32_t>(blocks.blocks().size()) * block_tokens_;
  transfer::SequenceBlocks from{.blocks = {blocks.blocks().begin(), blocks.blocks().end()},
                                .lease = blocks.Lease()};
  {
    // Before the transport knows of it: `done` may come at once.
    std::lock_guard lock(state_->mutex);
    State::Active& active = state_->active[number];
    active.tokens = tokens;
    active.blocks = std::move(blocks);
  }
  ASSIGN_OR_RETURN(std::unique_ptr<transfer::Sender> sender,
                   transport_.Open(request.ticket, request.key, std::move(from), std::move(done)));
  if (tokens > request.ticket.token_begin) {
    sender->Send({.layer_begin = 0,
                  .layer_end = layers_,
                  .token_begin = request.ticket.token_begin,
                  .token_end = tokens});
  }
  sender->FinishShort();
  std::lock_guard lock(state_->mutex);
  const auto active = state_->active.find(number);
  if (active != state_->active.end()) active->second.sender = std::move(sender);
  return absl::OkStatus();
}

void PrefixSender::End(State& state, uint64_t number,
                       absl::StatusOr<transfer::TransferStats> stats) {
  std::map<uint64_t, State::Active>::node_type node;
  {
    std::lock_guard lock(state.mutex);
    node = state.active.extract(number);
    if (node.empty()) return;
    ++(stats.ok() ? state.counts.sent : state.counts.failed);
    if (stats.ok()) state.counts.tokens += node.mapped().tokens;
  }
  const EndCallback on_end = std::move(node.mapped().on_end);
  const int32_t tokens = node.mapped().tokens;
  node = {};
  if (stats.ok()) return on_end(PrefixReport{.tokens = tokens, .transfer = *stats});
  if (absl::IsCancelled(stats.status())) return on_end(stats.status());
  on_end(Unavailable("the prefix did not reach its worker: {}", Message(stats.status())));
}

void PrefixSender::Cancel(uint64_t number) {
  std::lock_guard lock(state_->mutex);
  const auto active = state_->active.find(number);
  if (active != state_->active.end()) active->second.sender->Abort();
}

PrefixSender::Counts PrefixSender::counts() const {
  std::lock_guard lock(state_->mutex);
  return state_->counts;
}

}  // namespace trivium::worker

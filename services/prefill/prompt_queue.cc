#include "services/prefill/prompt_queue.h"

#include <algorithm>
#include <utility>

namespace trivium::prefill {

void PromptQueue::Add(uint64_t number, const worker::StageRequest& request, TimePoint submitted,
                      bool comes_back) {
  const int32_t found =
      IsScored(request) ? 0 : pool_.CountFound(worker::PrefixOf(request, block_tokens_));
  order_.Add({.ticket = number,
              .share = request.share,
              .priority = request.priority,
              .hit_rate = static_cast<double>(found) * block_tokens_ / request.prompt_tokens(),
              .arrived = submitted,
              .comes_back = comes_back});
}

void PromptQueue::Admit(TimePoint now, std::vector<Admitted> admitted, const RequestOf& requests,
                        const Start& start) {
  using Verdict = scheduling::FairQueue::Verdict;
  order_.Serve(now, [&](uint64_t number) -> scheduling::FairQueue::Outcome {
    if (FillTwoSteps(admitted)) return {Verdict::kEnough};
    if (IsBeingComputed(requests(number), admitted)) return {Verdict::kPassedOver};
    const absl::StatusOr<Admitted> started = start(number);
    if (absl::IsResourceExhausted(started.status())) return {Verdict::kNoRoom};
    if (absl::IsAborted(started.status())) return {Verdict::kPassedOver};
    if (!started.ok()) return {Verdict::kTaken};
    admitted.push_back(*started);
    return {Verdict::kTaken, started->request->prompt_tokens() - started->reach};
  });
}

bool PromptQueue::FillTwoSteps(const std::vector<Admitted>& admitted) const {
  int64_t rows = 0;
  for (const Admitted& one : admitted) {
    if (one.waits) continue;
    rows += std::min(one.request->prompt_tokens() - one.done,
                     IsScored(*one.request) ? kScoredRows : step_tokens_);
  }
  return rows >= 2 * int64_t{step_tokens_};
}

// By a prompt with the same beginning in the same domains: it will be in the pool soon. A key names
// all before it, so the block that the other one gets next tells. One that waits for a picture gets
// that next: whoever has the same picture waits with it, and nobody else.
bool PromptQueue::IsBeingComputed(const worker::StageRequest& request,
                                  const std::vector<Admitted>& admitted) const {
  if (IsScored(request)) return false;
  const auto keys = request.chain.keys().first(static_cast<size_t>(
      std::min(request.chain.size(), worker::PrefixOf(request, block_tokens_).blocks_max)));
  return std::ranges::any_of(admitted, [&](const Admitted& one) {
    const auto next = static_cast<size_t>(one.next / block_tokens_);
    const auto others = one.request->chain.keys();
    return next < std::min(keys.size(), others.size()) && keys[next] == others[next];
  });
}

}  // namespace trivium::prefill

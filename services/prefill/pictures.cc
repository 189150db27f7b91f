// What the prefill stage's step loop does for prompts with pictures.
#include <algorithm>
#include <utility>

#include "services/prefill/job.h"

namespace trivium::prefill {

// Prompts that wait for their pictures leave this share of the KV blocks to others.
constexpr int32_t kBlocksForOthers = 2;

bool StepLoop::IsReady(const Job& job) const {
  if (job.state != Job::State::kComputing) return false;
  if (job.pictures == nullptr) return true;
  // A layered prompt passes as a whole.
  if (context_.prefill_policy == worker::PrefillPolicy::kLayered && !job.pictures->is_complete()) {
    return false;
  }
  return job.ready_end(context_.engine->storage().layout().block_tokens) > job.done;
}

// ABORTED: the prompt waits for something that others do not need.
absl::Status StepLoop::CheckPictures(const Job& job, int32_t blocks) const {
  if (job.request.slices.empty()) return absl::OkStatus();
  int64_t waiting = 0;
  for (const auto& [number, other] : jobs_) {
    if (other->pictures != nullptr && !other->pictures->is_complete()) {
      waiting += std::ssize(other->blocks.blocks());
    }
  }
  if (waiting > 0 && waiting + blocks > context_.pool->counts().total / kBlocksForOthers) {
    return absl::AbortedError("others wait for their pictures already");
  }
  return absl::OkStatus();
}

// ABORTED as above.
absl::Status StepLoop::StartPictures(Job& job) {
  if (job.request.slices.empty()) return absl::OkStatus();
  auto landed = [mailbox = mailbox_, alive = std::weak_ptr<const uint64_t>(job.alive)](
                    int32_t slice, uint32_t attempt, const absl::Status& status) {
    const auto number = alive.lock();
    if (number != nullptr) mailbox->Post(SliceLanded{*number, slice, attempt, status});
  };
  auto pictures = std::make_unique<PictureIntake>(*context_.media, job.request, std::move(landed));
  absl::Status status = pictures->Reserve(job.blocks.cached_blocks() *
                                          context_.engine->storage().layout().block_tokens);
  if (absl::IsResourceExhausted(status)) return absl::AbortedError(Message(status));
  if (status.ok()) job.pictures = std::move(pictures);
  return status;
}

absl::Status StepLoop::BeginPictures(Job& job) {
  if (job.pictures == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<SliceTicket> tickets, job.pictures->Begin(job.done));
  if (!tickets.empty()) job.sink->OnSliceTickets(tickets);
  return absl::OkStatus();
}

void StepLoop::OnSliceLanded(Job& job, const SliceLanded& landed) {
  if (job.pictures == nullptr) return;
  absl::Status status = job.pictures->OnLanded(landed.slice, landed.attempt, landed.status);
  if (!status.ok()) End(job.number, std::move(status));
}

void StepLoop::CheckPictures() {
  std::vector<std::pair<uint64_t, absl::Status>> failed;
  for (const auto& [number, job] : jobs_) {
    if (job->pictures == nullptr || job->state != Job::State::kComputing) continue;
    const auto tickets = job->pictures->Retry();
    if (!tickets.ok()) {
      failed.emplace_back(number, tickets.status());
    } else if (!tickets->empty()) {
      job->sink->OnSliceTickets(*tickets);
    }
  }
  for (auto& [number, status] : failed) End(number, std::move(status));
  KeepPicturesAlive();
}

void StepLoop::KeepPicturesAlive() {
  const TimePoint now = context_.clock->Now();
  if (now - pictures_kept_alive_ < context_.keep_alive_interval) return;
  pictures_kept_alive_ = now;
  for (const auto& [number, job] : jobs_) {
    if (job->pictures != nullptr) job->pictures->KeepAlive();
  }
}

}  // namespace trivium::prefill

#include "services/router/dispatch/run_leg.h"

namespace trivium::router {

RunLeg::RunLeg(const RunLeg& whole, int32_t choice)
    : ticket(whole.ticket + 1 + static_cast<uint64_t>(choice)),
      id(fmt::format("{}.{}", whole.id, choice)),
      choice_begin(choice),
      choices(1),
      failures(whole.failures),
      preemptions(whole.preemptions),
      decode_before(whole.decode_before),
      blame(whole.blame),
      times(whole.times) {}

void RunLeg::Blame(Role stage) {
  const auto add = [&](WorkerIndex worker, int points) {
    for (WorkerBlame& one : blame) {
      if (one.worker == worker) {
        one.points += points;
        return;
      }
    }
    blame.push_back({worker, points});
  };
  add(At(stage).worker, 2);
  // A transfer fails at either end: the second prefill worker that fails with the same decode
  // worker is not to blame for it.
  if (stage == Role::kPrefill) add(attempt.at.decode.worker, 1);
}

void RunLeg::CancelStreams() {
  if (attempt.decode != nullptr && !attempt.decode_ended) attempt.decode->Cancel();
  if (attempt.prefill != nullptr && !attempt.prefill_ended) attempt.prefill->Cancel();
  if (attempt.pull != nullptr) attempt.pull->Cancel();
}

}  // namespace trivium::router

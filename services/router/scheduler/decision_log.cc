#include "services/router/scheduler/decision_log.h"

#include <fmt/format.h>

#include <iterator>
#include <utility>

namespace trivium::router {
namespace {

void AppendCandidates(const char* role, const std::vector<Candidate>& candidates, int32_t fitting,
                      const std::function<std::string(WorkerIndex)>& name, std::string* text) {
  auto out = std::back_inserter(*text);
  fmt::format_to(out, "  {} workers with room: {}\n", role, fitting);
  for (size_t i = 0; i < candidates.size(); ++i) {
    const Estimate& estimate = candidates[i].estimate;
    const auto ms = [](double seconds) { return seconds * 1e3; };
    fmt::format_to(
        out,
        "  {} {}: {:.1f} ms (wait {:.1f}, load {:.1f}, pull {:.1f}, compute {:.1f}, "
        "transfer {:.1f}, harm to others {:.1f}), holds {} tokens{}{}\n",
        i == 0 ? '*' : ' ', name(candidates[i].worker), ms(estimate.total_s()), ms(estimate.wait_s),
        ms(estimate.load_s), ms(estimate.pull_s), ms(estimate.compute_s), ms(estimate.transfer_s),
        ms(estimate.harm_s), estimate.cached_tokens,
        estimate.pull.tokens == 0
            ? ""
            : fmt::format(", {} from {}", estimate.pull.tokens, name(estimate.pull.holder)),
        candidates[i].blame > 0 ? ", failed this request before" : "");
  }
}

}  // namespace

void DecisionLog::Add(std::string request_id, TenantId tenant, Decision decision) {
  entries_.push_back({std::move(request_id), std::move(tenant), std::move(decision)});
  if (entries_.size() > decisions_max_) entries_.pop_front();
}

std::vector<DecisionLog::Entry> DecisionLog::Find(std::string_view request_id) const {
  std::vector<Entry> found;
  for (const Entry& entry : entries_) {
    if (entry.request_id == request_id) found.push_back(entry);
  }
  return found;
}

std::string ToText(const Decision& decision, const std::function<std::string(WorkerIndex)>& name) {
  const bool is_local = decision.placement.prefill == kNoWorker;
  std::string text = fmt::format("{}: prefill {}, decode {}, {} tokens to go on from\n",
                                 ReasonName(decision.reason),
                                 is_local ? "there too" : name(decision.placement.prefill),
                                 name(decision.placement.decode), decision.prompt_tokens);
  AppendCandidates("prefill", decision.prefill, decision.prefill_fitting, name, &text);
  AppendCandidates("decode", decision.decode, decision.decode_fitting, name, &text);
  return text;
}

}  // namespace trivium::router

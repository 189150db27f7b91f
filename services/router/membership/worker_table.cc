#include "services/router/membership/worker_table.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/net/text.h"
#include "common/transfer/transport.h"

namespace trivium::router {
namespace {

constexpr size_t kWorkerIdBytesMax = 64;
constexpr size_t kDetailBytesMax = 300;  // of what may be a peer's words

bool IsPlausible(const v1::WorkerState& state) {
  return state.epoch() != 0 && state.block_tokens() > 0 && state.blocks_total() > 0 &&
         state.blocks_free() >= 0 && state.blocks_free() <= state.blocks_total() &&
         state.requests_running() >= 0 && state.requests_waiting() >= 0 &&
         state.requests_max() > 0 && state.prompt_tokens_waiting() >= 0 &&
         state.expected_output_tokens() >= 0 && state.blocks_spare() >= 0 &&
         !state.worker_id().empty() && state.worker_id().size() <= kWorkerIdBytesMax;
}

int32_t SumOrMax(int32_t a, int32_t b) {
  return static_cast<int32_t>(std::min<int64_t>(int64_t{a} + b, INT32_MAX));
}

// A fit may give what no machine can do.
double Plausible(double value) { return std::isfinite(value) ? std::max(0.0, value) : 0; }

// Whoever has another tower counts as having none: its stage can do its part.
void ReportPictures(const v1::WorkerState& state, const std::string& tower, WorkerView* view) {
  view->encodes = !tower.empty() && state.tower() == tower;
  view->slices_waiting = std::max(0, state.slices_waiting());
  view->slices_max = std::max(0, state.slices_max());
  view->seconds_per_slice = Plausible(state.seconds_per_slice());
  view->picture_blocks_total = std::max(0, state.picture_blocks_total());
}

void Report(const v1::WorkerState& state, WorkerView* view) {
  view->epoch = state.epoch();
  view->numerics_class = state.numerics_class();
  view->wire_format = state.wire_format();
  view->blocks_total = state.blocks_total();
  view->blocks_free = state.blocks_free();
  view->block_tokens = state.block_tokens();
  view->requests = SumOrMax(state.requests_running(), state.requests_waiting());
  view->requests_max = state.requests_max();
  view->prompt_tokens_waiting = state.prompt_tokens_waiting();
  view->expected_output_tokens = state.expected_output_tokens();
  view->blocks_spare = state.blocks_spare();
  view->is_full = false;
  view->step_cost = {.per_row_s = Plausible(state.step_cost_per_row_s()),
                     .base_s = Plausible(state.step_cost_base_s()),
                     .per_key_s = Plausible(state.step_cost_per_key_s())};
  view->memory_load_bytes_per_s = Plausible(state.memory_load_bytes_per_s());
  view->disk_load_bytes_per_s = Plausible(state.disk_load_bytes_per_s());
}

}  // namespace

WorkerTable::WorkerTable(Options options)
    : options_(std::move(options)), entries_(options_.workers.size()) {
  cluster_.workers.resize(entries_.size());
  for (size_t i = 0; i < entries_.size(); ++i) cluster_.workers[i].role = options_.workers[i].role;
}

std::string WorkerTable::Objection(WorkerIndex worker, const v1::WorkerState& state) const {
  const char* role = RoleName(options_.workers[worker].role);
  if (state.role() != role) {
    return fmt::format("role is \"{}\", configured as \"{}\"", state.role(), role);
  }
  const bool is_encoder = options_.workers[worker].role == Role::kEncode;
  if (is_encoder && options_.tower.empty()) return "pictures.tower is not set at the router";
  if (is_encoder && state.tower() != options_.tower) {
    return fmt::format("fingerprint of its tower is {:.16}, that of the router's {:.16}",
                       state.tower(), options_.tower);
  }
  if (!is_encoder && state.fingerprint() != options_.fingerprint) {
    return fmt::format("fingerprint of its model is {:.16}, the router's {:.16}",
                       state.fingerprint(), options_.fingerprint);
  }
  if (!transfer::IsWireFormat(state.wire_format())) {
    return fmt::format("wire_format {} is not known", state.wire_format());
  }
  if (!IsPlausible(state)) return "its report holds values that cannot be";
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (i == worker || !entries_[i].has_state || !entries_[i].is_stream_open) continue;
    if (cluster_.workers[i].condition == WorkerCondition::kRefused) continue;
    if (entries_[i].state.worker_id() == state.worker_id()) {
      return fmt::format("worker_id {} is also that of {}", state.worker_id(),
                         options_.workers[i].address);
    }
  }
  if (entries_[worker].refused_epoch == state.epoch()) return entries_[worker].refused_why;
  return "";
}

void WorkerTable::Set(WorkerIndex worker, WorkerCondition condition, std::string detail) {
  cluster_.workers[worker].condition = condition;
  entries_[worker].detail = std::move(detail);
}

std::vector<LostWorker> WorkerTable::OnState(WorkerIndex worker, const v1::WorkerState& state,
                                             TimePoint now) {
  Entry& entry = entries_[worker];
  std::vector<LostWorker> lost;
  const bool was_there = entry.has_state && !entry.is_lost_told;
  const std::string objection = Objection(worker, state);
  if (was_there && entry.state.epoch() != state.epoch()) {
    lost.push_back({worker, entry.state.epoch(), "it has restarted"});
  } else if (was_there && !objection.empty()) {
    lost.push_back({worker, entry.state.epoch(), objection});
  }
  entry.state = state;
  entry.is_stream_open = true;
  entry.last_report = now;
  entry.has_state = objection.empty();
  entry.is_lost_told = false;
  if (!objection.empty()) {
    Set(worker, WorkerCondition::kRefused, objection);
    return lost;
  }
  Report(state, &cluster_.workers[worker]);
  ReportPictures(state, options_.tower, &cluster_.workers[worker]);
  if (state.draining()) {
    Set(worker, WorkerCondition::kDraining, "it is shutting down");
  } else {
    Set(worker, WorkerCondition::kReady, "");
  }
  return lost;
}

void WorkerTable::OnStreamEnd(WorkerIndex worker, const absl::Status& status) {
  entries_[worker].is_stream_open = false;
  switch (status.code()) {
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      Set(worker, WorkerCondition::kRefused, "cluster token: " + Message(status));
      break;
    case absl::StatusCode::kUnimplemented:
      Set(worker, WorkerCondition::kRefused, "it does not serve trivium.v1.Worker");
      break;
    default:
      Set(worker, WorkerCondition::kUnreachable,
          status.ok() ? "it has ended the Watch stream" : Message(status));
  }
}

std::vector<LostWorker> WorkerTable::Tick(TimePoint now) {
  const Duration pause = now - std::exchange(last_tick_, now);
  const bool was_stopped = pause > options_.suspect_after / 2;
  std::vector<LostWorker> lost;
  for (WorkerIndex i = 0; i < entries_.size(); ++i) {
    Entry& entry = entries_[i];
    if (!entry.has_state || entry.is_lost_told) continue;
    if (was_stopped) entry.last_report = std::min(now, entry.last_report + pause);
    // One that is leaving has closed its Watch stream; its requests' own streams tell the rest.
    if (entry.state.draining() && !entry.is_stream_open) continue;
    if (now - entry.last_report < options_.suspect_after) continue;
    entry.is_lost_told = true;
    const std::string why = fmt::format(
        "no report for {:.1f} s", std::chrono::duration<double>(now - entry.last_report).count());
    lost.push_back({i, entry.state.epoch(), why});
    if (entry.is_stream_open) Set(i, WorkerCondition::kSuspect, why);
  }
  return lost;
}

bool WorkerTable::IsAt(WorkerIndex worker, uint64_t epoch) const {
  return entries_[worker].has_state && entries_[worker].state.epoch() == epoch;
}

bool WorkerTable::IsGone(WorkerIndex worker, uint64_t epoch) const {
  return !IsAt(worker, epoch) || entries_[worker].is_lost_told;
}

void WorkerTable::MarkFull(WorkerIndex worker, uint64_t epoch) {
  if (IsAt(worker, epoch)) cluster_.workers[worker].is_full = true;
}

void WorkerTable::MarkSuspect(WorkerIndex worker, uint64_t epoch, const std::string& why) {
  if (!IsAt(worker, epoch)) return;
  if (cluster_.workers[worker].condition != WorkerCondition::kReady) return;
  Set(worker, WorkerCondition::kSuspect, why);
}

void WorkerTable::Refuse(WorkerIndex worker, uint64_t epoch, const std::string& why) {
  if (!IsAt(worker, epoch)) return;
  Entry& entry = entries_[worker];
  entry.refused_epoch = epoch;
  entry.refused_why = why.empty() ? "it refused a request without a reason" : why;
  Set(worker, WorkerCondition::kRefused, entry.refused_why);
}

std::string WorkerTable::IdOf(WorkerIndex worker) const {
  const std::string& id = entries_[worker].state.worker_id();
  return id.empty() ? options_.workers[worker].address : id;
}

std::vector<kv::KeySpace> WorkerTable::KeySpaces() const {
  std::vector<kv::KeySpace> spaces;
  for (const WorkerView& view : cluster_.workers) {
    if (view.role == Role::kEncode || view.condition != WorkerCondition::kReady) continue;
    if (spaces.size() == kKeySpacesMax) break;
    const bool is_known = std::any_of(spaces.begin(), spaces.end(), [&](const kv::KeySpace& one) {
      return one.numerics_class == view.numerics_class && one.kv_format == view.wire_format &&
             one.block_tokens == view.block_tokens;
    });
    if (is_known) continue;
    spaces.push_back({.model = options_.fingerprint,
                      .numerics_class = view.numerics_class,
                      .kv_format = view.wire_format,
                      .block_tokens = view.block_tokens});
  }
  return spaces;
}

std::vector<v1::WorkerStatus> WorkerTable::Status(TimePoint now) const {
  std::vector<v1::WorkerStatus> out;
  for (WorkerIndex i = 0; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    v1::WorkerStatus& status = out.emplace_back();
    status.set_id(IdOf(i));
    status.set_role(RoleName(options_.workers[i].role));
    status.set_address(options_.workers[i].address);
    status.set_state(ConditionName(cluster_.workers[i].condition));
    status.set_detail(net::Escape(entry.detail, kDetailBytesMax));
    status.set_fingerprint(entry.state.fingerprint());
    status.set_numerics_class(entry.state.numerics_class());
    status.set_blocks_total(entry.state.blocks_total());
    status.set_blocks_free(entry.state.blocks_free());
    status.set_blocks_used(entry.state.blocks_used());
    status.set_blocks_leased(entry.state.blocks_leased());
    status.set_requests_running(entry.state.requests_running());
    status.set_requests_waiting(entry.state.requests_waiting());
    status.set_steps(entry.state.steps());
    status.set_epoch(entry.state.epoch());
    status.set_encodes(cluster_.workers[i].encodes);
    status.set_slices_waiting(entry.state.slices_waiting());
    status.set_picture_blocks_total(entry.state.picture_blocks_total());
    status.set_picture_blocks_free(entry.state.picture_blocks_free());
    if (entry.last_report != TimePoint()) {
      status.set_seconds_since_update(
          std::chrono::duration<double>(now - entry.last_report).count());
    }
  }
  return out;
}

}  // namespace trivium::router

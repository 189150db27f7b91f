// The last decisions of the scheduler, by request, for whoever asks why a request went where it
// went. At most `decisions_max` are kept; the oldest goes first.
// Thread-safety: none; the dispatcher's lock covers it.
#pragma once

#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/ids.h"
#include "services/router/scheduler/decision.h"

namespace trivium::router {

class DecisionLog {
 public:
  explicit DecisionLog(size_t decisions_max) : decisions_max_(decisions_max) {}

  // An attempt of the request; attempts of one request come in order.
  void Add(std::string request_id, TenantId tenant, Decision decision);

  struct Entry {
    std::string request_id;
    TenantId tenant;  // who may ask
    Decision decision;
  };
  // Oldest first; empty: unknown, or too long ago.
  std::vector<Entry> Find(std::string_view request_id) const;
  size_t size() const { return entries_.size(); }

 private:
  const size_t decisions_max_;
  std::deque<Entry> entries_;
};

// For people. `name` gives a worker's id.
std::string ToText(const Decision& decision, const std::function<std::string(WorkerIndex)>& name);

}  // namespace trivium::router

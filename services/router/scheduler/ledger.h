// What this router has sent to each worker, kept in the `own_…` fields of the cluster snapshot, so
// that a request placed now counts before the worker reports it.
//
// A decode worker's reservation counts as unseen from placement until the worker's first report
// after its landing ticket. Invariant: the `own_…` fields are the sums over the charges held.
// Thread-safety: none; the dispatcher's lock covers it.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "services/router/scheduler/placement.h"

namespace trivium::router {

class Ledger {
 public:
  explicit Ledger(ClusterSnapshot* cluster);

  // `ticket` names the request; it holds no charge yet.
  void Charge(uint64_t ticket, const Placement& placement, const RequestShape& shape);
  void Reserved(uint64_t ticket);      // the landing ticket came
  void FirstToken(uint64_t ticket);    // the prompt no longer waits
  void PrefillEnded(uint64_t ticket);  // the prefill worker holds nothing more for it
  void Release(uint64_t ticket);       // nor does the decode worker
  // Its prefill worker's account of the transfer.
  void Transferred(uint64_t ticket, int64_t bytes, double seconds);
  // What its prefill worker has pulled in this time; 0 bytes: it has given up.
  void Pulled(uint64_t ticket, int64_t bytes, double seconds);
  void OnReport(WorkerIndex worker);  // blocks_free of that worker is new

 private:
  struct Entry {
    Placement placement;
    int64_t prefill_blocks = 0, decode_blocks = 0, prompt_tokens = 0;
    int32_t decode_places = 1;
    bool is_prompt_waiting = true, is_prefilling = true, is_reserved = false, is_unseen = true;
  };
  void Seen(Entry& entry);
  void PromptDone(Entry& entry);
  void EndPrefill(Entry& entry);

  ClusterSnapshot& cluster_;
  std::map<uint64_t, Entry> entries_;
  std::vector<std::vector<uint64_t>>
      reserved_;                             // by decode worker: unseen, seen from its next report
  std::vector<int32_t> reports_since_pull_;  // by prefill worker
};

}  // namespace trivium::router

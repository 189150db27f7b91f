// What the cache may do with questions of a category. Values; how they come to be: README.md.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "services/router/semantic_cache/guards.h"

namespace trivium::router {

struct CategoryPolicy {
  std::string name = {};
  bool is_enabled = true;
  float threshold = 0.8f;  // the least similarity of two questions that may share an answer
  int64_t ttl_ms = 3600000;
  double quota = 0.1;  // of the cache's entries and bytes
  GuardLevel guards = GuardLevel::kStrict;
  // Under full load the threshold is lower by so much, and the time to live longer by this part of
  // it; both 0 where a wrong or a stale answer does harm.
  float relax = 0;
  double stretch = 0;
  std::vector<std::string> examples = {};  // questions of this category
};

// The category of what is like no other.
inline constexpr char kOtherCategory[] = "other";

// Under a load of 0 … 1; exactly the configured values at 0.
inline float ThresholdAt(const CategoryPolicy& policy, float load) {
  return load == 0 ? policy.threshold : policy.threshold - policy.relax * load;
}
inline int64_t TtlAt(const CategoryPolicy& policy, float load) {
  if (load == 0) return policy.ttl_ms;
  return policy.ttl_ms +
         static_cast<int64_t>(static_cast<double>(policy.ttl_ms) * policy.stretch * load);
}

}  // namespace trivium::router

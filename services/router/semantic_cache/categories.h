// Which category a question is of: the one of whose example questions one is nearest to it, by the
// same embedding that the search uses; below a floor, none.
// Thread-safety: immutable after construction; any thread.
#pragma once

#include <span>
#include <vector>

#include "services/router/semantic_cache/policy.h"

namespace trivium::router {

class Categories {
 public:
  // Below so much likeness to any example a question is of kOtherCategory.
  static constexpr float kFloor = 0.35f;

  // `examples`: the vectors of each category's examples, in the policies' order.
  Categories(const std::vector<CategoryPolicy>& policies,
             std::vector<std::vector<std::vector<float>>> examples);

  struct Choice {
    size_t category = 0;
    float confidence = 0;  // likeness to the nearest example
  };
  Choice Of(std::span<const float> vector) const;

 private:
  const std::vector<std::vector<std::vector<float>>> examples_;
  size_t other_ = 0;
};

}  // namespace trivium::router

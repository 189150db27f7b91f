#include "services/router/semantic_cache/categories.h"

#include <utility>

#include "kernels/dot.h"

namespace trivium::router {

Categories::Categories(const std::vector<CategoryPolicy>& policies,
                       std::vector<std::vector<std::vector<float>>> examples)
    : examples_(std::move(examples)) {
  for (size_t i = 0; i < policies.size(); ++i) {
    if (policies[i].name == kOtherCategory) other_ = i;
  }
}

Categories::Choice Categories::Of(std::span<const float> vector) const {
  const kernels::DotFunction dot = kernels::BestDot();
  Choice choice{other_, 0};
  for (size_t i = 0; i < examples_.size(); ++i) {
    for (const std::vector<float>& example : examples_[i]) {
      const float likeness =
          dot(vector.data(), example.data(), static_cast<int64_t>(vector.size()));
      if (likeness > choice.confidence) choice = {i, likeness};
    }
  }
  if (choice.confidence < kFloor) choice.category = other_;
  return choice;
}

}  // namespace trivium::router

// Fuzzes the loading of a vision tower: what is accepted holds every weight that its sizes ask for,
// and cuts pictures within its bounds.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/vision/slices.h"
#include "common/vision/tower.h"
#include "tests/fuzz/memory_file.h"

namespace {

using namespace trivium;  // NOLINT

void CheckLinear(const vision::Linear& linear) {
  std::vector<float> row(static_cast<size_t>(linear.weight.cols));
  const int64_t row_bytes = kernels::RowBytes(linear.weight.type, linear.weight.cols);
  const auto* bytes = static_cast<const uint8_t*>(linear.weight.data);
  for (int64_t r = 0; r < linear.weight.rows; ++r) {
    kernels::DequantizeRow(linear.weight.type, bytes + r * row_bytes, linear.weight.cols,
                           row.data());
  }
  TRIVIUM_CHECK(
      linear.bias.empty() || static_cast<int64_t>(linear.bias.size()) == linear.weight.rows,
      "a bias of {}", linear.bias.size());
}

void CheckPlans(const vision::TowerConfig& config) {
  for (const auto& [width, height] : {std::pair{1, 1}, {640, 480}, {16384, 1}, {3, 9000}}) {
    const auto plan = vision::PlanPicture(config, width, height);
    if (!plan.ok()) continue;
    TRIVIUM_CHECK(plan->slices() >= 1 && plan->slice_width >= 1 && plan->slice_height >= 1 &&
                      plan->tokens() >= 0 && plan->tokens() <= vision::kMaxPictureTokens,
                  "{} slices of {} x {}", plan->slices(), plan->slice_width, plan->slice_height);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::SetFileBytes({data, size});
  const auto tower = vision::Tower::Load("fuzz");
  if (!tower.ok()) return 0;
  CheckLinear((*tower)->patch);
  for (const vision::TowerLayer& layer : (*tower)->layers) {
    for (const vision::Linear* linear :
         {&layer.q, &layer.k, &layer.v, &layer.attn_out, &layer.up, &layer.down}) {
      CheckLinear(*linear);
    }
  }
  for (const vision::Linear& linear : (*tower)->projector) CheckLinear(linear);
  CheckPlans((*tower)->config);
  return 0;
}

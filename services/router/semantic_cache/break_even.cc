#include "services/router/semantic_cache/break_even.h"

#include <algorithm>

namespace trivium::router {
namespace {

constexpr double kTimesWeight = 0.05, kRateWeight = 0.5;

void Smooth(double seconds, double* mean) {
  *mean = *mean == 0 ? seconds : *mean + kTimesWeight * (seconds - *mean);
}

}  // namespace

bool BreakEven::ShouldLook(size_t category) {
  std::lock_guard lock(mutex_);
  Category& its = categories_[category];
  if (!its.is_suspended || its.asked++ % kSample == 0) return true;
  ++its.passed;
  return false;
}

void BreakEven::Looked(size_t category, bool has_hit, double seconds) {
  std::lock_guard lock(mutex_);
  ++categories_[category].looks;
  categories_[category].hits += has_hit;
  Smooth(seconds, &look_s_);
}

void BreakEven::Fetched(double seconds) {
  std::lock_guard lock(mutex_);
  Smooth(seconds, &fetch_s_);
}
void BreakEven::Inserted(double seconds) {
  std::lock_guard lock(mutex_);
  Smooth(seconds, &insert_s_);
}
void BreakEven::Answered(double seconds) {
  std::lock_guard lock(mutex_);
  Smooth(seconds, &model_s_);
}

double BreakEven::Threshold() const {
  const double saved_s = model_s_ + insert_s_ - fetch_s_;
  if (model_s_ == 0 || saved_s <= 0) return model_s_ == 0 ? 0 : 1;
  return std::min(1.0, (look_s_ + insert_s_) / saved_s);
}

void BreakEven::EndWindow(Category* its) const {
  const uint64_t needed = its->is_suspended ? 1 : kLooksMin;
  if (its->looks < needed) return;  // goes on
  const double rate = static_cast<double>(its->hits) / static_cast<double>(its->looks);
  its->rate = its->rate < 0 ? rate : its->rate + kRateWeight * (rate - its->rate);
  its->below = its->rate < Threshold() ? its->below + 1 : 0;
  if (its->below >= kWindowsBelow) its->is_suspended = true;
  if (its->below == 0) its->is_suspended = false;
  its->looks = its->hits = 0;
}

void BreakEven::Tick(TimePoint now) {
  std::lock_guard lock(mutex_);
  if (window_began_ == TimePoint()) window_began_ = now;
  if (now - window_began_ < kWindow) return;
  window_began_ = now;
  for (Category& its : categories_) EndWindow(&its);
}

BreakEven::State BreakEven::state(size_t category) const {
  std::lock_guard lock(mutex_);
  const Category& its = categories_[category];
  const double looks = static_cast<double>(std::max<uint64_t>(its.looks, 1));
  return {its.is_suspended, its.rate < 0 ? static_cast<double>(its.hits) / looks : its.rate,
          Threshold(), its.passed};
}

}  // namespace trivium::router

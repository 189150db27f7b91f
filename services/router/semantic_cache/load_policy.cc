#include "services/router/semantic_cache/load_policy.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace trivium::router {
namespace {

constexpr size_t kTtftsMax = 256;
constexpr Duration kTtftsFor = std::chrono::seconds(30);
constexpr double kSmoothingS = 10;
constexpr Duration kLeastPause = std::chrono::seconds(5);
constexpr double kLeastChange = 0.1, kSnap = 0.05;

double Between(double value, double low, double high) {
  return std::clamp((value - low) / (high - low), 0.0, 1.0);
}

}  // namespace

void LoadPolicy::FirstToken(TimePoint now, double ttft_s) {
  std::lock_guard lock(mutex_);
  if (ttfts_.size() == kTtftsMax) ttfts_.pop_front();
  ttfts_.emplace_back(now, ttft_s);
}

double LoadPolicy::SlowTtft(TimePoint now) {
  while (!ttfts_.empty() && now - ttfts_.front().first > kTtftsFor) ttfts_.pop_front();
  if (ttfts_.empty()) return 0;
  std::vector<double> sorted;
  for (const auto& [when, ttft_s] : ttfts_) sorted.push_back(ttft_s);
  std::sort(sorted.begin(), sorted.end());
  return sorted[(sorted.size() * 19 - 1) / 20];
}

float LoadPolicy::Update(TimePoint now, double queue) {
  std::lock_guard lock(mutex_);
  const double raw = std::max(Between(SlowTtft(now), options_.ttft_low_s, options_.ttft_high_s),
                              Between(queue, options_.queue_low, options_.queue_high));
  if (last_ == TimePoint()) last_ = now;
  const double passed_s = std::chrono::duration<double>(now - last_).count();
  last_ = now;
  level_ += (raw - level_) * (1 - std::exp(-passed_s / kSmoothingS));
  const double wanted = level_ < kSnap ? 0 : level_ > 1 - kSnap ? 1 : level_;
  const bool is_end = wanted == 0 || wanted == 1;
  const bool is_far = std::abs(wanted - told_) >= kLeastChange || (is_end && wanted != told_);
  if (is_far && (changed_ == TimePoint() || now - changed_ >= kLeastPause)) {
    told_ = static_cast<float>(wanted);
    changed_ = now;
  }
  return told_;
}

}  // namespace trivium::router

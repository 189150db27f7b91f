#include "services/router/planner/trace.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace trivium::router {
namespace {

constexpr uint64_t kHotPrefix = 0;

// The distributions of <random> differ from library to library.
double Uniform(std::mt19937_64& random) {
  return static_cast<double>(random() >> 11) / static_cast<double>(uint64_t{1} << 53);
}
int32_t Between(std::mt19937_64& random, int32_t least, int32_t most) {
  return least + static_cast<int32_t>(random() % static_cast<uint64_t>(most - least + 1));
}
// Rank r, from 1, with a weight of about 1 / r.
uint64_t Zipf(std::mt19937_64& random, int64_t ranks) {
  return static_cast<uint64_t>(std::pow(static_cast<double>(ranks) + 1, Uniform(random)));
}

}  // namespace

std::vector<SimRequest> MakeTrace(const TraceOptions& options) {
  std::mt19937_64 random(options.seed);
  std::vector<SimRequest> trace(static_cast<size_t>(options.requests));
  double now_s = 0;
  uint64_t next_cold = uint64_t{1} << 32;
  for (SimRequest& request : trace) {
    now_s -= std::log(1 - Uniform(random)) / options.requests_per_s;
    request.arrival_s = now_s;
    request.is_hot = Uniform(random) < options.hot_share;
    const bool is_cold = Uniform(random) < options.cold_share;
    request.prefix = request.is_hot ? kHotPrefix
                     : is_cold      ? next_cold++
                                    : Zipf(random, options.prefixes);
    std::mt19937_64 of_prefix(request.prefix);
    request.prefix_tokens = Between(of_prefix, 256, 1024);
    request.prompt_tokens = request.prefix_tokens + Between(random, 16, 128);
    request.output_tokens = Between(random, 16, 128);
    if (options.tenants.size() == 1) continue;
    request.share = options.tenants[random() % options.tenants.size()];
    if (!request.is_hot) request.prefix += (request.share.tenant + 1) << 48;
  }
  return trace;
}

}  // namespace trivium::router

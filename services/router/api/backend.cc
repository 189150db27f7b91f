#include "services/router/api/backend.h"

#include "common/net/text.h"
#include "services/router/semantic_cache/cache_service.h"

namespace trivium::router {

absl::Status Backend::CheckCacheHints(const v1::CacheHints& hints) const {
  constexpr size_t kShownMax = 40;
  if (hints.has_max_age_s() && hints.max_age_s() < 0) {
    return InvalidArgument("cache.max_age_s: is {}, must be 0 or more", hints.max_age_s());
  }
  if (cache == nullptr || hints.category().empty() ||
      cache->cache().CategoryNamed(hints.category()).has_value()) {
    return absl::OkStatus();
  }
  return InvalidArgument("cache.category: \"{}\" is not configured",
                         net::Escape(hints.category(), kShownMax));
}

void Backend::Submit(const v1::GenerateRequest& request, RunRequest run,
                     std::shared_ptr<ResponseSink> sink, const RunStarted& started) const {
  if (cache != nullptr) {
    return cache->front().Ask(request, std::move(run), std::move(sink), started);
  }
  started(dispatcher->Submit(std::move(run), std::move(sink)));
}

}  // namespace trivium::router

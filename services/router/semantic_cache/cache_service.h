// The semantic cache as a router's configuration wants it: store, encoder, categories, cache and
// front made in their order, and their metrics.
// Thread-safety: as of front(); Create and the destructor, one thread.
#pragma once

#include <memory>
#include <string>

#include "common/telemetry/metrics.h"
#include "services/router/semantic_cache/cache_front.h"
#include "trivium/v1/config.pb.h"

namespace trivium::router {

class CacheService {
 public:
  // `config` is complete and enabled. `model`: what answers depend on beside the question. Fails
  // where encoder or file cannot be used; a Redis server need not be there. `waiting`: how many
  // requests wait for room. `metrics` outlives it.
  static absl::StatusOr<std::unique_ptr<CacheService>> Create(const v1::SemanticCacheConfig& config,
                                                              const std::string& model,
                                                              CacheFront::Submit submit,
                                                              std::function<double()> waiting,
                                                              telemetry::Metrics* metrics);
  ~CacheService();

  // Policies as `config`, which is complete, has them now: thresholds, times, quotas, guards, and
  // what is switched off. FAILED_PRECONDITION, and nothing changes, where it asks for what only a
  // new process can do: other categories, other examples of them, no cache.
  absl::Status Reload(const v1::SemanticCacheConfig& config);

  CacheFront& front() { return *front_; }
  SemanticCache& cache() { return *cache_; }
  embedding::EmbeddingQueue& encoder() { return *encoder_; }

 private:
  struct Series;  // of metrics
  CacheService();
  void Export();

  std::string graphs_;  // a folder; empty: graphs are not kept
  std::unique_ptr<DocumentStore> store_;
  std::unique_ptr<SemanticCache> cache_;
  std::unique_ptr<Categories> categories_;
  std::unique_ptr<CacheFront> front_;
  std::unique_ptr<embedding::EmbeddingQueue> encoder_;  // before the front: it calls it
  std::unique_ptr<Series> series_;
};

std::vector<CategoryPolicy> PoliciesOf(const v1::SemanticCacheConfig& config);

}  // namespace trivium::router

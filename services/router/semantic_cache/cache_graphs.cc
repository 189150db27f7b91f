#include <sys/stat.h>
#include <xxhash.h>

#include <filesystem>

#include "services/router/semantic_cache/graph_file.h"
#include "services/router/semantic_cache/semantic_cache.h"

namespace trivium::router {
namespace {

std::string PathOf(const std::string& folder, const Hash128& scope, const std::string& category) {
  return fmt::format("{}/{:016x}{:016x}-{:016x}", folder, scope.high, scope.low,
                     XXH3_64bits(category.data(), category.size()));
}

}  // namespace

absl::Status SemanticCache::SaveGraphs(const std::string& folder) const {
  std::error_code error;
  std::filesystem::remove_all(folder, error);
  if (mkdir(folder.c_str(), S_IRWXU) != 0) return Unavailable("cannot make {}", folder);
  std::lock_guard lock(mutex_);
  for (const auto& [key, group] : groups_) {
    if (group.index == nullptr || !group.index->has_graph()) continue;
    const absl::Status saved = group.index->Save(PathOf(folder, key.scope, names_[key.category]),
                                                 [&](uint64_t id) { return entries_.at(id).key; });
    if (!saved.ok()) return saved;
  }
  return absl::OkStatus();
}

SemanticCache::LoadedGraphs SemanticCache::LoadGraphs(const std::string& folder) {
  LoadedGraphs loaded;
  std::lock_guard lock(mutex_);
  for (const auto& [key, group] : groups_) {
    if (group.index == nullptr || group.index->has_graph()) continue;
    const std::string path = PathOf(folder, key.scope, names_[key.category]);
    const absl::Status status = group.index->Load(path, [&](const std::string& name) {
      const auto it = by_key_.find(name);
      return it == by_key_.end() ? 0 : it->second;
    });
    if (status.ok()) loaded.entries += group.index->graph_size();
    if (status.code() == absl::StatusCode::kDataLoss) ++loaded.damaged;
    // It has the vectors of what may be invalidated from now on.
    RemoveGraph(path);
  }
  return loaded;
}

}  // namespace trivium::router

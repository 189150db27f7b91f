// Nearest unit vectors by dot product. While small every vector is compared; what is beyond
// kExactMax goes into an HNSW graph (Malkov and Yashunin, arXiv:1603.09320), by Upkeep, a vector at
// a time, so that a search never waits for more than one. What is removed stays in the graph as a
// tombstone, that no search returns, until a fifth of it is dead; Upkeep then builds another beside
// it, and searches go on meanwhile.
//
// Thread-safety: all methods, any thread; Upkeep, one thread at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <shared_mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "common/base/status.h"

namespace trivium::router {

class VectorIndex {
 public:
  static constexpr size_t kExactMax = 1024;

  // `entries_max`: of the graph, tombstones included, which are rebuilt away; memory is taken as it
  // fills.
  VectorIndex(int32_t dim, size_t entries_max);
  ~VectorIndex();

  // `id` is new; `vector` has `dim` elements and length 1.
  void Add(uint64_t id, std::span<const float> vector);
  void Remove(uint64_t id);

  struct Match {
    uint64_t id = 0;
    float similarity = 0;
  };
  // At most `count`, the nearest first.
  std::vector<Match> Search(std::span<const float> query, size_t count) const;

  // Some of what is due, at most about `vectors_max` vectors' worth of work. False: nothing is.
  bool Upkeep(size_t vectors_max = 64);

  // Writes the graph into PATH.graph and PATH.keys, so that the next process need not build it.
  // `key_of` names an entry for other processes. NOT_FOUND: there is no graph.
  absl::Status Save(const std::string& path,
                    const std::function<std::string(uint64_t)>& key_of) const;
  // Takes over a graph that Save wrote: of the entries that were added here, those that it holds
  // with the same vector. `id_of` gives 0 for a key that is not here. NOT_FOUND: there are no such
  // files. DATA_LOSS: they are damaged, or not of this shape; nothing changes. Before the first
  // Upkeep.
  absl::Status Load(const std::string& path,
                    const std::function<uint64_t(const std::string&)>& id_of);

  size_t size() const;
  size_t graph_size() const;  // without tombstones
  size_t tombstones() const;
  size_t bytes() const;  // of vectors and links
  bool has_graph() const { return has_graph_; }

 private:
  class Graph;
  struct Rebuild;

  void SearchExact(std::span<const float> query, size_t count, std::vector<Match>* out) const;
  void RemoveExact(uint64_t id);
  size_t Capacity() const;
  bool MoveOne();
  bool StepRebuild(size_t vectors_max);

  const int32_t dim_;
  const size_t entries_max_;
  mutable std::shared_mutex mutex_;
  std::vector<uint64_t> exact_ids_;
  std::vector<float> exact_;  // [exact_ids_, dim]
  std::unordered_map<uint64_t, size_t> exact_place_;
  std::unique_ptr<Graph> graph_;      // null: never needed yet
  std::unique_ptr<Rebuild> rebuild_;  // Upkeep's
  std::atomic<bool> has_graph_ = false;
};

}  // namespace trivium::router

#include "services/router/semantic_cache/vector_index.h"

// Without its vector code: distances are ours, and its prefetches read a word past the end of a
// list of links.
#define NO_MANUAL_VECTORIZATION
#include <hnswlib/hnswlib.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <optional>

#include "kernels/dot.h"
#include "services/router/semantic_cache/graph_file.h"

namespace trivium::router {
namespace {

constexpr size_t kLinks = 16, kConstructionCandidates = 160, kSearchCandidates = 24;
constexpr size_t kDeadPart = 5, kDeadMin = 64;  // rebuilt when a fifth is dead

struct Shape {
  size_t dim = 0;  // first: hnswlib reads it there
  kernels::DotFunction dot = nullptr;
};

float Distance(const void* a, const void* b, const void* shape) {
  const auto* s = static_cast<const Shape*>(shape);
  return 1.0f - s->dot(static_cast<const float*>(a), static_cast<const float*>(b),
                       static_cast<int64_t>(s->dim));
}

class DotSpace final : public hnswlib::SpaceInterface<float> {
 public:
  explicit DotSpace(int32_t dim) : shape_{static_cast<size_t>(dim), kernels::BestDot()} {}
  size_t get_data_size() override { return shape_.dim * sizeof(float); }
  hnswlib::DISTFUNC<float> get_dist_func() override { return Distance; }
  void* get_dist_func_param() override { return &shape_; }
  size_t bytes() const { return shape_.dim * sizeof(float); }

 private:
  Shape shape_;
};

bool Nearer(const VectorIndex::Match& a, const VectorIndex::Match& b) {
  return a.similarity > b.similarity;
}

}  // namespace

// hnswlib, whose exceptions mean broken invariants of ours. Searches may run together; nothing may
// run beside Add or Remove.
class VectorIndex::Graph {
 public:
  Graph(int32_t dim, size_t capacity)
      : dim_(dim),
        capacity_(capacity),
        space_(dim),
        hnsw_(&space_, capacity, kLinks, kConstructionCandidates) {
    hnsw_.setEf(kSearchCandidates);
  }
  // Of a file that hnswlib wrote; throws what it throws.
  Graph(int32_t dim, size_t capacity, const std::string& path)
      : dim_(dim), capacity_(capacity), space_(dim), hnsw_(&space_, path, false, capacity) {
    hnsw_.setEf(kSearchCandidates);
  }

  void Write(const std::string& path) const { hnsw_.saveIndex(path); }
  bool IsOfThisShape() const {
    return hnsw_.label_offset_ - hnsw_.offsetData_ == space_.bytes() && hnsw_.M_ == kLinks &&
           hnsw_.cur_element_count <= capacity_;
  }
  // Gives what was read the ids of here: `id_of(label, vector)`; what has none is dead.
  void Relabel(const std::function<uint64_t(uint64_t, const float*)>& id_of) {
    hnsw_.label_lookup_.clear();
    for (size_t i = 0; i < hnsw_.cur_element_count; ++i) {
      const auto at = static_cast<hnswlib::tableint>(i);
      const auto* vector = reinterpret_cast<const float*>(hnsw_.getDataByInternalId(at));
      const bool was_dead = hnsw_.isMarkedDeleted(at);
      const uint64_t id = was_dead ? 0 : id_of(hnsw_.getExternalLabel(at), vector);
      // The same entry twice would be found twice.
      if (id != 0 && live_.insert(id).second) {
        hnsw_.setExternalLabel(at, id);
        hnsw_.label_lookup_[id] = at;
      } else if (!was_dead) {
        hnsw_.markDeletedInternal(at);
      }
    }
  }

  void Add(uint64_t id, const float* vector) {
    hnsw_.addPoint(vector, id);
    live_.insert(id);
  }
  bool Remove(uint64_t id) {
    if (live_.erase(id) == 0) return false;
    hnsw_.markDelete(id);
    return true;
  }
  void Search(const float* query, size_t count, std::vector<Match>* out) const {
    auto nearest = hnsw_.searchKnn(query, count);
    for (; !nearest.empty(); nearest.pop()) {
      out->push_back({nearest.top().second, 1.0f - nearest.top().first});
    }
  }
  std::vector<float> Vector(uint64_t id) const { return hnsw_.getDataByLabel<float>(id); }
  const std::unordered_set<uint64_t>& live() const { return live_; }
  size_t dead() const { return hnsw_.cur_element_count - live_.size(); }
  bool is_full() const { return hnsw_.cur_element_count >= capacity_; }
  size_t bytes() const { return hnsw_.cur_element_count * hnsw_.size_data_per_element_; }

 private:
  const int32_t dim_;
  const size_t capacity_;
  DotSpace space_;
  mutable hnswlib::HierarchicalNSW<float> hnsw_;  // its writing is not const
  std::unordered_set<uint64_t> live_;
};

// The graph that is to take the place of the one with tombstones.
struct VectorIndex::Rebuild {
  std::unique_ptr<Graph> graph;
  std::vector<uint64_t> ids;  // to be taken over
  size_t next = 0;
};

VectorIndex::VectorIndex(int32_t dim, size_t entries_max)
    : dim_(dim), entries_max_(std::max<size_t>(entries_max, 1)) {}
VectorIndex::~VectorIndex() = default;

void VectorIndex::Add(uint64_t id, std::span<const float> vector) {
  TRIVIUM_CHECK(vector.size() == static_cast<size_t>(dim_), "a vector of {}", vector.size());
  std::unique_lock lock(mutex_);
  exact_place_[id] = exact_ids_.size();
  exact_ids_.push_back(id);
  exact_.insert(exact_.end(), vector.begin(), vector.end());
}

void VectorIndex::Remove(uint64_t id) {
  std::unique_lock lock(mutex_);
  if (exact_place_.contains(id)) return RemoveExact(id);
  if (graph_ != nullptr) graph_->Remove(id);
}

void VectorIndex::RemoveExact(uint64_t id) {
  const size_t at = exact_place_.at(id), last = exact_ids_.size() - 1;
  exact_place_[exact_ids_[last]] = at;
  exact_place_.erase(id);
  exact_ids_[at] = exact_ids_[last];
  const auto row = [&](size_t i) { return exact_.begin() + static_cast<std::ptrdiff_t>(i) * dim_; };
  std::copy(row(last), row(last + 1), row(at));
  exact_ids_.pop_back();
  exact_.resize(exact_.size() - static_cast<size_t>(dim_));
}

void VectorIndex::SearchExact(std::span<const float> query, size_t count,
                              std::vector<Match>* out) const {
  const kernels::DotFunction dot = kernels::BestDot();
  float worst = -2;  // of `out` when it is full
  for (size_t i = 0; i < exact_ids_.size(); ++i) {
    const float similarity = dot(query.data(), exact_.data() + i * static_cast<size_t>(dim_), dim_);
    if (out->size() == count && similarity <= worst) continue;
    if (out->size() == count) out->pop_back();
    const Match match{exact_ids_[i], similarity};
    out->insert(std::upper_bound(out->begin(), out->end(), match, Nearer), match);
    worst = out->back().similarity;
  }
}

std::vector<VectorIndex::Match> VectorIndex::Search(std::span<const float> query,
                                                    size_t count) const {
  TRIVIUM_CHECK(query.size() == static_cast<size_t>(dim_), "a query of {}", query.size());
  std::vector<Match> matches;
  std::shared_lock lock(mutex_);
  SearchExact(query, count, &matches);
  if (graph_ != nullptr) graph_->Search(query.data(), count, &matches);
  lock.unlock();
  std::sort(matches.begin(), matches.end(), Nearer);
  if (matches.size() > count) matches.resize(count);
  return matches;
}

// With room for tombstones up to the next rebuild.
size_t VectorIndex::Capacity() const {
  return entries_max_ + std::max(entries_max_ / (kDeadPart - 1), kDeadMin) + 1;
}

// False: all that is exact may stay so.
bool VectorIndex::MoveOne() {
  std::unique_lock lock(mutex_);
  if (exact_ids_.size() <= kExactMax) return false;
  if (graph_ == nullptr) {
    graph_ = std::make_unique<Graph>(dim_, Capacity());
    has_graph_ = true;
  }
  if (graph_->is_full()) return false;
  const uint64_t id = exact_ids_.back();
  graph_->Add(id, exact_.data() + exact_.size() - static_cast<size_t>(dim_));
  exact_place_.erase(id);
  exact_ids_.pop_back();
  exact_.resize(exact_.size() - static_cast<size_t>(dim_));
  return true;
}

// What is removed meanwhile is a tombstone in the old graph, by which it is told at the end; what
// is added stays exact until then.
bool VectorIndex::StepRebuild(size_t vectors_max) {
  if (rebuild_ == nullptr) {
    std::shared_lock lock(mutex_);
    if (graph_ == nullptr || graph_->dead() < kDeadMin ||
        graph_->dead() * kDeadPart < graph_->dead() + graph_->live().size()) {
      return false;
    }
    rebuild_ = std::make_unique<Rebuild>();
    rebuild_->ids.assign(graph_->live().begin(), graph_->live().end());
    rebuild_->graph = std::make_unique<Graph>(dim_, Capacity());
  }
  for (; vectors_max > 0 && rebuild_->next < rebuild_->ids.size(); --vectors_max) {
    const uint64_t id = rebuild_->ids[rebuild_->next++];
    std::shared_lock lock(mutex_);
    if (!graph_->live().contains(id)) continue;
    const std::vector<float> vector = graph_->Vector(id);
    lock.unlock();
    rebuild_->graph->Add(id, vector.data());
  }
  if (rebuild_->next < rebuild_->ids.size()) return true;
  std::unique_lock lock(mutex_);
  for (const uint64_t id : rebuild_->ids) {
    if (!graph_->live().contains(id)) rebuild_->graph->Remove(id);
  }
  std::swap(graph_, rebuild_->graph);
  lock.unlock();
  rebuild_ = nullptr;  // with the old graph, outside the lock
  return true;
}

bool VectorIndex::Upkeep(size_t vectors_max) {
  if (StepRebuild(vectors_max)) return true;
  for (size_t i = 0; i < vectors_max; ++i) {
    if (!MoveOne()) return i > 0;
  }
  return true;
}

absl::Status VectorIndex::Save(const std::string& path,
                               const std::function<std::string(uint64_t)>& key_of) const {
  std::shared_lock lock(mutex_);
  if (graph_ == nullptr) return absl::NotFoundError("there is no graph");
  GraphKeys keys;
  for (const uint64_t id : graph_->live()) keys.emplace(id, key_of(id));
  return WriteGraph(path, keys, [&](const std::string& file) { graph_->Write(file); });
}

absl::Status VectorIndex::Load(const std::string& path,
                               const std::function<uint64_t(const std::string&)>& id_of) {
  ASSIGN_OR_RETURN(const GraphKeys keys, ReadGraphKeys(path));
  std::unique_ptr<Graph> graph;
  try {
    graph = std::make_unique<Graph>(dim_, Capacity(), GraphPath(path));
  } catch (const std::exception& error) {
    return absl::DataLossError(error.what());
  }
  if (!graph->IsOfThisShape()) return absl::DataLossError("a graph of another shape");
  std::unique_lock lock(mutex_);
  TRIVIUM_CHECK(graph_ == nullptr, "there is a graph already");
  graph->Relabel([&](uint64_t label, const float* vector) -> uint64_t {
    const auto key = keys.find(label);
    const uint64_t id = key == keys.end() ? 0 : id_of(key->second);
    const auto place = exact_place_.find(id);
    if (id == 0 || place == exact_place_.end()) return 0;
    const float* here = exact_.data() + place->second * static_cast<size_t>(dim_);
    return std::equal(here, here + dim_, vector) ? id : 0;
  });
  for (const uint64_t id : graph->live()) RemoveExact(id);
  graph_ = std::move(graph);
  has_graph_ = true;
  return absl::OkStatus();
}

size_t VectorIndex::size() const {
  std::shared_lock lock(mutex_);
  return exact_ids_.size() + (graph_ == nullptr ? 0 : graph_->live().size());
}
size_t VectorIndex::graph_size() const {
  std::shared_lock lock(mutex_);
  return graph_ == nullptr ? 0 : graph_->live().size();
}
size_t VectorIndex::tombstones() const {
  std::shared_lock lock(mutex_);
  return graph_ == nullptr ? 0 : graph_->dead();
}
size_t VectorIndex::bytes() const {
  std::shared_lock lock(mutex_);
  return exact_.size() * sizeof(float) + (graph_ == nullptr ? 0 : graph_->bytes());
}

}  // namespace trivium::router

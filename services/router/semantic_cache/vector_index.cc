#include "services/router/semantic_cache/vector_index.h"

// Without its vector code: distances are ours, and its prefetches read a word past the end of a
// list of links.
#define NO_MANUAL_VECTORIZATION
#include <hnswlib/hnswlib.h>

#include <algorithm>
#include <mutex>

#include "common/base/status.h"
#include "kernels/dot.h"

namespace trivium::router {
namespace {

constexpr size_t kLinks = 16, kConstructionCandidates = 160, kSearchCandidates = 96;
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
  mutable hnswlib::HierarchicalNSW<float> hnsw_;
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
  const auto it = exact_place_.find(id);
  if (it == exact_place_.end()) {
    if (graph_ != nullptr) graph_->Remove(id);
    return;
  }
  const size_t at = it->second, last = exact_ids_.size() - 1;
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

// False: all that is exact may stay so.
bool VectorIndex::MoveOne() {
  std::unique_lock lock(mutex_);
  if (exact_ids_.size() <= kExactMax) return false;
  if (graph_ == nullptr) {
    const size_t spare = std::max(entries_max_ / (kDeadPart - 1), kDeadMin);
    graph_ = std::make_unique<Graph>(dim_, entries_max_ + spare + 1);
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
    const size_t spare = std::max(entries_max_ / (kDeadPart - 1), kDeadMin);
    rebuild_->graph = std::make_unique<Graph>(dim_, entries_max_ + spare + 1);
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

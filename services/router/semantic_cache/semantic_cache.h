// Answers that were given, found again by what was asked: by the same words, or by words that mean
// the same within the limits of a category's policy.
//
// Questions are compared only within one scope (tenant, model, conversation, sampling), which
// is an index of its own for each category, so that no search ever sees what another tenant asked.
// In memory are vectors, hashes and numbers; answers are in the document store, from which one is
// fetched when it has been found. Invariants: a category holds no more entries and bytes than its
// quota; what is older than its time to live is not found; an entry is in one index and in the
// lists of its category, or nowhere.
//
// Thread-safety: all methods, any thread. Insert, Adopt, Invalidate, Follow and Upkeep wait for one
// another; Find does not wait for them but for moments. Insert, Answer and Invalidate may wait for
// the store.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "services/router/semantic_cache/document_store.h"
#include "services/router/semantic_cache/policy.h"
#include "services/router/semantic_cache/vector_index.h"

namespace trivium::router {

struct Hash128 {
  uint64_t high = 0, low = 0;
  friend auto operator<=>(const Hash128&, const Hash128&) = default;
};

// What is asked, without its text.
struct CacheQuestion {
  std::string tenant;
  Hash128 scope;  // questions of different scopes are never compared
  Hash128 exact;  // of scope and question
  GuardMarks marks;
  bool is_comparable = true;  // else only the same words find it
  int32_t tokens_max = 0;     // an answer of more is none
  int64_t age_max_ms = INT64_MAX;
};

enum class EvictReason : uint8_t { kExpired, kQuota, kReplaced, kInvalidated, kLost, kCount };

class SemanticCache {
 public:
  struct Options {
    std::vector<CategoryPolicy> categories;  // with kOtherCategory; names differ
    int32_t dim = 0;
    size_t entries_max = 100000;
    int64_t bytes_max = int64_t{256} << 20;
    std::string epoch;  // entries of another are not read
    std::function<int64_t()> unix_ms;
  };
  // `store` outlives the cache.
  SemanticCache(Options options, DocumentStore* store);
  ~SemanticCache();

  struct Found {
    uint64_t id = 0;
    size_t category = 0;
    float similarity = 1;
    int64_t age_ms = 0;
    bool is_exact = false;
    bool is_relaxed = false;  // only because of the load
  };
  // `category` restricts it where given.
  std::optional<Found> FindExact(const CacheQuestion& question, std::optional<size_t> category);
  // One that may be compared. Tells `examined`, if given, about each candidate.
  struct Examined {
    float similarity = 0;
    int64_t age_ms = 0;
    const char* verdict = "";  // "found", "similarity", "age", a guard…
  };
  std::optional<Found> Find(const CacheQuestion& question, size_t category,
                            std::span<const float> vector,
                            std::vector<Examined>* examined = nullptr);
  // NOT_FOUND: it has gone since, or was damaged. UNAVAILABLE: the store is. Either counts as a
  // miss.
  absl::StatusOr<std::string> Answer(const Found& found);
  // What ended neither in an answer nor in Answer.
  void CountMiss(size_t category);

  // `vector` may be empty where the question is not comparable.
  absl::Status Insert(const CacheQuestion& question, size_t category, std::span<const float> vector,
                      const std::string& answer, int32_t completion_tokens);

  // Takes over what the store holds and this cache does not know: at the start, and of other
  // routers. At most a page; true: there may be more.
  absl::StatusOr<bool> Follow();

  struct Selection {  // empty: any
    std::string tenant = {}, category = {};
    int64_t older_than_ms = 0;
  };
  // How many are gone. UNAVAILABLE: nobody finds them here any more, but the store could not be
  // told; Upkeep goes on to try.
  absl::StatusOr<size_t> Invalidate(const Selection& selection);

  // The graphs of large indexes, in files of `folder`, which is made if it is not there: written
  // when a process ends in order, read when Follow has given all there is. A graph that is damaged
  // is dropped; Upkeep builds it anew. Nothing else may run meanwhile.
  absl::Status SaveGraphs(const std::string& folder) const;
  struct LoadedGraphs {
    size_t entries = 0, damaged = 0;  // that need no building; graphs
  };
  LoadedGraphs LoadGraphs(const std::string& folder);

  // Drops what has expired and looks after the indexes. True: there is more to do now.
  bool Upkeep();

  // 0 … 1; see policy.h.
  void SetLoad(float load);
  void SetPolicies(const std::vector<CategoryPolicy>& categories);  // of the same names, in order

  struct Counts {
    std::string category;
    bool is_enabled = true;
    float threshold = 0;  // of now
    int64_t ttl_ms = 0;
    uint64_t hits = 0, exact_hits = 0, relaxed_hits = 0, misses = 0, inserts = 0;
    std::array<uint64_t, size_t(GuardRefusal::kCount)> guarded{};
    std::array<uint64_t, size_t(EvictReason::kCount)> evicted{};
    size_t entries = 0;
    int64_t bytes = 0;
  };
  std::vector<Counts> counts() const;
  size_t categories() const { return names_.size(); }
  std::optional<size_t> CategoryNamed(std::string_view name) const;
  CategoryPolicy policy(size_t category) const;

 private:
  struct GroupKey {
    Hash128 scope;
    size_t category = 0;
    friend auto operator<=>(const GroupKey&, const GroupKey&) = default;
  };
  struct Group {
    std::shared_ptr<VectorIndex> index;
    size_t entries = 0;  // with those that are not in the index
  };
  struct Entry {
    std::string key, tenant;
    GroupKey group;
    Hash128 exact;
    GuardMarks marks;
    bool is_comparable = true;
    int32_t completion_tokens = 0;
    int64_t created_ms = 0;
    int64_t bytes = 0;
    uint64_t answer_hash = 0;
    std::list<uint64_t>::iterator used;
  };
  struct Category {
    CategoryPolicy policy;
    std::list<uint64_t> by_use;                     // least recently used first
    std::set<std::pair<int64_t, uint64_t>> by_age;  // created, id
    Counts counts;
  };
  struct ExactHash {
    size_t operator()(const Hash128& hash) const { return hash.low; }
  };

  const char* Judge(const Entry& entry, const CacheQuestion& question, float similarity,
                    Category& category, int64_t now_ms, bool* is_relaxed) const;
  bool IsFresh(const Entry& entry, const CacheQuestion& question, int64_t now_ms,
               bool* is_relaxed) const;
  Found Touch(uint64_t id, Entry& entry, int64_t now_ms);
  std::shared_ptr<VectorIndex> IndexOf(const GroupKey& key) const;

  void Admit(Entry entry, std::span<const float> vector);
  void MakeRoom(size_t category, int64_t bytes, std::vector<std::string>* gone);
  // With the locks held; null: not there.
  std::shared_ptr<VectorIndex> Unlist(uint64_t id, EvictReason reason,
                                      std::vector<std::string>* gone);
  // The keys of what was there.
  std::vector<std::string> Drop(const std::vector<uint64_t>& ids, EvictReason reason,
                                bool in_store);
  void DeleteLater(std::vector<std::string> keys);
  bool DeletePage();
  size_t EntriesMax(const CategoryPolicy& policy) const;
  int64_t BytesMax(const CategoryPolicy& policy) const;

  const Options options_;
  DocumentStore* const store_;
  std::vector<std::string> names_;

  std::mutex follow_mutex_;  // the first to be taken
  std::string cursor_;       // of Follow

  std::mutex change_mutex_;  // taken before mutex_, by who changes what is kept
  uint64_t last_id_ = 0;
  std::unordered_set<std::string> to_delete_;  // in the store

  mutable std::mutex mutex_;
  std::vector<Category> categories_;
  std::unordered_map<uint64_t, Entry> entries_;
  std::map<GroupKey, Group> groups_;
  std::unordered_map<Hash128, uint64_t, ExactHash> exact_;
  std::unordered_map<std::string, uint64_t> by_key_;
  float load_ = 0;
};

}  // namespace trivium::router

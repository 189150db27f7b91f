#include "services/router/semantic_cache/semantic_cache.h"

#include <algorithm>
#include <random>
#include <tuple>

#include "services/router/semantic_cache/entry_record.h"

namespace trivium::router {
namespace {

constexpr size_t kCandidates = 8;
constexpr int64_t kEntryBytes = 512;  // of an entry beside its vector, keys and lists
constexpr size_t kDeletesPage = 256, kDeletesMax = 65536;
constexpr int64_t kClockSkewMs = 300000;  // between routers; from further ahead comes no entry

std::string DrawKey() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random());
}

int64_t AgeOf(int64_t created_ms, int64_t now_ms) {
  return std::max<int64_t>(0, now_ms - created_ms);
}

}  // namespace

SemanticCache::SemanticCache(Options options, DocumentStore* store)
    : options_(std::move(options)), store_(store) {
  for (const CategoryPolicy& policy : options_.categories) {
    names_.push_back(policy.name);
    categories_.emplace_back().policy = policy;
  }
  TRIVIUM_CHECK(CategoryNamed(kOtherCategory).has_value(), "there is no category \"other\"");
}

SemanticCache::~SemanticCache() = default;

std::optional<size_t> SemanticCache::CategoryNamed(std::string_view name) const {
  const auto it = std::find(names_.begin(), names_.end(), name);
  if (it == names_.end()) return std::nullopt;
  return static_cast<size_t>(it - names_.begin());
}

CategoryPolicy SemanticCache::policy(size_t category) const {
  std::lock_guard lock(mutex_);
  return categories_[category].policy;
}

bool SemanticCache::IsFresh(const Entry& entry, const CacheQuestion& question, int64_t now_ms,
                            bool* is_relaxed) const {
  const int64_t age_ms = AgeOf(entry.created_ms, now_ms);
  const CategoryPolicy& policy = categories_[entry.group.category].policy;
  *is_relaxed |= age_ms >= policy.ttl_ms;
  return age_ms < TtlAt(policy, load_) && age_ms <= question.age_max_ms;
}

// "found", or what speaks against it.
const char* SemanticCache::Judge(const Entry& entry, const CacheQuestion& question,
                                 float similarity, Category& category, int64_t now_ms,
                                 bool* is_relaxed) const {
  if (similarity < ThresholdAt(category.policy, load_)) return "similarity";
  if (!IsFresh(entry, question, now_ms, is_relaxed)) return "age";
  if (entry.completion_tokens > question.tokens_max) return "max_tokens";
  *is_relaxed |= similarity < category.policy.threshold;
  const GuardRefusal refusal = Compare(entry.marks, question.marks, category.policy.guards);
  ++category.counts.guarded[static_cast<size_t>(refusal)];
  return refusal == GuardRefusal::kNone ? "found" : Name(refusal);
}

SemanticCache::Found SemanticCache::Touch(uint64_t id, Entry& entry, int64_t now_ms) {
  std::list<uint64_t>& by_use = categories_[entry.group.category].by_use;
  by_use.splice(by_use.end(), by_use, entry.used);
  return {.id = id, .category = entry.group.category, .age_ms = AgeOf(entry.created_ms, now_ms)};
}

std::optional<SemanticCache::Found> SemanticCache::FindExact(const CacheQuestion& question,
                                                             std::optional<size_t> category) {
  const int64_t now_ms = options_.unix_ms();
  std::lock_guard lock(mutex_);
  const auto it = exact_.find(question.exact);
  if (it == exact_.end()) return std::nullopt;
  Entry& entry = entries_.at(it->second);
  const size_t its = entry.group.category;
  bool is_relaxed = false;
  // The tenant is part of the hash; to compare it all the same costs nothing.
  if (entry.tenant != question.tenant || (category.has_value() && *category != its) ||
      !categories_[its].policy.is_enabled || entry.completion_tokens > question.tokens_max ||
      !IsFresh(entry, question, now_ms, &is_relaxed)) {
    return std::nullopt;
  }
  Found found = Touch(it->second, entry, now_ms);
  found.is_exact = true;
  found.is_relaxed = is_relaxed;
  return found;
}

std::shared_ptr<VectorIndex> SemanticCache::IndexOf(const GroupKey& key) const {
  std::lock_guard lock(mutex_);
  const auto it = groups_.find(key);
  return it == groups_.end() ? nullptr : it->second.index;
}

std::optional<SemanticCache::Found> SemanticCache::Find(const CacheQuestion& question,
                                                        size_t category,
                                                        std::span<const float> vector,
                                                        std::vector<Examined>* examined) {
  const GroupKey group{question.scope, category};
  const std::shared_ptr<VectorIndex> index = IndexOf(group);
  if (index == nullptr || !question.is_comparable) return std::nullopt;
  const std::vector<VectorIndex::Match> matches = index->Search(vector, kCandidates);
  const int64_t now_ms = options_.unix_ms();
  std::lock_guard lock(mutex_);
  Category& its = categories_[category];
  if (!its.policy.is_enabled) return std::nullopt;
  std::optional<Found> found;
  for (const VectorIndex::Match& match : matches) {
    const auto it = entries_.find(match.id);
    if (it == entries_.end() || it->second.tenant != question.tenant) continue;
    bool is_relaxed = false;
    const char* verdict = Judge(it->second, question, match.similarity, its, now_ms, &is_relaxed);
    if (examined != nullptr) {
      examined->push_back({match.similarity, AgeOf(it->second.created_ms, now_ms), verdict});
    }
    if (std::string_view(verdict) == "found" && !found.has_value()) {
      found = Touch(match.id, it->second, now_ms);
      found->similarity = match.similarity;
      found->is_relaxed = is_relaxed;
      if (examined == nullptr) break;
    }
  }
  return found;
}

absl::StatusOr<std::string> SemanticCache::Answer(const Found& found) {
  std::string key;
  uint64_t hash = 0;
  {
    std::lock_guard lock(mutex_);
    const auto it = entries_.find(found.id);
    if (it != entries_.end()) {
      key = it->second.key;
      hash = it->second.answer_hash;
    }
  }
  absl::StatusOr<std::string> answer = absl::NotFoundError("evicted since");
  if (!key.empty()) answer = store_->Answer(key);
  if (answer.ok() && HashOf(*answer) != hash) answer = absl::NotFoundError("the answer is damaged");
  const bool is_lost = answer.status().code() == absl::StatusCode::kNotFound;
  if (is_lost && !key.empty()) Drop({found.id}, EvictReason::kLost, true);
  std::lock_guard lock(mutex_);
  Counts& counts = categories_[found.category].counts;
  ++(answer.ok() ? counts.hits : counts.misses);
  if (answer.ok() && found.is_exact) ++counts.exact_hits;
  if (answer.ok() && found.is_relaxed) ++counts.relaxed_hits;
  return answer;
}

void SemanticCache::CountMiss(size_t category) {
  std::lock_guard lock(mutex_);
  ++categories_[category].counts.misses;
}

absl::Status SemanticCache::Insert(const CacheQuestion& question, size_t category,
                                   std::span<const float> vector, const std::string& answer,
                                   int32_t completion_tokens) {
  EntryRecord record;
  record.question = question;
  record.category = names_[category];
  if (question.is_comparable) record.vector.assign(vector.begin(), vector.end());
  record.created_ms = options_.unix_ms();
  record.answer_bytes = static_cast<int64_t>(answer.size());
  record.completion_tokens = completion_tokens;
  record.answer_hash = HashOf(answer);
  const CategoryPolicy its = policy(category);
  const StoredEntry stored{DrawKey(), WriteRecord(record, options_.epoch)};
  RETURN_IF_ERROR(store_->Put(stored, answer, TtlAt(its, 1)));
  std::lock_guard change(change_mutex_);
  {
    std::lock_guard lock(mutex_);
    if (by_key_.contains(stored.key)) return absl::OkStatus();  // Follow was faster
  }
  Entry entry{stored.key,
              question.tenant,
              {question.scope, category},
              question.exact,
              question.marks,
              question.is_comparable,
              completion_tokens,
              record.created_ms,
              record.answer_bytes,
              record.answer_hash,
              {}};
  Admit(std::move(entry), record.vector);
  return absl::OkStatus();
}

// Holds change_mutex_ alone.
void SemanticCache::Admit(Entry entry, std::span<const float> vector) {
  entry.bytes += kEntryBytes + static_cast<int64_t>(vector.size_bytes());
  std::vector<std::string> gone;
  std::shared_ptr<VectorIndex> index;
  const uint64_t id = ++last_id_;
  const GroupKey group = entry.group;
  {
    std::unique_lock lock(mutex_);
    // Everything else of its category would go, and it would not fit even so.
    if (entry.bytes > BytesMax(categories_[group.category].policy)) {
      ++categories_[group.category].counts.evicted[static_cast<size_t>(EvictReason::kQuota)];
      lock.unlock();
      return DeleteLater({entry.key});
    }
    if (const auto same = exact_.find(entry.exact); same != exact_.end()) {
      const uint64_t old = same->second;
      const Entry& other = entries_.at(old);
      // Of two answers to one question all routers that share a store keep the same.
      if (std::tie(other.created_ms, other.key) > std::tie(entry.created_ms, entry.key)) {
        ++categories_[group.category].counts.evicted[static_cast<size_t>(EvictReason::kReplaced)];
        lock.unlock();
        return DeleteLater({entry.key});
      }
      const std::shared_ptr<VectorIndex> its = Unlist(old, EvictReason::kReplaced, &gone);
      lock.unlock();
      if (its != nullptr) its->Remove(old);
    }
  }
  MakeRoom(group.category, entry.bytes, &gone);
  {
    std::lock_guard lock(mutex_);
    Category& category = categories_[group.category];
    Group& its = groups_[group];
    ++its.entries;
    if (!vector.empty() && its.index == nullptr) {
      its.index = std::make_shared<VectorIndex>(options_.dim, EntriesMax(category.policy));
    }
    index = its.index;
    category.by_use.push_back(id);
    entry.used = std::prev(category.by_use.end());
    category.by_age.emplace(entry.created_ms, id);
    category.counts.bytes += entry.bytes;
    ++category.counts.inserts;
    exact_[entry.exact] = id;
    by_key_[entry.key] = id;
    entries_.emplace(id, std::move(entry));
  }
  if (!vector.empty()) index->Add(id, vector);
  DeleteLater(std::move(gone));
}

size_t SemanticCache::EntriesMax(const CategoryPolicy& policy) const {
  return static_cast<size_t>(
      std::max(1.0, policy.quota * static_cast<double>(options_.entries_max)));
}

int64_t SemanticCache::BytesMax(const CategoryPolicy& policy) const {
  return static_cast<int64_t>(policy.quota * static_cast<double>(options_.bytes_max));
}

// So that an entry of so many bytes fits into the category: first what has expired, then what was
// not used for longest.
void SemanticCache::MakeRoom(size_t category, int64_t bytes, std::vector<std::string>* gone) {
  const int64_t now_ms = options_.unix_ms();
  while (true) {
    std::unique_lock lock(mutex_);
    Category& its = categories_[category];
    if (its.by_use.empty() || (its.by_use.size() < EntriesMax(its.policy) &&
                               its.counts.bytes + bytes <= BytesMax(its.policy))) {
      return;
    }
    const auto& [created_ms, oldest] = *its.by_age.begin();
    const bool is_old = AgeOf(created_ms, now_ms) >= TtlAt(its.policy, load_);
    const uint64_t id = is_old ? oldest : its.by_use.front();
    const std::shared_ptr<VectorIndex> index =
        Unlist(id, is_old ? EvictReason::kExpired : EvictReason::kQuota, gone);
    lock.unlock();
    if (index != nullptr) index->Remove(id);
  }
}

std::shared_ptr<VectorIndex> SemanticCache::Unlist(uint64_t id, EvictReason reason,
                                                   std::vector<std::string>* gone) {
  const auto it = entries_.find(id);
  if (it == entries_.end()) return nullptr;
  Entry& entry = it->second;
  Category& category = categories_[entry.group.category];
  category.by_use.erase(entry.used);
  category.by_age.erase({entry.created_ms, id});
  category.counts.bytes -= entry.bytes;
  ++category.counts.evicted[static_cast<size_t>(reason)];
  if (const auto exact = exact_.find(entry.exact); exact != exact_.end() && exact->second == id) {
    exact_.erase(exact);
  }
  by_key_.erase(entry.key);
  const auto group = groups_.find(entry.group);
  std::shared_ptr<VectorIndex> index = group->second.index;
  if (--group->second.entries == 0) groups_.erase(group);
  gone->push_back(std::move(entry.key));
  entries_.erase(it);
  return index;
}

std::vector<std::string> SemanticCache::Drop(const std::vector<uint64_t>& ids, EvictReason reason,
                                             bool in_store) {
  std::lock_guard change(change_mutex_);
  std::vector<std::string> gone;
  for (const uint64_t id : ids) {
    std::unique_lock lock(mutex_);
    const std::shared_ptr<VectorIndex> index = Unlist(id, reason, &gone);
    lock.unlock();
    if (index != nullptr) index->Remove(id);
  }
  if (in_store) DeleteLater(gone);
  return gone;
}

// With change_mutex_ held. What waits is deleted by Upkeep; what does not fit because the store is
// away for long stays there until its time has passed.
void SemanticCache::DeleteLater(std::vector<std::string> keys) {
  for (std::string& key : keys) {
    if (to_delete_.size() < options_.entries_max + kDeletesMax) to_delete_.insert(std::move(key));
  }
}

absl::StatusOr<bool> SemanticCache::Follow() {
  std::lock_guard follow(follow_mutex_);
  ASSIGN_OR_RETURN(const std::vector<StoredEntry> page, store_->After(&cursor_));
  std::lock_guard change(change_mutex_);
  const int64_t now_ms = options_.unix_ms();
  for (const StoredEntry& stored : page) {
    {
      std::lock_guard lock(mutex_);
      if (by_key_.contains(stored.key) || to_delete_.contains(stored.key)) continue;
    }
    absl::StatusOr<EntryRecord> record = ReadRecord(stored.entry, options_.epoch, options_.dim);
    const auto category = record.ok() ? CategoryNamed(record->category) : std::optional<size_t>();
    if (!category.has_value() || record->created_ms - now_ms > kClockSkewMs ||
        AgeOf(record->created_ms, now_ms) >= TtlAt(policy(*category), 1)) {
      // In a shared store it may be of use to routers of another configuration.
      if (!store_->is_shared()) DeleteLater({stored.key});
      continue;
    }
    const CacheQuestion& q = record->question;
    Admit({stored.key,
           q.tenant,
           {q.scope, *category},
           q.exact,
           q.marks,
           q.is_comparable,
           record->completion_tokens,
           record->created_ms,
           record->answer_bytes,
           record->answer_hash,
           {}},
          record->vector);
  }
  return page.size() == DocumentStore::kPageMax;
}

absl::StatusOr<size_t> SemanticCache::Invalidate(const Selection& selection) {
  const int64_t now_ms = options_.unix_ms();
  std::vector<uint64_t> ids;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [id, entry] : entries_) {
      if ((selection.tenant.empty() || selection.tenant == entry.tenant) &&
          (selection.category.empty() || selection.category == names_[entry.group.category]) &&
          AgeOf(entry.created_ms, now_ms) >= selection.older_than_ms) {
        ids.push_back(id);
      }
    }
  }
  std::vector<std::string> keys = Drop(ids, EvictReason::kInvalidated, true);
  const size_t count = keys.size();
  while (!keys.empty()) {
    const size_t page = std::min(keys.size(), kDeletesPage);
    const std::span<const std::string> last = std::span(keys).last(page);
    if (!store_->Delete(last).ok()) {
      return Unavailable(
          "{} answers are not found here any more, but their store does not answer: they come back "
          "if this router ends before it does",
          keys.size());
    }
    {
      std::lock_guard change(change_mutex_);
      for (const std::string& key : last) to_delete_.erase(key);
    }
    keys.resize(keys.size() - page);
  }
  return count;
}

bool SemanticCache::Upkeep() {
  const int64_t now_ms = options_.unix_ms();
  std::vector<uint64_t> expired;
  std::vector<std::shared_ptr<VectorIndex>> indexes;
  {
    std::lock_guard lock(mutex_);
    for (const Category& category : categories_) {
      for (const auto& [created_ms, id] : category.by_age) {
        if (AgeOf(created_ms, now_ms) < TtlAt(category.policy, 1)) break;
        expired.push_back(id);
      }
    }
    for (const auto& [key, group] : groups_) {
      if (group.index == nullptr) continue;
      const bool is_large = group.entries > VectorIndex::kExactMax;
      if (is_large || group.index->has_graph()) indexes.push_back(group.index);
    }
  }
  Drop(expired, EvictReason::kExpired, true);
  bool is_more = DeletePage();
  for (const std::shared_ptr<VectorIndex>& index : indexes) is_more |= index->Upkeep();
  return is_more;
}

// True: there are more. Until they are gone Follow must not take them for news.
bool SemanticCache::DeletePage() {
  std::vector<std::string> page;
  {
    std::lock_guard change(change_mutex_);
    for (const std::string& key : to_delete_) {
      if (page.size() == kDeletesPage) break;
      page.push_back(key);
    }
  }
  if (page.empty() || !store_->Delete(page).ok()) return false;
  std::lock_guard change(change_mutex_);
  for (const std::string& key : page) to_delete_.erase(key);
  return !to_delete_.empty();
}

void SemanticCache::SetLoad(float load) {
  std::lock_guard lock(mutex_);
  load_ = std::clamp(load, 0.0f, 1.0f);
}

void SemanticCache::SetPolicies(const std::vector<CategoryPolicy>& categories) {
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < categories_.size() && i < categories.size(); ++i) {
    if (categories[i].name == names_[i]) categories_[i].policy = categories[i];
  }
}

std::vector<SemanticCache::Counts> SemanticCache::counts() const {
  std::lock_guard lock(mutex_);
  std::vector<Counts> all;
  for (const Category& category : categories_) {
    Counts counts = category.counts;
    counts.category = category.policy.name;
    counts.is_enabled = category.policy.is_enabled;
    counts.threshold = ThresholdAt(category.policy, load_);
    counts.ttl_ms = TtlAt(category.policy, load_);
    counts.entries = category.by_use.size();
    all.push_back(std::move(counts));
  }
  return all;
}

}  // namespace trivium::router

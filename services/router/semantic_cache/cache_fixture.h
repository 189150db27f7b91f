// Test support: a cache with a clock that stands still, and unit vectors of a given likeness.
// Thread-safety: as its parts.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "services/router/semantic_cache/semantic_cache.h"

namespace trivium::router {

inline constexpr int32_t kTestDim = 48;

inline std::vector<float> Unit(std::vector<float> v) {
  double squares = 0;
  for (const float x : v) squares += double{x} * x;
  for (float& x : v) x = static_cast<float>(x / std::sqrt(squares));
  return v;
}
inline std::vector<float> RandomUnit(std::mt19937& random, int32_t dim = kTestDim) {
  std::normal_distribution<float> normal;
  std::vector<float> v(static_cast<size_t>(dim));
  for (float& x : v) x = normal(random);
  return Unit(v);
}
// A unit vector whose product with `v` is `similarity`.
inline std::vector<float> Near(const std::vector<float>& v, double similarity,
                               std::mt19937& random) {
  std::vector<float> other = RandomUnit(random, static_cast<int32_t>(v.size()));
  double dot = 0;
  for (size_t i = 0; i < v.size(); ++i) dot += double{v[i]} * other[i];
  for (size_t i = 0; i < v.size(); ++i) other[i] -= static_cast<float>(dot * v[i]);
  other = Unit(other);
  const double across = std::sqrt(1 - similarity * similarity);
  for (size_t i = 0; i < v.size(); ++i) {
    other[i] = static_cast<float>(similarity * v[i] + across * other[i]);
  }
  return other;
}

// In memory, counted, and away when told so.
class FakeStore final : public DocumentStore {
 public:
  absl::Status Put(const StoredEntry& entry, const std::string& answer, int64_t) override {
    std::lock_guard lock(mutex_);
    if (is_away) return Unavailable("away");
    rows_[++last_] = entry;
    answers_[entry.key] = answer;
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> Answer(const std::string& key) override {
    ++fetches;
    std::lock_guard lock(mutex_);
    if (is_away) return Unavailable("away");
    const auto it = answers_.find(key);
    if (it == answers_.end()) return absl::NotFoundError("no such answer");
    return it->second;
  }
  absl::Status Delete(std::span<const std::string> keys) override {
    std::lock_guard lock(mutex_);
    if (is_away) return Unavailable("away");
    for (const std::string& key : keys) {
      answers_.erase(key);
      std::erase_if(rows_, [&](const auto& row) { return row.second.key == key; });
    }
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<StoredEntry>> After(std::string* cursor) override {
    std::lock_guard lock(mutex_);
    if (is_away) return Unavailable("away");
    std::vector<StoredEntry> page;
    for (auto it = rows_.upper_bound(cursor->empty() ? 0 : std::stoi(*cursor));
         it != rows_.end() && page.size() < kPageMax; ++it) {
      page.push_back(it->second);
      *cursor = std::to_string(it->first);
    }
    return page;
  }
  bool is_shared() const override { return false; }

  std::map<std::string, std::string>& answers() { return answers_; }

  std::atomic<bool> is_away = false;
  std::atomic<int> fetches = 0;

 private:
  std::mutex mutex_;
  int last_ = 0;
  std::map<int, StoredEntry> rows_;
  std::map<std::string, std::string> answers_;
};

inline std::vector<CategoryPolicy> TestCategories() {
  return {{.name = "code", .threshold = 0.90f, .ttl_ms = 60000, .quota = 0.4},
          {.name = "chat",
           .threshold = 0.75f,
           .ttl_ms = 10000,
           .quota = 0.3,
           .relax = 0.05f,
           .stretch = 1},
          {.name = "advice", .threshold = 0.95f, .ttl_ms = 20000, .quota = 0.1},
          {.name = "other", .threshold = 0.80f, .ttl_ms = 10000, .quota = 0.2}};
}
inline constexpr size_t kCode = 0, kChat = 1, kAdvice = 2, kOther = 3;

struct CacheFixture : testing::Test {
  SemanticCache::Options OptionsOf(size_t entries_max) {
    SemanticCache::Options options;
    options.categories = TestCategories();
    options.dim = kTestDim;
    options.entries_max = entries_max;
    options.epoch = "epoch 1";
    options.unix_ms = [this] { return now_ms.load(); };
    return options;
  }
  std::unique_ptr<SemanticCache> MakeCache(size_t entries_max = 1000) {
    return std::make_unique<SemanticCache>(OptionsOf(entries_max), &store);
  }

  CacheQuestion Question(const std::string& tenant = "alice") {
    CacheQuestion question;
    question.tenant = tenant;
    question.scope = {std::hash<std::string>()(tenant), 7};
    question.exact = {question.scope.high, ++last_exact};
    question.tokens_max = 100;
    return question;
  }
  // Whether the answer comes back, and is this one.
  static bool Hits(SemanticCache& cache, const CacheQuestion& question, size_t category,
                   const std::vector<float>& vector, const std::string& answer = "answer") {
    const auto found = cache.Find(question, category, vector);
    if (!found.has_value()) return false;
    const auto fetched = cache.Answer(*found);
    return fetched.ok() && *fetched == answer;
  }

  std::mt19937 random{20261130};
  std::atomic<int64_t> now_ms = int64_t{1800000000000};
  FakeStore store;
  uint64_t last_exact = 0;
};

}  // namespace trivium::router

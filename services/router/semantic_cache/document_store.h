// Where answers lie, outside of the index: a question that finds nothing never comes here.
//
// A store may be slow or gone: every call has a bound of its own, and fails with UNAVAILABLE, at
// once while the store is known to be gone. What it returns may have been written by another
// version, or damaged. Thread-safety: all methods, any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/status.h"

namespace trivium::router {

struct StoredEntry {
  std::string key;    // 32 hex digits, drawn at random
  std::string entry;  // v1::CacheEntry
};

class DocumentStore {
 public:
  static constexpr size_t kPageMax = 256;

  virtual ~DocumentStore() = default;

  // May be forgotten by itself after `ttl_ms`.
  virtual absl::Status Put(const StoredEntry& entry, const std::string& answer, int64_t ttl_ms) = 0;
  virtual absl::StatusOr<std::string> Answer(const std::string& key) = 0;  // NOT_FOUND
  virtual absl::Status Delete(std::span<const std::string> keys) = 0;

  // What was put behind `cursor` ("" : all), oldest first, at most kPageMax; `cursor` moves on.
  virtual absl::StatusOr<std::vector<StoredEntry>> After(std::string* cursor) = 0;
  // Whether others put there too.
  virtual bool is_shared() const = 0;
};

// A file of SQLite, made if it is not there, readable by its owner alone. A file that is none, or
// is damaged, is put aside as PATH.damaged and made anew. ":memory:" keeps it nowhere.
absl::StatusOr<std::unique_ptr<DocumentStore>> OpenSqliteStore(const std::string& path);

// `address`: host:port of a Redis server, which need not be there yet; `prefix` begins all keys. A
// server that lets one command wait for `timeout` is away.
std::unique_ptr<DocumentStore> MakeRedisStore(const std::string& address, const std::string& prefix,
                                              Duration timeout = std::chrono::milliseconds(100));

}  // namespace trivium::router

// An entry as the document store has it, and back: everything checked, for a store may have been
// written by another version, or damaged. Stateless; safe from any thread.
#pragma once

#include <string>
#include <vector>

#include "common/base/status.h"
#include "services/router/semantic_cache/semantic_cache.h"

namespace trivium::router {

struct EntryRecord {
  CacheQuestion question;
  std::string category;
  std::vector<float> vector;
  int64_t created_ms = 0, answer_bytes = 0;
  int32_t completion_tokens = 0;
  uint64_t answer_hash = 0;
};

std::string WriteRecord(const EntryRecord& record, const std::string& epoch);
// INVALID_ARGUMENT for what is broken; FAILED_PRECONDITION for another epoch.
absl::StatusOr<EntryRecord> ReadRecord(const std::string& bytes, const std::string& epoch,
                                       int32_t dim);
uint64_t HashOf(std::string_view bytes);

}  // namespace trivium::router

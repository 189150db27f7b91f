// What of a request the cache may look at: whether it may serve it at all, and by what it would
// find it again. Stateless; safe from any thread.
#pragma once

#include <optional>
#include <string>

#include "common/base/ids.h"
#include "services/router/dispatch/run_types.h"
#include "services/router/semantic_cache/semantic_cache.h"
#include "trivium/v1/inference.pb.h"

namespace trivium::router {

// Why a request passes the cache by.
enum class Bypass : uint8_t {
  kNone,
  kAsked,         // the caller said no_store and asks for nothing older than now
  kNotKept,       // nothing of this tenant or request may be kept
  kForm,          // token ids, tools, pictures, no last turn of a user
  kSampling,      // several choices, log probabilities, or variety is wanted
  kPersonal,      // the question is about the asker
  kInstructions,  // it speaks to the model about its instructions
  kSize,
  kCount
};
const char* Name(Bypass bypass);

struct CacheRequest {
  Bypass bypass = Bypass::kNone;
  CacheQuestion question;
  std::string text;      // the last turn
  std::string category;  // asked for; empty: to be found
  bool may_find = true, may_keep = true;
};

struct CacheRules {
  float temperature_max = 0.3f;  // above it, variety is wanted
  size_t text_bytes_max = 16384;
};
CacheRequest ReadCacheRequest(const v1::GenerateRequest& request, const RunRequest& run,
                              const std::string& epoch, const CacheRules& rules);

// An answer that may be given to others: it came to its own end, and is whole.
bool MayKeep(const v1::Done& done);

}  // namespace trivium::router

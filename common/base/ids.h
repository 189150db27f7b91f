// Distinct types for the identifiers that travel between the parts, so that one is never passed for another.
// Values; safe to copy between threads.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

namespace trivium {

// An integer with a name of its own. No implicit conversion either way; ordered, hashable.
template <typename Tag, typename T>
struct StrongInt {
  T value{};
  friend auto operator<=>(const StrongInt&, const StrongInt&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const StrongInt& id) {
    return H::combine(std::move(h), id.value);
  }
};

// A physical block of a KV pool: index into its storage, 0 … blocks - 1.
using BlockId = StrongInt<struct BlockIdTag, int32_t>;
// One start of a worker process, drawn at random; a restarted worker never answers for its predecessor.
using WorkerEpoch = StrongInt<struct WorkerEpochTag, uint64_t>;
// One try of a request at a stage, counted by the router from 1.
using Attempt = StrongInt<struct AttemptTag, uint32_t>;

// A string with a name of its own.
template <typename Tag>
struct StrongString {
  std::string value;
  friend auto operator<=>(const StrongString&, const StrongString&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const StrongString& id) {
    return H::combine(std::move(h), id.value);
  }
};

using RequestId = StrongString<struct RequestIdTag>;  // unique over the cluster, drawn by the router
using WorkerId = StrongString<struct WorkerIdTag>;    // configured name of a worker
using TenantId = StrongString<struct TenantIdTag>;

}  // namespace trivium

template <typename Tag, typename T>
struct std::hash<trivium::StrongInt<Tag, T>> {
  size_t operator()(const trivium::StrongInt<Tag, T>& id) const { return std::hash<T>()(id.value); }
};
template <typename Tag>
struct std::hash<trivium::StrongString<Tag>> {
  size_t operator()(const trivium::StrongString<Tag>& id) const {
    return std::hash<std::string>()(id.value);
  }
};

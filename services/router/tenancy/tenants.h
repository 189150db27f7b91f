// Who is calling: API keys to tenants. A tenant is whose keys, KV and requests are; richer
// identities have to end in one too.
//
// Keys are held, compared and looked up as SHA-256 digests alone, so that neither memory nor the
// time of an answer says how much of a guess was right.
// Thread-safety: immutable after construction; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/base/ids.h"
#include "common/base/status.h"
#include "trivium/v1/config.pb.h"

namespace trivium::router {

struct Caller {
  TenantId tenant;
  bool is_administrator = false;  // may ask about the requests of other tenants
};

// What a call carries to say who it is: every value of the two names, as it came.
struct Credentials {
  std::vector<std::string> authorization;  // "Bearer KEY"
  std::vector<std::string> x_api_key;      // "KEY"
};

class Tenants {
 public:
  explicit Tenants(const v1::TenancyConfig& config);  // complete

  // No key: the tenant that has none. UNAUTHENTICATED where there is no such tenant, for a key that
  // is not known, and for several. Where no tenant has a key, whatever is sent counts for nothing.
  // Messages never hold what was sent.
  absl::StatusOr<Caller> Authenticate(const Credentials& credentials) const;

  // Whether callers are told apart at all.
  bool has_keys() const { return !callers_.empty(); }
  const std::vector<TenantId>& ids() const { return ids_; }  // in the configuration's order

 private:
  using Digest = std::array<uint8_t, 32>;
  struct DigestHash {
    size_t operator()(const Digest& digest) const;
  };
  static Digest DigestOf(std::string_view key);

  std::vector<TenantId> ids_;
  std::unordered_map<Digest, Caller, DigestHash> callers_;
  std::optional<Caller> without_key_;
};

}  // namespace trivium::router

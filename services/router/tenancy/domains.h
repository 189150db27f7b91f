// Which sharing domains the KV of a request lies in: what everybody may share, then what its tenant
// or its group may, by the tenant's configuration. A caller may only narrow that.
//
// Domain ids are typed ("tenant:", "group:", "public:", "picture:", "queue:"), and no name holds a
// colon, so that a tenant never gets the key of a group or a public text. All keys are derived at
// the start; they are never logged, and there is nothing that prints them. Thread-safety: immutable
// after Create; any thread.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/base/ids.h"
#include "common/base/status.h"
#include "common/kv/block_key.h"
#include "common/scheduling/fair_queue.h"
#include "services/router/tenancy/public_prefixes.h"
#include "trivium/v1/config.pb.h"

namespace trivium::router {

class Domains {
 public:
  // `config` is complete; its files are read. Errors as of PublicPrefixes::Create.
  // `public_pictures`: names and digests.
  static absl::StatusOr<Domains> Create(
      const v1::TenancyConfig& config, const Tokenize& tokenize,
      std::span<const std::pair<std::string, std::string>> public_pictures = {});

  // At most two, as kv::BlockChain takes them; none: nothing of the request is kept or reused.
  // `kv_sharing` is the request's: empty, group, private or none; INVALID_ARGUMENT naming the field
  // for anything else, and for more than the tenant's configuration allows.
  absl::StatusOr<std::vector<kv::Domain>> For(const TenantId& tenant, std::string_view kv_sharing,
                                              std::span<const int32_t> prompt) const;
  // Where the multimedia tokens of a picture are kept and found: one that is public in a domain of
  // its own, any other where what the request has for itself is; none: nowhere.
  std::optional<kv::Domain> ForPicture(const std::string& digest,
                                       std::span<const kv::Domain> of_request) const;
  // A number for that, never 0 where there is a domain.
  static uint64_t KeyOf(std::string_view digest, const std::optional<kv::Domain>& domain);
  // By what the tenant competes with others, here and at the workers, which learn no more of it:
  // the same at all routers with one master key.
  const scheduling::TenantShare& ShareOf(const TenantId& tenant) const {
    return policies_.at(tenant).share;
  }

 private:
  enum class Sharing : uint8_t { kNone, kPrivate, kGroup };  // from narrow to wide
  struct Policy {
    Sharing sharing = Sharing::kPrivate;
    std::string group;
    kv::Domain own;
    scheduling::TenantShare share;
  };
  static absl::StatusOr<Sharing> Narrowed(Sharing allowed, std::string_view kv_sharing);
  absl::Status AddTenants(const v1::TenancyConfig& config, std::string_view master);
  absl::Status AddPublic(const v1::TenancyConfig& config, std::string_view master);

  PublicPrefixes prefixes_;
  std::vector<kv::Domain> public_;  // by the prefix's place in the configuration
  std::unordered_map<std::string, kv::Domain> public_pictures_;  // by digest
  std::unordered_map<std::string, kv::Domain> groups_;
  std::unordered_map<TenantId, Policy> policies_;
};

}  // namespace trivium::router

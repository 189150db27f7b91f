#include "services/router/tenancy/domains.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "common/config/config.h"
#include "common/net/text.h"

namespace trivium::router {
namespace {

constexpr std::string_view kGroupPrefix = "group:";
constexpr size_t kMasterBytes = 32, kShownMax = 40;

// The one of the configuration, or one that ends with this process.
absl::StatusOr<std::string> Master(const v1::TenancyConfig& config) {
  if (!config.master_key_file().empty()) return config::ReadMasterKey(config);
  std::string drawn(kMasterBytes, '\0');
  const int ok = RAND_bytes(reinterpret_cast<unsigned char*>(drawn.data()), kMasterBytes);
  TRIVIUM_CHECK(ok == 1, "libcrypto draws no random bytes");
  return drawn;
}

absl::StatusOr<kv::Domain> Derive(std::string_view master, const v1::TenancyConfig& config,
                                  const std::string& id) {
  kv::Domain domain;
  ASSIGN_OR_RETURN(domain.key,
                   kv::DeriveDomainKey(master, id, static_cast<uint64_t>(config.key_epoch())));
  domain.token_end = std::numeric_limits<int32_t>::max();
  return domain;
}

}  // namespace

// A group has the quotas and floors of its members together. A member's floor lies with its group,
// and none is left for what it narrows to itself: so all floors together stay below 0.9.
absl::Status Domains::AddTenants(const v1::TenancyConfig& config, std::string_view master) {
  for (const v1::TenantConfig& tenant : config.tenants()) {
    Policy policy;
    ASSIGN_OR_RETURN(policy.own, Derive(master, config, "tenant:" + tenant.id()));
    policy.own.quota = static_cast<float>(tenant.kv_quota());
    policy.own.floor = static_cast<float>(tenant.kv_floor());
    ASSIGN_OR_RETURN(const kv::Domain queue, Derive(master, config, "queue:" + tenant.id()));
    policy.share = {kv::TagOf(queue.key).value, tenant.weight()};
    if (tenant.kv_sharing() == "none") policy.sharing = Sharing::kNone;
    if (tenant.kv_sharing().starts_with(kGroupPrefix)) {
      policy.sharing = Sharing::kGroup;
      policy.group = tenant.kv_sharing();
      const auto [group, is_new] = groups_.try_emplace(policy.group);
      if (is_new) {
        ASSIGN_OR_RETURN(group->second, Derive(master, config, policy.group));
        group->second.quota = 0;
      }
      group->second.quota = std::min(1.0f, group->second.quota + policy.own.quota);
      group->second.floor += std::exchange(policy.own.floor, 0);
    }
    policies_.emplace(TenantId{tenant.id()}, std::move(policy));
  }
  return absl::OkStatus();
}

absl::Status Domains::AddPublic(const v1::TenancyConfig& config, std::string_view master) {
  for (const v1::PublicPrefixConfig& prefix : config.public_prefixes()) {
    ASSIGN_OR_RETURN(kv::Domain domain, Derive(master, config, "public:" + prefix.id()));
    domain.pin_s = prefix.pin_s();
    public_.push_back(domain);
  }
  return absl::OkStatus();
}

absl::StatusOr<Domains> Domains::Create(
    const v1::TenancyConfig& config, const Tokenize& tokenize,
    std::span<const std::pair<std::string, std::string>> public_pictures) {
  Domains domains;
  ASSIGN_OR_RETURN(domains.prefixes_,
                   PublicPrefixes::Create(config, tokenize, kv::KeySpace().block_tokens));
  ASSIGN_OR_RETURN(std::string master, Master(config));
  absl::Status status = domains.AddTenants(config, master);
  if (status.ok()) status = domains.AddPublic(config, master);
  for (const auto& [id, digest] : public_pictures) {
    const auto domain = Derive(master, config, "picture:" + id);
    if (status.ok()) status = domain.status();
    if (domain.ok()) domains.public_pictures_.emplace(digest, *domain);
  }
  OPENSSL_cleanse(master.data(), master.size());
  RETURN_IF_ERROR(status);
  return domains;
}

absl::StatusOr<Domains::Sharing> Domains::Narrowed(Sharing allowed, std::string_view kv_sharing) {
  constexpr const char* kNames[] = {"none", "private", "group"};
  if (kv_sharing.empty()) return allowed;
  const auto name = std::ranges::find(kNames, kv_sharing);
  if (name == std::end(kNames)) {
    return InvalidArgument("kv_sharing: \"{}\" is not known; allowed: group, private, none",
                           net::Escape(kv_sharing, kShownMax));
  }
  const auto wanted = static_cast<Sharing>(name - kNames);
  if (wanted <= allowed) return wanted;
  return InvalidArgument("kv_sharing: is {}, which is wider than the tenant's, {}", kv_sharing,
                         kNames[static_cast<size_t>(allowed)]);
}

absl::StatusOr<std::vector<kv::Domain>> Domains::For(const TenantId& tenant,
                                                     std::string_view kv_sharing,
                                                     std::span<const int32_t> prompt) const {
  const Policy& policy = policies_.at(tenant);
  ASSIGN_OR_RETURN(const Sharing sharing, Narrowed(policy.sharing, kv_sharing));
  std::vector<kv::Domain> domains;
  if (sharing == Sharing::kNone) return domains;
  const PublicPrefixes::Match match = prefixes_.Longest(prompt);
  if (match.tokens > 0) {
    domains.push_back(public_[static_cast<size_t>(match.prefix)]);
    domains.back().token_end = match.tokens;
  }
  domains.push_back(sharing == Sharing::kGroup ? groups_.at(policy.group) : policy.own);
  return domains;
}

std::optional<kv::Domain> Domains::ForPicture(const std::string& digest,
                                              std::span<const kv::Domain> of_request) const {
  const auto found = public_pictures_.find(digest);
  if (found != public_pictures_.end()) return found->second;
  if (of_request.empty()) return std::nullopt;
  return of_request.back();
}

uint64_t Domains::KeyOf(std::string_view digest, const std::optional<kv::Domain>& domain) {
  if (!domain.has_value()) return 0;
  uint64_t key = 0;
  std::memcpy(&key, digest.data(), std::min(sizeof(key), digest.size()));
  return std::max<uint64_t>(1, key ^ kv::TagOf(domain->key).value);
}

}  // namespace trivium::router

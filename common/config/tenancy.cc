// Tenants and public prefixes: what goes beyond one field, and the files that they name.
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <set>

#include "common/config/config.h"
#include "common/config/fields.h"
#include "common/config/yaml_tree.h"
#include "common/net/text.h"

namespace trivium::config {
namespace {

constexpr int kTenantsMax = 4096, kPrefixesMax = 256;
constexpr double kFloorsMax = 0.9, kRounding = 1e-9;
constexpr size_t kKeyBytesMin = 32, kKeyBytesMax = 4096, kPathShown = 300;

// INVALID_ARGUMENT for an id that is empty or was `seen`.
absl::Status CheckId(const std::string& id, const std::string& place, std::set<std::string>* seen) {
  if (id.empty()) return InvalidArgument("{}.id: not set", place);
  if (seen->insert(id).second) return absl::OkStatus();
  return InvalidArgument("{}.id: {} is listed twice", place, id);
}

// No two keys of all tenants are the same.
absl::Status CheckKeys(const v1::TenantConfig& tenant, const std::string& place,
                       std::map<std::string, std::string>* place_of_key) {
  for (int i = 0; i < tenant.api_key_sha256_size(); ++i) {
    std::string digest = tenant.api_key_sha256(i);
    const std::string here = fmt::format("{}.api_key_sha256[{}]", place, i);
    if (digest.empty()) return InvalidArgument("{}: not set", here);
    for (char& digit : digest) digit = static_cast<char>(std::tolower(digit));
    const auto [first, fresh] = place_of_key->emplace(digest, here);
    if (!fresh) return InvalidArgument("{}: is {} too", here, first->second);
  }
  return absl::OkStatus();
}

absl::Status CheckTenants(const v1::TenancyConfig& config) {
  if (config.tenants_size() > kTenantsMax) {
    return InvalidArgument("tenancy.tenants: {}; allowed: 0 to {}", config.tenants_size(),
                           kTenantsMax);
  }
  std::set<std::string> ids;
  std::map<std::string, std::string> place_of_key;
  std::string keyless;
  double floors = 0;
  for (int i = 0; i < config.tenants_size(); ++i) {
    const v1::TenantConfig& tenant = config.tenants(i);
    const std::string place = fmt::format("tenancy.tenants[{}]", i);
    RETURN_IF_ERROR(CheckId(tenant.id(), place, &ids));
    RETURN_IF_ERROR(CheckKeys(tenant, place, &place_of_key));
    if (tenant.api_key_sha256().empty()) {
      if (tenant.administrator()) {
        return InvalidArgument("{}.administrator: needs an api_key_sha256", place);
      }
      if (!keyless.empty()) {
        return InvalidArgument("{}.api_key_sha256: none, as {} has none; at most one may lack it",
                               place, keyless);
      }
      keyless = tenant.id();
    }
    floors += tenant.kv_floor();
  }
  if (floors <= kFloorsMax + kRounding) return absl::OkStatus();
  return InvalidArgument("tenancy.tenants: kv_floor of all is {:.3g}; allowed: at most {}", floors,
                         kFloorsMax);
}

absl::Status CheckPrefixes(const v1::TenancyConfig& config) {
  if (config.public_prefixes_size() > kPrefixesMax) {
    return InvalidArgument("tenancy.public_prefixes: {}; allowed: 0 to {}",
                           config.public_prefixes_size(), kPrefixesMax);
  }
  std::set<std::string> ids;
  for (int i = 0; i < config.public_prefixes_size(); ++i) {
    const v1::PublicPrefixConfig& prefix = config.public_prefixes(i);
    const std::string place = fmt::format("tenancy.public_prefixes[{}]", i);
    RETURN_IF_ERROR(CheckId(prefix.id(), place, &ids));
    if (prefix.text().empty() == prefix.file().empty()) {
      return InvalidArgument("{}: needs either text or file", place);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Complete(v1::TenancyConfig* config) {
  if (config->tenants().empty()) config->add_tenants()->set_id("default");
  RETURN_IF_ERROR(CompleteFields(config, "tenancy."));
  RETURN_IF_ERROR(CheckTenants(*config));
  return CheckPrefixes(*config);
}

absl::StatusOr<std::string> ReadKey(std::string_view field, const std::string& path) {
  const std::string shown = net::Escape(path, kPathShown);
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) {
    return InvalidArgument("{}: {}: {}", field, shown, std::strerror(errno));
  }
  if ((info.st_mode & (S_IROTH | S_IWOTH)) != 0) {
    return InvalidArgument("{}: {} is open to everybody; chmod o-rw it", field, shown);
  }
  ASSIGN_OR_RETURN(std::string key, ReadSmallFile(path));
  if (key.size() >= kKeyBytesMin && key.size() <= kKeyBytesMax) return key;
  return InvalidArgument(
      "{}: {} has {} bytes; allowed: {} to {}, for example from `openssl rand -hex 32`", field,
      shown, key.size(), kKeyBytesMin, kKeyBytesMax);
}

absl::StatusOr<std::string> ReadMasterKey(const v1::TenancyConfig& config) {
  return ReadKey("tenancy.master_key_file", config.master_key_file());
}

absl::StatusOr<std::string> ReadDiskKey(const v1::KvTiersConfig& config) {
  return ReadKey("engine.kv_tiers.disk_key_file", config.disk_key_file());
}

absl::StatusOr<std::string> ReadPublicText(const v1::PublicPrefixConfig& prefix) {
  if (prefix.file().empty()) return prefix.text();
  ASSIGN_OR_RETURN(std::string text, ReadSmallFile(prefix.file()));
  if (!text.empty() && net::IsUtf8(text)) return text;
  return InvalidArgument("{}: {}", net::Escape(prefix.file(), kPathShown),
                         text.empty() ? "is empty" : "not valid UTF-8");
}

absl::Status CheckFiles(const v1::TenancyConfig& config) {
  if (!config.master_key_file().empty()) {
    RETURN_IF_ERROR(ReadMasterKey(config).status());
  }
  for (const v1::PublicPrefixConfig& prefix : config.public_prefixes()) {
    RETURN_IF_ERROR(ReadPublicText(prefix).status());
  }
  return absl::OkStatus();
}

}  // namespace trivium::config

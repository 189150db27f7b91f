#include "services/router/tenancy/tenants.h"

#include <openssl/sha.h>

#include <cctype>
#include <cstring>
#include <string_view>

namespace trivium::router {
namespace {

absl::Status Refusal(const char* why) { return absl::UnauthenticatedError(why); }

// The KEY of "Bearer KEY"; empty: it is none.
std::string_view BearerKey(std::string_view value) {
  constexpr std::string_view kScheme = "bearer ";
  if (value.size() < kScheme.size()) return {};
  for (size_t i = 0; i < kScheme.size(); ++i) {
    if (std::tolower(static_cast<unsigned char>(value[i])) != kScheme[i]) return {};
  }
  value.remove_prefix(kScheme.size());
  return value.substr(std::min(value.size(), value.find_first_not_of(' ')));
}

uint8_t HexValue(char digit) {
  return static_cast<uint8_t>(digit <= '9' ? digit - '0' : (digit | 0x20) - 'a' + 10);
}

}  // namespace

size_t Tenants::DigestHash::operator()(const Digest& digest) const {
  size_t hash = 0;
  std::memcpy(&hash, digest.data(), sizeof(hash));
  return hash;
}

Tenants::Digest Tenants::DigestOf(std::string_view key) {
  Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), digest.data());
  return digest;
}

Tenants::Tenants(const v1::TenancyConfig& config) {
  for (const v1::TenantConfig& tenant : config.tenants()) {
    const Caller caller{{tenant.id()}, tenant.administrator()};
    ids_.push_back(caller.tenant);
    if (tenant.api_key_sha256().empty()) without_key_ = caller;
    for (const std::string& hex : tenant.api_key_sha256()) {
      Digest digest;
      TRIVIUM_CHECK(hex.size() == 2 * digest.size(), "tenant {} has no checked key", tenant.id());
      for (size_t i = 0; i < digest.size(); ++i) {
        digest[i] = static_cast<uint8_t>(HexValue(hex[2 * i]) << 4 | HexValue(hex[2 * i + 1]));
      }
      callers_.emplace(digest, caller);
    }
  }
}

absl::StatusOr<Caller> Tenants::Authenticate(const Credentials& credentials) const {
  const size_t count = credentials.authorization.size() + credentials.x_api_key.size();
  if (!has_keys() || count == 0) {
    if (without_key_.has_value()) return *without_key_;
    return Refusal("an API key is needed: authorization: Bearer KEY, or x-api-key: KEY");
  }
  if (count > 1) return Refusal("several API keys came with one call");
  std::string_view key;
  if (credentials.authorization.empty()) {
    key = credentials.x_api_key[0];
  } else {
    key = BearerKey(credentials.authorization[0]);
    if (key.empty()) return Refusal("authorization must be: Bearer KEY");
  }
  const auto found = callers_.find(DigestOf(key));
  if (found == callers_.end()) return Refusal("the API key is not known");
  return found->second;
}

}  // namespace trivium::router

#include <algorithm>

#include "common/net/server.h"

namespace trivium::net {
namespace {

constexpr size_t kRequestIdBytesMax = 64;

// Takes as long for a wrong secret as for the right one.
bool SameSecret(std::string_view given, std::string_view secret) {
  volatile unsigned char difference = given.size() == secret.size() ? 0 : 1;
  for (size_t i = 0; i < secret.size(); ++i) {
    const char byte = given.empty() ? '\0' : given[i % given.size()];
    difference = difference | static_cast<unsigned char>(byte ^ secret[i]);
  }
  return difference == 0;
}

}  // namespace

grpc::Status CheckClusterToken(const grpc::CallbackServerContext& context, std::string_view token) {
  if (token.empty()) return grpc::Status::OK;
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find(kClusterTokenKey);
  if (found == metadata.end()) {
    return grpc::Status(grpc::StatusCode::UNAUTHENTICATED, "the call carries no cluster token");
  }
  const std::string_view given(found->second.data(), found->second.size());
  if (metadata.count(kClusterTokenKey) == 1 && SameSecret(given, token)) return grpc::Status::OK;
  return grpc::Status(grpc::StatusCode::UNAUTHENTICATED, "wrong cluster token");
}

std::string RequestIdOf(const grpc::CallbackServerContext& context) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find(kRequestIdKey);
  if (found == metadata.end() || found->second.size() > kRequestIdBytesMax) return "";
  const std::string id(found->second.data(), found->second.size());
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  return std::all_of(id.begin(), id.end(), allowed) ? id : "";
}

}  // namespace trivium::net

#include "common/net/server.h"

namespace trivium::net {
namespace {

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

}  // namespace trivium::net

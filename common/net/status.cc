#include <chrono>

#include "common/net/server.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace trivium::net {
namespace {

// gRPC's default limit for all trailers is 8 KiB, beyond which the caller sees another error
// altogether.
constexpr size_t kMessageBytesOnWire = 4096;
constexpr auto kRetryMax = std::chrono::hours(24);

// Bytes of a character in the percent-encoding of grpc-message.
size_t WireBytes(std::string_view character) {
  const bool plain =
      character.size() == 1 && character[0] >= 0x20 && character[0] < 0x7f && character[0] != '%';
  return plain ? 1 : 3 * character.size();
}

std::string FitMessage(std::string_view text) {
  constexpr std::string_view kReplacement = "\xef\xbf\xbd";
  std::string out;
  size_t on_wire = 0;
  while (!text.empty()) {
    const size_t bytes = Utf8CharBytes(text);
    const std::string_view next = bytes == 0 ? kReplacement : text.substr(0, bytes);
    on_wire += WireBytes(next);
    if (on_wire > kMessageBytesOnWire) break;
    out += next;
    text.remove_prefix(bytes == 0 ? 1 : bytes);
  }
  return out;
}

// A code that gRPC does not know (none of ours) is UNKNOWN at both ends.
template <typename Code>
Code MapCode(int code, Code unknown) {
  return code >= 0 && code <= 16 ? static_cast<Code>(code) : unknown;
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(MapCode(static_cast<int>(status.code()), grpc::StatusCode::UNKNOWN),
                      FitMessage(FromAbsl(status.message())));
}

grpc::Status ToGrpc(const absl::Status& status, Duration retry_after) {
  const grpc::Status plain = ToGrpc(status);
  if (plain.ok()) return plain;
  const auto delay = std::clamp<Duration>(retry_after, Duration(0), kRetryMax);
  google::rpc::RetryInfo hint;
  hint.mutable_retry_delay()->set_seconds(delay.count() / 1'000'000'000);
  hint.mutable_retry_delay()->set_nanos(static_cast<int32_t>(delay.count() % 1'000'000'000));
  google::rpc::Status details;
  details.set_code(plain.error_code());
  // The text travels once, in grpc-message: twice would not fit.
  details.add_details()->PackFrom(hint);
  return grpc::Status(plain.error_code(), plain.error_message(), details.SerializeAsString());
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(MapCode(static_cast<int>(status.error_code()), absl::StatusCode::kUnknown),
                      status.error_message());
}

std::optional<Duration> RetryAfter(const grpc::Status& status) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return std::nullopt;
  for (const google::protobuf::Any& detail : details.details()) {
    google::rpc::RetryInfo hint;
    if (!detail.Is<google::rpc::RetryInfo>() || !detail.UnpackTo(&hint)) continue;
    const int64_t seconds = hint.retry_delay().seconds();
    if (seconds < 0 || seconds > std::chrono::seconds(kRetryMax).count()) return std::nullopt;
    return std::chrono::seconds(seconds) + Duration(hint.retry_delay().nanos());
  }
  return std::nullopt;
}

}  // namespace trivium::net

#include <gtest/gtest.h>

#include <random>

#include "common/net/server.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace trivium::net {
namespace {

TEST(StatusTest, CodesMapOneToOneBothWays) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    const grpc::Status sent = ToGrpc(status);
    EXPECT_EQ(static_cast<int>(sent.error_code()), code);
    EXPECT_EQ(FromGrpc(sent), status);
  }
  EXPECT_EQ(FromGrpc(grpc::Status(static_cast<grpc::StatusCode>(99), "x")).code(),
            absl::StatusCode::kUnknown);
  EXPECT_EQ(FromGrpc(grpc::Status(static_cast<grpc::StatusCode>(-1), "x")).code(),
            absl::StatusCode::kUnknown);
}

size_t WireBytes(const std::string& text) {
  size_t bytes = 0;
  for (const char c : text) bytes += c >= 0x20 && c < 0x7f && c != '%' ? 1 : 3;
  return bytes;
}

TEST(StatusTest, MessagesAreCutAndValid) {
  EXPECT_EQ(ToGrpc(absl::InternalError(std::string(5000, 'x'))).error_message(),
            std::string(4096, 'x'));
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    std::string text(random() % 6000, '\0');
    for (char& c : text) c = static_cast<char>(round % 2 ? random() : 0x20 + random() % 0x60);
    const std::string sent = ToGrpc(absl::InternalError(text)).error_message();
    ASSERT_TRUE(IsUtf8(sent));
    ASSERT_LE(WireBytes(sent), 4096u);
  }
  EXPECT_EQ(ToGrpc(absl::InternalError("a\xff"
                                       "b"))
                .error_message(),
            "a\xef\xbf\xbd"
            "b");
}

TEST(StatusTest, RetryHintRoundTrips) {
  const absl::Status full = absl::ResourceExhaustedError("queue is full");
  const grpc::Status sent = ToGrpc(full, std::chrono::milliseconds(1250));
  EXPECT_EQ(FromGrpc(sent), full);
  EXPECT_EQ(RetryAfter(sent), Duration(std::chrono::milliseconds(1250)));
  EXPECT_EQ(RetryAfter(ToGrpc(full)), std::nullopt);
  EXPECT_EQ(RetryAfter(ToGrpc(full, Duration(-5))), Duration(0));
  EXPECT_TRUE(ToGrpc(absl::OkStatus(), Duration(1)).ok());
}

// The bytes that other gRPC libraries read: google.rpc.Status holding an Any of RetryInfo.
TEST(StatusTest, RetryHintHasTheStandardForm) {
  const grpc::Status sent =
      ToGrpc(absl::ResourceExhaustedError("full"), std::chrono::nanoseconds(1'500'000'000));
  const std::string any = std::string("\x0a\x28", 2) + "type.googleapis.com/google.rpc.RetryInfo" +
                          std::string("\x12\x0a\x0a\x08\x08\x01\x10\x80\xca\xb5\xee\x01", 12);
  EXPECT_EQ(sent.error_details(),
            std::string("\x08\x08\x1a", 3) + static_cast<char>(any.size()) + any);
}

TEST(StatusTest, HostileDetailsGiveNoHint) {
  google::rpc::RetryInfo hint;
  google::rpc::Status details;
  details.add_details()->PackFrom(hint);
  EXPECT_EQ(RetryAfter(grpc::Status(grpc::UNKNOWN, "", details.SerializeAsString())), Duration(0));
  for (const int64_t seconds : {int64_t{-1}, INT64_MAX, INT64_MIN, int64_t{86401}}) {
    hint.mutable_retry_delay()->set_seconds(seconds);
    details.mutable_details(0)->PackFrom(hint);
    EXPECT_EQ(RetryAfter(grpc::Status(grpc::UNKNOWN, "", details.SerializeAsString())),
              std::nullopt);
  }
  EXPECT_EQ(RetryAfter(grpc::Status(grpc::UNKNOWN, "", "\xff\xff")), std::nullopt);
}

}  // namespace
}  // namespace trivium::net

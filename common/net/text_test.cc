#include "common/net/text.h"

#include <gtest/gtest.h>

#include "common/net/address.h"

namespace trivium::net {
namespace {

TEST(TextTest, Utf8Table) {
  const std::pair<std::string, bool> table[] = {
      {"", true},
      {"plain", true},
      {std::string("a\0b", 3), true},
      {"\x7f", true},
      {"\x80", false},
      {"\xbf", false},
      {"\xc0\x80", false},  // overlong NUL
      {"\xc1\xbf", false},
      {"\xc2\x80", true},
      {"\xc2", false},
      {"\xc2\x41", false},
      {"\xdf\xbf", true},
      {"\xe0\x80\x80", false},  // overlong
      {"\xe0\x9f\xbf", false},
      {"\xe0\xa0\x80", true},
      {"\xe2\x82", false},
      {"\xe2\x82\xac", true},
      {"\xed\x9f\xbf", true},
      {"\xed\xa0\x80", false},  // first surrogate
      {"\xed\xbf\xbf", false},
      {"\xee\x80\x80", true},
      {"\xef\xbf\xbf", true},
      {"\xf0\x8f\xbf\xbf", false},  // overlong
      {"\xf0\x90\x80\x80", true},
      {"\xf0\x9f\x98", false},
      {"\xf4\x8f\xbf\xbf", true},
      {"\xf4\x90\x80\x80", false},  // above U+10FFFF
      {"\xf5\x80\x80\x80", false},
      {"\xff", false},
      {"good\xf0\x9f\x98\x80"
       "tail",
       true},
      {"good\xf0\x9f\x98\x80\xf0", false},
  };
  for (const auto& [text, valid] : table) EXPECT_EQ(IsUtf8(text), valid) << Escape(text, 100);
}

// The decoder agrees with a definition by enumeration: encode every code point and compare.
TEST(TextTest, EveryCodePointAndNoSurrogate) {
  for (uint32_t c = 0; c <= 0x110010; c += c < 0x11000 || c > 0x10fff0 ? 1 : 37) {
    std::string text;
    if (c < 0x80) {
      text = {static_cast<char>(c)};
    } else if (c < 0x800) {
      text = {static_cast<char>(0xc0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
    } else if (c < 0x10000) {
      text = {static_cast<char>(0xe0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 63)),
              static_cast<char>(0x80 | (c & 63))};
    } else {
      text = {static_cast<char>(0xf0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 63)),
              static_cast<char>(0x80 | (c >> 6 & 63)), static_cast<char>(0x80 | (c & 63))};
    }
    const bool scalar = c <= 0x10ffff && (c < 0xd800 || c > 0xdfff);
    ASSERT_EQ(IsUtf8(text), scalar) << std::hex << c;
    if (scalar) ASSERT_EQ(Utf8CharBytes(text), text.size());
  }
}

TEST(TextTest, EscapeLeavesOneSafeLine) {
  EXPECT_EQ(Escape("a b", 100), "a b");
  EXPECT_EQ(Escape("a\nb\t\"c\\\r", 100), "a\\nb\\t\\\"c\\\\\\r");
  EXPECT_EQ(Escape("\x1b[2J\x7f", 100), "\\x1b[2J\\x7f");
  EXPECT_EQ(Escape("\xc2\x9b"
                   "2J",
                   100),
            "\\xc2\\x9b2J");
  EXPECT_EQ(Escape("caf\xc3\xa9 \xff", 100), "caf\xc3\xa9 \\xff");
  EXPECT_EQ(Escape("\xe2\x82\xac\xe2\x82\xac", 5), "\xe2\x82\xac...");
  EXPECT_EQ(Escape("abcdef", 3), "abc...");
}

TEST(AddressTest, Forms) {
  EXPECT_EQ(ParseAddress("127.0.0.1:7400")->port, 7400);
  EXPECT_EQ(ParseAddress("[::1]:0")->host, "::1");
  EXPECT_EQ(ParseAddress("worker-0.workers:65535")->host, "worker-0.workers");
  EXPECT_EQ(ParseAddress("unix:/tmp/s")->host, "/tmp/s");
  for (const std::string bad :
       {"", ":", "7400", "host", "host:", ":7400", "host:65536", "host:-1", "host:+1", "host:1x",
        "::1:7400", "[::1]", "[]:1", "[127.0.0.1]:1", "a b:1", "a,b:1", "unix:", "http://a:1"}) {
    const auto address = ParseAddress(bad);
    EXPECT_EQ(address.status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  EXPECT_FALSE(ParseAddress("unix:" + std::string(108, 'x')).ok());
}

TEST(AddressTest, Loopback) {
  for (const char* near : {"127.0.0.1:1", "127.255.0.9:1", "[::1]:1", "localhost:1", "unix:/x"}) {
    EXPECT_TRUE(ParseAddress(near)->IsLoopback()) << near;
  }
  for (const char* far : {"0.0.0.0:1", "[::]:1", "128.0.0.1:1", "10.0.0.1:1", "example:1",
                          "127.0.0.1.example:1", "localhost.example:1", "[fe80::1]:1"}) {
    EXPECT_FALSE(ParseAddress(far)->IsLoopback()) << far;
  }
}

}  // namespace
}  // namespace trivium::net

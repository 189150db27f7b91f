#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <functional>

#include "common/config/config.h"

namespace trivium::config {
namespace {

std::string Digest(char digit) { return std::string(64, digit); }

v1::TenancyConfig Parsed(const std::string& text, absl::Status* status) {
  v1::TenancyConfig config;
  *status = ParseYamlInto(text, "t.yaml", &config);
  if (status->ok()) *status = Complete(&config);
  return config;
}
std::string ErrorOf(const std::string& text) {
  absl::Status status;
  Parsed(text, &status);
  return Message(status);
}

std::string TempFile(const std::string& name, const std::string& content, mode_t mode = 0600) {
  const std::string path = testing::TempDir() + "tenancy_test_" + name;
  std::ofstream(path, std::ios::binary) << content;
  EXPECT_EQ(chmod(path.c_str(), mode), 0);
  return path;
}

TEST(TenancyConfigTest, AWholeOneGoesThereAndBack) {
  absl::Status status;
  const v1::TenancyConfig config =
      Parsed("key_epoch: 3\ntenants:\n  - id: acme\n    api_key_sha256:\n      - " + Digest('a') +
                 "\n      - \"" + Digest('1') +
                 "\"\n    kv_sharing: group:friends\n    kv_floor: 0.25\n    administrator: true\n"
                 "  - {id: public-demo, kv_sharing: none}\n"
                 "public_prefixes:\n  - {id: manual, file: m.txt, pin_s: 0}\n"
                 "  - {id: system, text: \"You are: helpful.\", chat_role: system}\n",
             &status);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(config.tenants(0).api_key_sha256(1), Digest('1'));
  EXPECT_EQ(config.tenants(0).kv_sharing(), "group:friends");
  EXPECT_EQ(config.tenants(0).weight(), 1);
  EXPECT_TRUE(config.tenants(0).administrator());
  EXPECT_EQ(config.tenants(1).kv_sharing(), "none");
  EXPECT_EQ(config.public_prefixes(0).pin_s(), 0);
  EXPECT_EQ(config.public_prefixes(1).pin_s(), 600);
  v1::TenancyConfig again;
  ASSERT_TRUE(ParseYamlInto(ToYaml(config), "again", &again).ok()) << ToYaml(config);
  EXPECT_EQ(again.SerializeAsString(), config.SerializeAsString());
}

TEST(TenancyConfigTest, ErrorsOfOneFieldNameTheLine) {
  const std::pair<std::string, std::string> table[] = {
      {"tenants:\n  - id: a b\n",
       "t.yaml:2: tenants[0].id: \"a b\" is no name; allowed: at most 64 of A-Z a-z 0-9 . _ -"},
      {"tenants:\n  - id: a\n    api_key_sha256:\n      - sk-secret\n",
       "t.yaml:4: tenants[0].api_key_sha256[0]: is no SHA-256; allowed: 64 hex digits, as "
       "`sha256sum` prints them"},
      {"tenants:\n  - id: a\n    api_key_sha256: [" + Digest('g') + "]\n",
       "t.yaml:3: tenants[0].api_key_sha256[0]: is no SHA-256; allowed: 64 hex digits, as "
       "`sha256sum` prints them"},
      {"tenants:\n  - id: a\n    api_key_sha256: " + Digest('a') + "\n",
       "t.yaml:3: tenants[0].api_key_sha256: must be a list: one \"- …\" an item"},
      {"tenants:\n  - id: a\n    api_key_sha256: [{a: b}]\n",
       "t.yaml:3: tenants[0].api_key_sha256[0]: must be a single value"},
      {"tenants:\n  - id: a\n    kv_sharing: \"group:\"\n",
       "t.yaml:3: tenants[0].kv_sharing: \"group:\" is not known; allowed: private, none, "
       "group:NAME with a NAME of at most 64 of A-Z a-z 0-9 . _ -"},
      {"tenants:\n  - id: a\n    kv_quota: 0\n",
       "t.yaml:3: tenants[0].kv_quota: 0 is out of range; allowed: 0.001 to 1"},
      {"tenants:\n  - id: a\n    kv_floor: 0.95\n",
       "t.yaml:3: tenants[0].kv_floor: 0.95 is out of range; allowed: 0 to 0.9"},
      {"key_epoch: -1\n", "t.yaml:1: key_epoch: -1 is out of range; allowed: 0 to 2147483647"},
      {"public_prefixes:\n  - id: a\n    pin_s: 86401\n",
       "t.yaml:3: public_prefixes[0].pin_s: 86401 is out of range; allowed: 0 to 86400"},
  };
  for (const auto& [text, error] : table) EXPECT_EQ(ErrorOf(text), error) << text;
}

TEST(TenancyConfigTest, WhatDoesNotFitTogetherIsRefused) {
  const std::string key = "api_key_sha256: [" + Digest('a') + "]";
  const std::pair<std::string, std::string> table[] = {
      {"tenants: [{kv_floor: 0}]", "tenancy.tenants[0].id: not set"},
      {"tenants: [{id: a}, {id: a, " + key + "}]", "tenancy.tenants[1].id: a is listed twice"},
      {"tenants: [{id: a}, {id: b}]",
       "tenancy.tenants[1].api_key_sha256: none, as a has none; at most one may lack it"},
      {"tenants: [{id: a, " + key + "}, {id: b, api_key_sha256: [" + Digest('A') + "]}]",
       "tenancy.tenants[1].api_key_sha256[0]: is tenancy.tenants[0].api_key_sha256[0] too"},
      {"tenants: [{id: a, api_key_sha256: [\"\"]}]",
       "tenancy.tenants[0].api_key_sha256[0]: not set"},
      {"tenants: [{id: a, administrator: true}]",
       "tenancy.tenants[0].administrator: needs an api_key_sha256"},
      {"tenants: [{id: a, kv_floor: 0.5}, {id: b, kv_floor: 0.41, " + key + "}]",
       "tenancy.tenants: kv_floor of all is 0.91; allowed: at most 0.9"},
      {"tenants: [{id: a, kv_floor: 0.3}, {id: b, kv_floor: 0.6, " + key + "}]", ""},
      {"public_prefixes: [{text: a}]", "tenancy.public_prefixes[0].id: not set"},
      {"public_prefixes: [{id: a}]", "tenancy.public_prefixes[0]: needs either text or file"},
      {"public_prefixes: [{id: a, text: x, file: y}]",
       "tenancy.public_prefixes[0]: needs either text or file"},
      {"public_prefixes: [{id: a, text: x}, {id: a, text: y}]",
       "tenancy.public_prefixes[1].id: a is listed twice"},
  };
  for (const auto& [text, error] : table) EXPECT_EQ(ErrorOf(text), error) << text;
  v1::TenancyConfig many;
  for (int i = 0; i < 4097; ++i) many.add_tenants()->set_id(fmt::format("t{}", i));
  EXPECT_EQ(Message(Complete(&many)), "tenancy.tenants: 4097; allowed: 0 to 4096");
  many.Clear();
  for (int i = 0; i < 257; ++i) many.add_public_prefixes()->set_id(fmt::format("p{}", i));
  EXPECT_EQ(Message(Complete(&many)), "tenancy.public_prefixes: 257; allowed: 0 to 256");
}

absl::StatusOr<std::string> MasterKey(const std::string& path) {
  v1::TenancyConfig config;
  config.set_master_key_file(path);
  return ReadMasterKey(config);
}

TEST(TenancyConfigTest, TheMasterKeyIsLongEnoughAndNotForEverybody) {
  const std::string bytes = std::string(31, '\n') + '\0';
  EXPECT_EQ(*MasterKey(TempFile("good", bytes)), bytes) << "no byte of it is cut";
  EXPECT_TRUE(MasterKey(TempFile("group", bytes, 0640)).ok());
  const std::string open = TempFile("open", bytes, 0644);
  EXPECT_EQ(Message(MasterKey(open).status()),
            "tenancy.master_key_file: " + open + " is open to everybody; chmod o-rw it");
  const std::string small = TempFile("short", "0123456789abcdef0123456789abcde");
  const std::string error = Message(MasterKey(small).status());
  EXPECT_EQ(error, "tenancy.master_key_file: " + small +
                       " has 31 bytes; allowed: 32 to 4096, for example from `openssl rand -hex "
                       "32`");
  EXPECT_EQ(error.find("0123456789"), std::string::npos) << "the key is secret";
  EXPECT_FALSE(MasterKey(TempFile("long", std::string(4097, 'x'))).ok());
  EXPECT_EQ(Message(MasterKey("/nowhere").status()),
            "tenancy.master_key_file: /nowhere: No such file or directory");
}

TEST(TenancyConfigTest, FilesAreChecked) {
  v1::TenancyConfig config;
  v1::PublicPrefixConfig* prefix = config.add_public_prefixes();
  EXPECT_TRUE(CheckFiles(config).ok());
  prefix->set_file(TempFile("text", "a manual\n"));
  EXPECT_EQ(*ReadPublicText(*prefix), "a manual\n");
  EXPECT_TRUE(CheckFiles(config).ok());
  for (const char* bad : {"", "\xff"}) {
    prefix->set_file(TempFile("bad", bad));
    EXPECT_FALSE(CheckFiles(config).ok());
  }
  prefix->set_file("/nowhere");
  EXPECT_FALSE(CheckFiles(config).ok());
  config.clear_public_prefixes();
  config.set_master_key_file("/nowhere");
  EXPECT_FALSE(CheckFiles(config).ok());
}

}  // namespace
}  // namespace trivium::config

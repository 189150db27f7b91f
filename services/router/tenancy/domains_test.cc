#include "services/router/tenancy/domains.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <climits>
#include <fstream>
#include <set>

#include "services/router/tenancy/tenancy_fixture.h"

namespace trivium::router {
namespace {

constexpr char kPolicy[] =
    "tenants:\n"
    "  - {id: a, kv_quota: 0.5, kv_floor: 0.25}\n"
    "  - {id: b, api_key_sha256: [BBBB], weight: 2.5}\n"
    "  - {id: c, api_key_sha256: [CCCC], kv_sharing: \"group:g\", kv_quota: 0.5, kv_floor: 0.25}\n"
    "  - {id: d, api_key_sha256: [DDDD], kv_sharing: \"group:g\", kv_quota: 0.75, kv_floor: "
    "0.125}\n"
    "  - {id: e, api_key_sha256: [EEEE], kv_sharing: none}\n"
    // Named like the others' kinds and ids.
    "  - {id: g, api_key_sha256: [FFFF], kv_sharing: \"group:a\"}\n"
    "public_prefixes:\n"
    "  - {id: a, text: \"!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!\", pin_s: 7}\n";

std::string Policy(const std::string& more = "") {
  std::string text = more + kPolicy;
  for (const char digit : {'B', 'C', 'D', 'E', 'F'}) {
    text.replace(text.find(std::string(4, digit)), 4, std::string(64, digit));
  }
  return text;
}

using Tags = std::vector<kv::DomainTag>;

struct DomainsTest : testing::Test {
  absl::StatusOr<std::vector<kv::Domain>> For(const std::string& tenant,
                                              const std::string& kv_sharing = "",
                                              const std::string& prompt = "private") {
    return router.domains.For({tenant}, kv_sharing, router.TextTokens(prompt));
  }
  kv::DomainTag LastTag(const std::string& tenant, const std::string& kv_sharing = "") {
    return kv::TagOf(For(tenant, kv_sharing)->back().key);
  }
  TenancyFixture router{Policy()};
};

TEST_F(DomainsTest, NoTwoOfTenantsGroupsAndPublicTextsAreTheSame) {
  std::set<kv::DomainTag> tags;
  for (const char* tenant : {"a", "b", "c", "d", "g"}) tags.insert(LastTag(tenant, "private"));
  EXPECT_EQ(tags.size(), 5u);
  tags.insert(LastTag("c"));                                                // group g
  tags.insert(LastTag("g"));                                                // group a
  tags.insert(kv::TagOf(For("a", "", std::string(40, '!'))->front().key));  // public text a
  EXPECT_EQ(tags.size(), 8u);
}

TEST_F(DomainsTest, GroupsShareAndOthersDoNot) {
  EXPECT_EQ(LastTag("c"), LastTag("d"));
  EXPECT_EQ(LastTag("c"), LastTag("c", "group"));
  EXPECT_NE(LastTag("c"), LastTag("c", "private"));
  EXPECT_EQ(LastTag("a"), LastTag("a", "private"));
  EXPECT_NE(LastTag("a"), LastTag("b"));
  EXPECT_TRUE(For("e")->empty());
  EXPECT_TRUE(For("e", "none")->empty());
  EXPECT_TRUE(For("a", "none", std::string(40, '!'))->empty()) << "not even what is public";
}

TEST_F(DomainsTest, ACallerMayOnlyNarrow) {
  EXPECT_EQ(For("a", "group").status(),
            absl::InvalidArgumentError(
                "kv_sharing: is group, which is wider than the tenant's, private"));
  EXPECT_EQ(
      For("e", "private").status(),
      absl::InvalidArgumentError("kv_sharing: is private, which is wider than the tenant's, none"));
  for (const char* unknown : {"group:g", "public", "Private", "tenant:b", " "}) {
    const absl::Status status = For("c", unknown).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(Message(status), fmt::format("kv_sharing: \"{}\" is not known; allowed: group, "
                                           "private, none",
                                           unknown));
  }
}

TEST_F(DomainsTest, PublicEndsAtABlockAndTheRestIsTheTenants) {
  const auto a = *For("a", "", std::string(40, '!'));
  const auto b = *For("b", "", std::string(33, '!') + "?");
  ASSERT_EQ(a.size(), 2u);
  ASSERT_EQ(b.size(), 2u);
  EXPECT_EQ(a[0].token_end, 32);
  EXPECT_EQ(b[0].token_end, 32);
  EXPECT_EQ(a[0].pin_s, 7);
  EXPECT_EQ(a[1].token_end, INT_MAX);
  EXPECT_TRUE(a[0].key == b[0].key);
  EXPECT_FALSE(a[1].key == b[1].key);
  EXPECT_TRUE(a[1].key == For("a")->front().key) << "the tenant's, whatever stands before it";
  EXPECT_EQ(For("a", "", std::string(15, '!'))->size(), 1u);
}

// The same text, asked by two tenants, is the same KV in its public blocks and in no other.
TEST_F(DomainsTest, ChainsOfTwoTenantsPartWhereThePublicTextEnds) {
  const std::vector<int32_t> tokens = router.TextTokens(std::string(64, '!'));
  const auto keys = [&](const char* tenant) {
    auto chain = *kv::BlockChain::Create({}, *router.domains.For({tenant}, "", tokens));
    chain.Append(tokens);
    return std::vector<kv::BlockKey>(chain.keys().begin(), chain.keys().end());
  };
  const auto a = keys("a"), b = keys("b"), c = keys("c"), d = keys("d");
  ASSERT_EQ(a.size(), 4u);
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i] == b[i], i < 2) << i;
    EXPECT_EQ(a[i] == c[i], i < 2) << i;
    EXPECT_TRUE(c[i] == d[i]) << i;
    EXPECT_TRUE(a[i] == keys("a")[i]) << i;
  }
  EXPECT_TRUE(keys("e").empty());
}

TEST_F(DomainsTest, AGroupHasItsMembersShares) {
  const kv::Domain group = For("c")->front(), own = For("c", "private")->front();
  EXPECT_EQ(group.quota, 1.0f);
  EXPECT_EQ(group.floor, 0.375f);
  EXPECT_EQ(own.quota, 0.5f);
  EXPECT_EQ(own.floor, 0.0f);
  EXPECT_EQ(For("a")->front().quota, 0.5f);
  EXPECT_EQ(For("a")->front().floor, 0.25f);
}

TEST_F(DomainsTest, TenantsCompeteUnderNumbersOfTheirOwn) {
  std::set<uint64_t> numbers;
  for (const char* tenant : {"a", "b", "c", "d", "e"}) {
    numbers.insert(router.domains.ShareOf({tenant}).tenant);
    EXPECT_EQ(router.domains.ShareOf({tenant}).weight, tenant == std::string("b") ? 2.5 : 1);
    // It names none of the domains, which workers know.
    for (const kv::Domain& domain : *For(tenant)) {
      EXPECT_NE(kv::TagOf(domain.key).value, router.domains.ShareOf({tenant}).tenant);
    }
  }
  EXPECT_EQ(numbers.size(), 5u);
}

TEST(MasterKeyTest, RoutersShareKvByTheSameFileAndEpochAlone) {
  const auto write = [](const char* name, const std::string& bytes) {
    const std::string path = testing::TempDir() + "domains_test_" + name;
    std::ofstream(path) << bytes;
    EXPECT_EQ(chmod(path.c_str(), 0600), 0);
    return path;
  };
  const std::string one = "master_key_file: " + write("one", std::string(32, '1')) + "\n";
  const std::string two = "master_key_file: " + write("two", std::string(32, '2')) + "\n";
  const auto key = [](const std::string& more) {
    const TenancyFixture router(Policy(more));
    return router.domains.For({"a"}, "", router.TextTokens("x"))->front().key;
  };
  EXPECT_TRUE(key(one) == key(one));
  EXPECT_FALSE(key(one) == key(two));
  EXPECT_FALSE(key(one) == key(one + "key_epoch: 1\n"));
  EXPECT_FALSE(key("") == key("")) << "drawn anew by each router";
}

}  // namespace
}  // namespace trivium::router

// Tenants in front of real processes: who is let in, and whose KV is found again by whom.
#include <gtest/gtest.h>

#include <numeric>

#include "tests/e2e/cluster.h"

namespace trivium::e2e {
namespace {

constexpr int32_t kBlock = 16;
constexpr char kPublic[] =
    "You are the assistant of a library. Answer in one short sentence, name the shelf where the "
    "book stands, and never guess: where the catalogue has no such book, say so. Books for "
    "children "
    "stand on the ground floor, novels on the first, science and history on the second, and maps "
    "in "
    "the cellar, where the light is off at night";
const std::string kTenancy = std::string(kTwoTenants) +
    "  public_prefixes:\n    - {id: library, text: \"PUBLIC\"}\n";

std::string Tenancy() {
  std::string text = kTenancy;
  return text.replace(text.find("PUBLIC"), 6, kPublic);
}

TEST(TenancyTest, WhatIsPublicIsFoundByAllAndTheRestByItsTenantAlone) {
  if (TestModel().empty()) GTEST_SKIP() << "TRIVIUM_TEST_MODEL is not set: no real model to serve";
  ClusterOptions options;
  options.router_config = Tenancy();
  options.api_key = "alice-key";
  Cluster cluster(options);
  ASSERT_TRUE(cluster.Start().ok());
  // "night" and "nightfall" are different tokens.
  const std::string prompt =
      std::string(kPublic) +
      "fall. My name is Winterbottom and nobody else's: I look for a book on the bees of the "
      "Alps that my aunt read to me when I was seven, and for the map that lay inside it.";
  const auto ask = [&](const std::string& key, const std::string& kv_sharing = "") {
    cluster.set_api_key(key);
    v1::GenerateRequest request = TextRequest(prompt, 8);
    request.set_kv_sharing(kv_sharing);
    return cluster.Generate(request);
  };
  for (const char* stranger : {"", "carol-key"}) {
    EXPECT_EQ(ask(stranger).status.code(), absl::StatusCode::kUnauthenticated) << stranger;
  }
  EXPECT_EQ(ask("alice-key", "group").status.code(), absl::StatusCode::kInvalidArgument);

  const Answer first = ask("alice-key");
  ASSERT_TRUE(first.status.ok()) << first.status;
  const int32_t all = first.done.usage().prompt_tokens();
  const int32_t most = (all - 1) / kBlock * kBlock;
  EXPECT_EQ(first.done.usage().cached_prompt_tokens(), 0);
  const Answer others = ask("bob-key");
  const int32_t shared = others.done.usage().cached_prompt_tokens();
  EXPECT_GT(shared, 0) << "the public text was computed twice";
  EXPECT_EQ(shared % kBlock, 0);
  EXPECT_LT(shared, most) << "another tenant's text was found";
  EXPECT_LE(shared, cluster.CountTokens(kPublic)) << "another tenant's text was found";
  EXPECT_GT(shared + 2 * kBlock, cluster.CountTokens(kPublic)) << "of the public text, not all was";
  for (const char* key : {"alice-key", "bob-key"}) {
    const Answer again = ask(key);
    EXPECT_EQ(again.done.usage().cached_prompt_tokens(), most) << key;
    EXPECT_EQ(again.ids, first.ids) << "reuse changed the answer";
  }
  EXPECT_EQ(others.ids, first.ids);
  const Answer apart = ask("alice-key", "none");
  EXPECT_EQ(apart.done.usage().cached_prompt_tokens(), 0);
  EXPECT_EQ(apart.ids, first.ids);
}

// Of "carol-key" and "dave-key" too. By load alone, so that the prefill worker computes what it
// does not hold, and its rows tell.
constexpr char kGroups[] =
    "placement: least_loaded\n"
    "tenancy:\n  tenants:\n"
    "    - {id: alice, kv_sharing: 'group:friends', api_key_sha256: "
    "[72ee9d4355ccb9d3a4c9dbf37382e38e75c1b1a225b5bd1f729ee91bbda30c20]}\n"
    "    - {id: bob, kv_sharing: 'group:friends', api_key_sha256: "
    "[9b94dc1a51a38769f135edf04033ad7f2f487b6c25929be7a861cfc1ab10cf98]}\n"
    "    - {id: carol, kv_sharing: 'group:others', api_key_sha256: "
    "[368c3387fc9b5ce6ab156ad952031f52bc9154e89a727020cd314f8910a21823]}\n"
    "    - {id: dave, api_key_sha256: "
    "[fe09dace1224a91b590b9329dc3268b6db00ce6f9dbac4de34ee21d759fe9585]}\n";

TEST(TenancyTest, AGroupComputesAPromptOnceAndOthersEachForThemselves) {
  if (TestModel().empty()) GTEST_SKIP() << "TRIVIUM_TEST_MODEL is not set: no real model to serve";
  ClusterOptions options;
  options.router_config = kGroups;
  options.api_key = "alice-key";
  Cluster cluster(options);
  ASSERT_TRUE(cluster.Start().ok());
  std::vector<int32_t> ids(100);
  std::iota(ids.begin(), ids.end(), 1000);
  Answer first;
  // Prompt rows that were computed for it.
  const auto ask = [&](const std::string& key, const std::string& kv_sharing = "") {
    cluster.set_api_key(key);
    v1::GenerateRequest request = TokensRequest(ids, 8);
    request.set_kv_sharing(kv_sharing);
    const double before = cluster.MetricSum("prefill-0", "trivium_rows_total");
    const Answer answer = cluster.Generate(request);
    EXPECT_TRUE(answer.status.ok()) << answer.status;
    if (first.ids.empty()) first = answer;
    EXPECT_EQ(answer.ids, first.ids);
    EXPECT_EQ(answer.logprobs, first.logprobs);
    return cluster.MetricSum("prefill-0", "trivium_rows_total") - before;
  };
  EXPECT_EQ(ask("alice-key"), 100);
  EXPECT_EQ(ask("bob-key"), 4) << "of the same group";
  EXPECT_EQ(ask("carol-key"), 100) << "of another group";
  EXPECT_EQ(ask("dave-key"), 100) << "of none";
  EXPECT_EQ(ask("bob-key", "private"), 100) << "what a member narrows is not the group's";
  EXPECT_EQ(ask("alice-key", "private"), 100) << "nor another member's";
  for (const char* key : {"alice-key", "bob-key", "carol-key", "dave-key"}) {
    EXPECT_EQ(ask(key), 4) << key;
  }
  EXPECT_EQ(ask("bob-key", "private"), 4);
}

}  // namespace
}  // namespace trivium::e2e

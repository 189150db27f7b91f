#include "services/router/tenancy/tenants.h"

#include <gtest/gtest.h>

#include "common/config/config.h"

namespace trivium::router {
namespace {

// Of "alice-key", "alice-second-key", "bob-key", by sha256sum.
constexpr char kAlice[] = "72ee9d4355ccb9d3a4c9dbf37382e38e75c1b1a225b5bd1f729ee91bbda30c20";
constexpr char kAliceSecond[] = "d5047ba54be255b8bee37bbe446880331295bb4d3a2cfadfcc57b7802867e3df";
constexpr char kBob[] = "9b94dc1a51a38769f135edf04033ad7f2f487b6c25929be7a861cfc1ab10cf98";

v1::TenancyConfig TwoTenants() {
  v1::TenancyConfig config;
  v1::TenantConfig* alice = config.add_tenants();
  alice->set_id("alice");
  alice->add_api_key_sha256(kAlice);
  alice->add_api_key_sha256(kAliceSecond);
  v1::TenantConfig* bob = config.add_tenants();
  bob->set_id("bob");
  bob->add_api_key_sha256(kBob);
  bob->set_administrator(true);
  return config;
}

Tenants Made(v1::TenancyConfig config) {
  EXPECT_TRUE(config::Complete(&config).ok());
  return Tenants(config);
}

Credentials Bearer(const std::string& key) { return {{"Bearer " + key}, {}}; }

TEST(TenantsTest, EachKeyIsItsTenants) {
  const Tenants tenants = Made(TwoTenants());
  EXPECT_TRUE(tenants.has_keys());
  for (const Credentials& credentials :
       {Bearer("alice-key"), Bearer("alice-second-key"), Credentials{{"bearer   alice-key"}, {}},
        Credentials{{}, {"alice-key"}}}) {
    const auto caller = tenants.Authenticate(credentials);
    ASSERT_TRUE(caller.ok()) << caller.status();
    EXPECT_EQ(caller->tenant.value, "alice");
    EXPECT_FALSE(caller->is_administrator);
  }
  const auto bob = tenants.Authenticate(Bearer("bob-key"));
  ASSERT_TRUE(bob.ok());
  EXPECT_EQ(bob->tenant.value, "bob");
  EXPECT_TRUE(bob->is_administrator);
}

TEST(TenantsTest, AnythingElseIsRefusedWithoutShowingIt) {
  const Tenants tenants = Made(TwoTenants());
  const Credentials table[] = {
      {},
      {{""}, {}},
      {{}, {""}},
      {{"Bearer"}, {}},
      {{"Bearer "}, {}},
      {{"alice-key"}, {}},
      {{"Basic alice-key"}, {}},
      {{"Bearer alice-key "}, {}},
      {{"Bearer alice-ke"}, {}},
      {{"Bearer alice-keyy"}, {}},
      {{"Bearer ALICE-KEY"}, {}},
      {{std::string("Bearer ") + kAlice}, {}},  // the digest is no key
      {{}, {"Bearer alice-key"}},
      {{"Bearer alice-key", "Bearer alice-key"}, {}},
      {{"Bearer alice-key"}, {"bob-key"}},
      {{}, {std::string(100000, 'x')}},
  };
  for (const Credentials& credentials : table) {
    const absl::Status status = tenants.Authenticate(credentials).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << status;
    EXPECT_EQ(Message(status).find("alice"), std::string::npos) << status;
    EXPECT_LT(status.message().size(), 100u);
  }
}

TEST(TenantsTest, OneTenantMayTakeThoseWithoutAKeyButNotThoseWithAWrongOne) {
  v1::TenancyConfig config = TwoTenants();
  config.add_tenants()->set_id("anybody");
  const Tenants tenants = Made(config);
  EXPECT_EQ(tenants.Authenticate({})->tenant.value, "anybody");
  EXPECT_EQ(tenants.Authenticate(Bearer("bob-key"))->tenant.value, "bob");
  EXPECT_FALSE(tenants.Authenticate(Bearer("carol-key")).ok());
}

TEST(TenantsTest, WithoutKeysWhateverIsSentCountsForNothing) {
  const Tenants tenants = Made({});
  EXPECT_FALSE(tenants.has_keys());
  for (const Credentials& credentials :
       {Credentials(), Bearer("dummy"), Credentials{{"Basic x"}, {"y"}}}) {
    EXPECT_EQ(tenants.Authenticate(credentials)->tenant.value, "default");
  }
}

}  // namespace
}  // namespace trivium::router

// Test support: a dispatcher whose workers say what they hold, and requests in sharing domains.
// Thread-safety: none.
#pragma once

#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "services/router/dispatch/dispatch_fixture.h"
#include "services/router/prefix_index/index_fixture.h"

namespace trivium::router {

class KvEventsTest : public testing::Test {
 protected:
  bool Send(WorkerIndex worker, const v1::KvEvents& events) {
    return all_.cluster.Report(worker, &events);
  }
  int64_t Pairs() { return all_.dispatcher.IndexCounts().pairs; }

  explicit KvEventsTest(const DispatchSettings& settings = {}) : all_(settings) {}

  DispatchFixture all_;
};

// Workers 0 and 1 prefill, 2 and 3 decode.
class KvPlacementTest : public KvEventsTest {
 protected:
  using KvEventsTest::KvEventsTest;
  ~KvPlacementTest() override {
    for (const auto& run : runs_) run->Cancel();
  }
  static std::vector<int32_t> Ids(int32_t first) {
    std::vector<int32_t> ids(100);
    for (int32_t i = 0; i < 100; ++i) ids[static_cast<size_t>(i)] = 3 + (first + i) % 300;
    return ids;
  }
  static std::vector<kv::Domain> DomainOf(uint8_t tenant) {
    kv::Domain domain;
    domain.key.bytes.fill(tenant);
    domain.token_end = std::numeric_limits<int32_t>::max();
    return {domain};
  }
  v1::KvEvents Holds(uint8_t tenant) const {
    const kv::KeySpace space{.model = SimCluster::kFingerprint,
                             .numerics_class = all_.options.numerics_class,
                             .kv_format = 1,
                             .block_tokens = 16};
    v1::KvEvents events;
    events.set_is_snapshot_begin(true);
    AddKeys(KeysOf(Ids(0), DomainOf(tenant), {&space, 1})[0].keys, v1::KV_TIER_HOT,
            events.add_events()->mutable_stored());
    return events;
  }
  // Why it went where it went.
  std::string Place(std::vector<int32_t> ids, std::vector<kv::Domain> domains) {
    RunRequest request = DispatchFixture::Request(std::move(ids), 8);
    const std::string id = request.id;
    request.tenant = TenantId{"a"};
    request.kv_domains = std::move(domains);
    runs_.push_back(all_.dispatcher.Submit(std::move(request), std::make_shared<RecordingSink>()));
    const auto why = all_.dispatcher.Explain(id);
    EXPECT_EQ(why.size(), 1u);
    EXPECT_EQ(why.at(0).tenant, TenantId{"a"});
    return why.at(0).text;
  }

  std::vector<std::shared_ptr<RequestRun>> runs_;
};

}  // namespace trivium::router

// Blocks that the pool had no room for come back from the tiers below it: told by the rows that the
// engines computed, and by texts that are, bit for bit, what they are without.
#include <filesystem>
#include <fstream>

#include "tests/stages/reuse_fixture.h"

namespace trivium::stages {
namespace {

constexpr int64_t kMemory = 16 << 20;
constexpr int kRequests = 100;  // of whose prompt six blocks are full

class TiersTest : public ReuseTest {
 protected:
  void SetUp() override {
    disk_ = testing::TempDir() + "tiers_" +
            testing::UnitTest::GetInstance()->current_test_info()->name();
    RemoveDisk();
  }
  void TearDown() override { RemoveDisk(); }
  void RemoveDisk() const {
    for (const char* worker : {".11", ".22"}) std::filesystem::remove(disk_ + worker);
  }
  RigOptions Small(int64_t memory_bytes, bool has_disk) const {
    return {.prefill_blocks = 16,
            .decode_blocks = 20,
            .tier_memory_bytes = memory_bytes,
            .tier_disk = has_disk ? disk_ : ""};
  }
  worker::StageRequest Ask(Rig& rig, const std::vector<int32_t>& ids, uint8_t tenant = 1) {
    return In({DomainOf(tenant)}, rig.Request(ids, Seeded(7, 6)));
  }
  // Has both pools evict all that they keep.
  static void EvictAll(Rig& rig) {
    for (WorkerParts* parts : {&rig.prefill_parts, &rig.decode_parts}) {
      ASSERT_TRUE(parts->WaitAllFree());
      ASSERT_TRUE(parts->pool->Reserve(parts->pool->counts().total).ok());
      parts->offload->Flush();
    }
  }
  static int64_t Broken(const WorkerParts& parts) {
    int64_t broken = 0;
    for (const kv::TierCounts& tier : parts.offload->counts().tiers) broken += tier.broken;
    return broken;
  }
  // The bytes of a prompt's blocks that the prefill worker's pool holds.
  static std::vector<uint16_t> KvOf(Rig& rig, const worker::StageRequest& request) {
    const auto held = rig.prefill_parts.pool->Reserve(
        request.chain.size(), {.chain = &request.chain, .blocks_max = request.chain.size()});
    const kv::KvStorage& storage = *rig.prefill_parts.engine.storage;
    std::vector<uint16_t> bytes;
    for (int32_t i = 0; i < held->cached_blocks(); ++i) {
      for (int layer = 0; layer < storage.layers(); ++layer) {
        const uint16_t* page = storage.page(layer, held->blocks()[static_cast<size_t>(i)]);
        bytes.insert(bytes.end(), page, page + storage.layout().PageWords());
      }
    }
    return bytes;
  }

  std::string disk_;
};

TEST_F(TiersTest, WhatWasEvictedIsLoadedAndNotComputed) {
  for (const auto& [memory_bytes, has_disk] :
       {std::pair(kMemory, false), std::pair(int64_t{0}, true), std::pair(kMemory, true)}) {
    Rig rig(Small(memory_bytes, has_disk));
    const std::vector<int32_t> ids = rig.RandomPrompt(random_, kRequests);
    const worker::StageRequest request = Ask(rig, ids);
    EXPECT_EQ(Computed(rig, request), 100);
    const std::vector<uint16_t> computed = KvOf(rig, request);
    EXPECT_EQ(computed.size(), 6u * 2 * rig.prefill_parts.engine.storage->bytes() / 2 / 16 / 2);
    EvictAll(rig);
    EXPECT_EQ(KvOf(rig, request).size(), 0u);
    EXPECT_EQ(Computed(rig, Ask(rig, ids)), 4);
    EXPECT_EQ(rig.prefill_parts.log.prompts().loaded, 96);
    EXPECT_EQ(KvOf(rig, request), computed) << "the bytes of the KV";
    EXPECT_EQ(Computed(rig, Ask(rig, ids)), 4) << "published again";
    EXPECT_EQ(rig.prefill_parts.log.prompts().loaded, 96);
    EXPECT_EQ(Computed(rig, Ask(rig, ids, 2)), 100) << "another tenant";
    EvictAll(rig);
    EXPECT_EQ(Computed(rig, In({}, rig.Request(ids, Seeded(7, 6)))), 100) << "without a domain";
    RemoveDisk();
  }
}

TEST_F(TiersTest, WhatIsOnDiskSurvivesARestart) {
  std::vector<int32_t> ids;
  {
    Rig rig(Small(0, true));
    ids = rig.RandomPrompt(random_, kRequests);
    EXPECT_EQ(Computed(rig, Ask(rig, ids)), 100);
    EvictAll(rig);
  }
  {
    Rig rig(Small(0, true));
    // What is there is told before anything else happens.
    EXPECT_EQ(rig.prefill_parts.pool->events().Read(0).changes.size(), 6u);
    EXPECT_EQ(Computed(rig, Ask(rig, ids, 2)), 100) << "another tenant";
    EXPECT_EQ(Computed(rig, Ask(rig, ids)), 4);
  }
  {
    std::fstream file(disk_ + ".11", std::ios::in | std::ios::out | std::ios::binary);
    const std::streamoff at = 4096 + 5000;
    file.seekg(at);
    const int byte = file.get();
    file.seekp(at);
    file.put(static_cast<char>(byte ^ 4));
  }
  Rig rig(Small(0, true));
  const int64_t rows = Computed(rig, Ask(rig, ids));
  // The block that was evicted first is the last one of the prompt.
  EXPECT_EQ(rows, 20) << "a changed byte costs its block, and no text";
  EXPECT_EQ(Broken(rig.prefill_parts), 1);
}

// Of a conversation, only the decode worker has the answer.
TEST_F(TiersTest, TheNextTurnFindsTheLastAnswerInATier) {
  Rig rig(Small(kMemory, true));
  std::vector<int32_t> ids = rig.RandomPrompt(random_, 50);
  const auto turn = In({DomainOf(1)}, rig.Request(ids, Seeded(random_(), 40)));
  const auto answer = rig.Run(turn);
  ExpectRight(rig, turn, answer);
  for (const worker::OutputToken& token : *answer) ids.push_back(token.token.id);
  ids = Joined(ids, rig.RandomPrompt(random_, 30));
  EvictAll(rig);
  const int64_t before = RowsOf(rig.decode_parts);
  worker::StageRequest next = In({DomainOf(1)}, rig.Request(ids, Seeded(random_(), 10)));
  next.prefills = true;
  next.choices = 1;
  ExpectRight(rig, next, rig.Run(next));
  EXPECT_EQ(RowsOf(rig.decode_parts) - before, 120 - 80 + 9);
  EXPECT_EQ(rig.decode_parts.log.prompts().loaded, 80);
}

TEST_F(TiersTest, ARequestThatEndsWhileItIsFetchedLeavesNothing) {
  Rig rig(Small(kMemory, true));
  const std::vector<int32_t> ids = rig.RandomPrompt(random_, kRequests);
  Computed(rig, Ask(rig, ids));
  for (int round = 0; round < 30; ++round) {
    EvictAll(rig);
    worker::StageRequest request = Ask(rig, ids);
    request.prefills = round % 2 == 0;
    const std::unique_ptr<Flight> flight = rig.Launch(request);
    if (!request.prefills) rig.prefill->Cancel(flight->prefill_number);
    rig.decode->Cancel(flight->decode_number);
    (void)flight->prefill.Wait();
    (void)flight->decode.Wait();
  }
  EvictAll(rig);
  EXPECT_EQ(Computed(rig, Ask(rig, ids)), 4);
}

TEST_F(TiersTest, UnderPressureEveryTextIsRight) {
  Rig rig({.prefill_blocks = 24,
           .decode_blocks = 40,
           .requests_max = 16,
           .tier_memory_bytes = 1 << 20,  // little: much of it goes on to the disk
           .tier_disk = disk_});
  RunUnderPressure(rig);
  EXPECT_GT(rig.prefill_parts.log.prompts().loaded + rig.decode_parts.log.prompts().loaded, 0);
}

}  // namespace
}  // namespace trivium::stages

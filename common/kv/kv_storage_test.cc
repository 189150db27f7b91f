#include "common/kv/kv_storage.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <set>
#include <string>

namespace trivium::kv {
namespace {

constexpr kernels::KvLayout kLayout{.block_tokens = 16, .kv_heads = 3, .head_dim = 64};

bool AllEqual(const KvStorage& storage, int layer, BlockId block, uint16_t value) {
  const uint16_t* page = storage.page(layer, block);
  return std::all_of(page, page + storage.layout().PageWords(),
                     [value](uint16_t elem) { return elem == value; });
}

TEST(KvStorageTest, PagesAreDisjointZeroedAndPageAligned) {
  auto storage = KvStorage::Create(kLayout, 3, 5);
  ASSERT_TRUE(storage.ok()) << storage.status();
  const auto page_size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  EXPECT_EQ(reinterpret_cast<uintptr_t>((*storage)->layer(0)) % page_size, 0u);
  EXPECT_EQ((*storage)->bytes(), size_t{3} * 5 * 2 * 16 * 3 * 64 * 2);
  std::set<const uint16_t*> starts;
  for (int layer = 0; layer < 3; ++layer) {
    for (int32_t block = 0; block < 5; ++block) {
      EXPECT_TRUE(AllEqual(**storage, layer, BlockId{block}, 0));
      starts.insert((*storage)->page(layer, BlockId{block}));
    }
  }
  ASSERT_EQ(starts.size(), 15u);
  for (auto it = starts.begin(); std::next(it) != starts.end(); ++it) {
    EXPECT_EQ(*std::next(it) - *it, kLayout.PageWords());
  }
}

TEST(KvStorageTest, ScrubClearsOneBlockInEveryLayerAndNoOther) {
  auto storage = *KvStorage::Create(kLayout, 2, 3);
  std::fill_n(storage->layer(0), storage->bytes() / 2, uint16_t{0x3c01});
  storage->Scrub(BlockId{1});
  for (int layer = 0; layer < 2; ++layer) {
    EXPECT_TRUE(AllEqual(*storage, layer, BlockId{0}, 0x3c01));
    EXPECT_TRUE(AllEqual(*storage, layer, BlockId{1}, 0));
    EXPECT_TRUE(AllEqual(*storage, layer, BlockId{2}, 0x3c01));
  }
}

TEST(KvStorageTest, CopyRowsMovesKeysAndValuesOfTheFirstTokensInEveryLayer) {
  auto storage = *KvStorage::Create(kLayout, 2, 3);
  for (size_t i = 0; i < storage->bytes() / 2; ++i) {
    storage->layer(0)[i] = static_cast<uint16_t>(i * 7 + 1);
  }
  for (const int32_t rows : {0, 1, 11, 16}) {
    storage->Scrub(BlockId{2});
    storage->CopyRows(BlockId{1}, BlockId{2}, rows);
    for (int layer = 0; layer < 2; ++layer) {
      for (int64_t i = 0; i < kLayout.PageWords(); ++i) {
        const int64_t token = i / kLayout.RowElems() % kLayout.block_tokens;
        ASSERT_EQ(storage->page(layer, BlockId{2})[i],
                  token < rows ? storage->page(layer, BlockId{1})[i] : 0)
            << rows << " rows, layer " << layer << ", element " << i;
      }
    }
  }
}

// The kernel lists "dd" among the flags of a mapping that core dumps leave out.
TEST(KvStorageTest, IsLeftOutOfCoreDumps) {
  auto storage = *KvStorage::Create(kLayout, 2, 64);
  const auto address = reinterpret_cast<uintptr_t>(storage->layer(0));
  std::ifstream smaps("/proc/self/smaps");
  if (!smaps) GTEST_SKIP() << "no /proc/self/smaps here";
  bool inside = false, found = false;
  for (std::string line; std::getline(smaps, line);) {
    unsigned long begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      inside = begin <= address && address < end;
    } else if (inside && line.rfind("VmFlags:", 0) == 0) {
      found = true;
      EXPECT_NE(line.find(" dd"), std::string::npos) << line;
    }
  }
  if (!found) GTEST_SKIP() << "this kernel lists no VmFlags";
}

TEST(KvStorageTest, RefusesWhatCannotBe) {
  EXPECT_EQ(KvStorage::Create(kLayout, 0, 5).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(KvStorage::Create(kLayout, 5, -1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(KvStorage::Create({.block_tokens = 16}, 5, 5).status().code(),
            absl::StatusCode::kInvalidArgument);
  const int most = std::numeric_limits<int>::max();
  const kernels::KvLayout huge{.block_tokens = 4096, .kv_heads = 1024, .head_dim = 1024};
  EXPECT_EQ(KvStorage::Create(huge, most, most).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(KvStorageDeathTest, ScrubOutsideTheStorageEndsTheProcess) {
  auto storage = *KvStorage::Create(kLayout, 1, 2);
  EXPECT_DEATH(storage->Scrub(BlockId{2}), "block 2 of 2");
}

}  // namespace
}  // namespace trivium::kv

// What the cache promises: thresholds and times a category, quotas, scopes, stores that fail.
#include "services/router/semantic_cache/semantic_cache.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "services/router/semantic_cache/cache_fixture.h"
#include "services/router/semantic_cache/entry_record.h"

namespace trivium::router {
namespace {

using SemanticCacheTest = CacheFixture;

TEST_F(SemanticCacheTest, TheSamePairHitsInOneCategoryAndMissesInAnother) {
  const auto cache = MakeCache();
  const std::vector<float> asked = RandomUnit(random), again = Near(asked, 0.85, random);
  for (const size_t category : {kCode, kChat}) {
    ASSERT_TRUE(cache->Insert(Question(), category, asked, "answer", 10).ok());
  }
  EXPECT_TRUE(Hits(*cache, Question(), kChat, again));
  EXPECT_FALSE(Hits(*cache, Question(), kCode, again));
  EXPECT_TRUE(Hits(*cache, Question(), kCode, Near(asked, 0.91, random)));
  EXPECT_FALSE(Hits(*cache, Question(), kChat, Near(asked, 0.74, random)));
  EXPECT_FALSE(Hits(*cache, Question(), kAdvice, asked)) << "none was put there";
}

TEST_F(SemanticCacheTest, AnEntryLivesToTheMillisecond) {
  const auto cache = MakeCache();
  const std::vector<float> asked = RandomUnit(random);
  const CacheQuestion question = Question();
  ASSERT_TRUE(cache->Insert(question, kChat, asked, "answer", 10).ok());
  now_ms += 9999;
  EXPECT_TRUE(Hits(*cache, Question(), kChat, asked));
  EXPECT_TRUE(cache->FindExact(question, std::nullopt).has_value());
  CacheQuestion hurried = question;
  hurried.age_max_ms = 9998;
  EXPECT_FALSE(cache->FindExact(hurried, std::nullopt).has_value());
  EXPECT_FALSE(Hits(*cache, hurried, kChat, asked));
  now_ms += 2;
  EXPECT_FALSE(Hits(*cache, Question(), kChat, asked));
  EXPECT_FALSE(cache->FindExact(question, std::nullopt).has_value());
  // It is kept for as long as the load could make it good again, and then no longer.
  cache->Upkeep();
  EXPECT_EQ(cache->counts()[kChat].entries, 1u);
  now_ms += 10000;
  cache->Upkeep();
  EXPECT_EQ(cache->counts()[kChat].entries, 0u);
  EXPECT_EQ(cache->counts()[kChat].bytes, 0);
  EXPECT_TRUE(store.answers().empty());
}

TEST_F(SemanticCacheTest, FloodingACategoryLeavesTheOthersAlone) {
  const auto cache = MakeCache(100);
  std::vector<std::pair<CacheQuestion, std::vector<float>>> code;
  for (int i = 0; i < 40; ++i) {
    code.emplace_back(Question(), RandomUnit(random));
    ASSERT_TRUE(cache->Insert(code.back().first, kCode, code.back().second, "answer", 1).ok());
  }
  for (int i = 0; i < 500; ++i) {
    ASSERT_TRUE(cache->Insert(Question(), kChat, RandomUnit(random), "chat", 1).ok());
  }
  cache->Upkeep();
  EXPECT_EQ(cache->counts()[kCode].entries, 40u);
  EXPECT_EQ(cache->counts()[kChat].entries, 30u);
  EXPECT_EQ(cache->counts()[kChat].evicted[size_t(EvictReason::kQuota)], 470u);
  for (const auto& [question, vector] : code) {
    EXPECT_TRUE(cache->FindExact(question, kCode).has_value());
    EXPECT_TRUE(Hits(*cache, Question(), kCode, vector));
  }
  while (cache->Upkeep()) {
  }
  EXPECT_EQ(store.answers().size(), 70u);
}

TEST_F(SemanticCacheTest, TheLeastRecentlyUsedGoesFirstAndBytesCountToo) {
  SemanticCache::Options options = OptionsOf(10);
  options.bytes_max = 50000;
  SemanticCache cache(std::move(options), &store);
  const CacheQuestion kept = Question(), lost = Question();
  ASSERT_TRUE(cache.Insert(kept, kChat, RandomUnit(random), "kept", 1).ok());
  ASSERT_TRUE(cache.Insert(lost, kChat, RandomUnit(random), "lost", 1).ok());
  ASSERT_TRUE(cache.Insert(Question(), kChat, RandomUnit(random), "third", 1).ok());
  EXPECT_TRUE(cache.FindExact(kept, std::nullopt).has_value());
  ASSERT_TRUE(cache.Insert(Question(), kChat, RandomUnit(random), "fourth", 1).ok());
  EXPECT_TRUE(cache.FindExact(kept, std::nullopt).has_value());
  EXPECT_FALSE(cache.FindExact(lost, std::nullopt).has_value());
  const std::string large(14000, 'x');  // fits into 15,000 only alone
  ASSERT_TRUE(cache.Insert(Question(), kChat, RandomUnit(random), large, 1).ok());
  EXPECT_EQ(cache.counts()[kChat].entries, 1u);
}

TEST_F(SemanticCacheTest, NoTenantEverGetsAnothersAnswer) {
  const auto cache = MakeCache(2000);
  std::vector<std::vector<float>> asked;
  std::vector<CacheQuestion> questions;
  for (int i = 0; i < 200; ++i) {
    asked.push_back(RandomUnit(random));
    questions.push_back(Question("alice"));
    ASSERT_TRUE(cache->Insert(questions.back(), kChat, asked.back(), "alice's", 1).ok());
  }
  int crossed = 0, found = 0;
  for (int i = 0; i < 10000; ++i) {
    const std::vector<float>& vector = asked[random() % asked.size()];
    crossed += cache->Find(Question("bob"), kChat, vector).has_value();
    found += cache->Find(Question("alice"), kChat, vector).has_value();
    CacheQuestion forged = questions[random() % questions.size()];  // hashes equal, yet not hers
    forged.tenant = "bob";
    crossed += cache->FindExact(forged, std::nullopt).has_value();
    crossed += cache->Find(forged, kChat, vector).has_value();
  }
  EXPECT_EQ(crossed, 0);
  EXPECT_EQ(found, 10000);
}

TEST_F(SemanticCacheTest, LoadMovesWhatMayMoveAndComesBackExactly) {
  const auto cache = MakeCache();
  const auto before = cache->counts();
  const std::vector<float> asked = RandomUnit(random), far = Near(asked, 0.72, random);
  ASSERT_TRUE(cache->Insert(Question(), kChat, asked, "answer", 1).ok());
  EXPECT_FALSE(cache->Find(Question(), kChat, far).has_value());
  cache->SetLoad(1);
  const auto under = cache->counts();
  EXPECT_FLOAT_EQ(under[kChat].threshold, 0.70f);
  EXPECT_EQ(under[kChat].ttl_ms, 20000);
  for (const size_t fixed : {kCode, kAdvice, kOther}) {
    EXPECT_EQ(under[fixed].threshold, before[fixed].threshold);
    EXPECT_EQ(under[fixed].ttl_ms, before[fixed].ttl_ms);
  }
  const auto found = cache->Find(Question(), kChat, far);
  ASSERT_TRUE(found.has_value());
  EXPECT_TRUE(found->is_relaxed);
  EXPECT_FALSE(cache->Find(Question(), kChat, asked)->is_relaxed);
  now_ms += 15000;
  EXPECT_TRUE(cache->Find(Question(), kChat, asked)->is_relaxed);
  cache->SetLoad(0);
  EXPECT_FALSE(cache->Find(Question(), kChat, asked).has_value());
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_EQ(cache->counts()[i].threshold, before[i].threshold);
    EXPECT_EQ(cache->counts()[i].ttl_ms, before[i].ttl_ms);
  }
}

TEST_F(SemanticCacheTest, AStoreThatIsAwayOrDamagedGivesMisses) {
  const auto cache = MakeCache();
  const std::vector<float> asked = RandomUnit(random);
  ASSERT_TRUE(cache->Insert(Question(), kChat, asked, "answer", 1).ok());
  EXPECT_FALSE(cache->Find(Question(), kChat, RandomUnit(random)).has_value());
  EXPECT_EQ(store.fetches, 0) << "a miss came to the store";
  store.is_away = true;
  EXPECT_FALSE(cache->Insert(Question(), kChat, RandomUnit(random), "x", 1).ok());
  EXPECT_FALSE(Hits(*cache, Question(), kChat, asked));
  EXPECT_EQ(cache->counts()[kChat].entries, 1u) << "it may come back";
  store.is_away = false;
  EXPECT_TRUE(Hits(*cache, Question(), kChat, asked));
  store.answers().begin()->second[0] ^= 1;
  EXPECT_FALSE(Hits(*cache, Question(), kChat, asked, "`nswer"));
  EXPECT_EQ(cache->counts()[kChat].entries, 0u);
  EXPECT_EQ(cache->counts()[kChat].evicted[size_t(EvictReason::kLost)], 1u);
}

TEST_F(SemanticCacheTest, InvalidationTakesWhatWasNamedAndNothingElse) {
  const auto cache = MakeCache();
  for (const std::string tenant : {"alice", "bob"}) {
    for (const size_t category : {kCode, kChat}) {
      ASSERT_TRUE(cache->Insert(Question(tenant), category, RandomUnit(random), "a", 1).ok());
    }
  }
  now_ms += 1000;
  ASSERT_TRUE(cache->Insert(Question("alice"), kCode, RandomUnit(random), "young", 1).ok());
  EXPECT_EQ(*cache->Invalidate({.tenant = "carol"}), 0u);
  EXPECT_EQ(*cache->Invalidate({.tenant = "alice", .older_than_ms = 1000}), 2u);
  EXPECT_EQ(store.answers().size(), 3u) << "what it said is gone is not read by the next process";
  EXPECT_EQ(*cache->Invalidate({.category = "chat"}), 1u);
  store.is_away = true;
  EXPECT_EQ(cache->Invalidate({}).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(cache->counts()[kCode].entries, 0u);
  EXPECT_EQ(store.answers().size(), 2u);
  store.is_away = false;
  while (cache->Upkeep()) {
  }
  EXPECT_TRUE(store.answers().empty());
}

TEST_F(SemanticCacheTest, AnotherCacheReadsWhatTheStoreHolds) {
  const auto first = MakeCache();
  const std::vector<float> asked = RandomUnit(random);
  const CacheQuestion question = Question();
  for (int i = 0; i < 300; ++i) {
    ASSERT_TRUE(first->Insert(Question(), kCode, RandomUnit(random), "x", 1).ok());
  }
  ASSERT_TRUE(first->Insert(question, kChat, asked, "answer", 1).ok());
  CacheQuestion alone = Question();
  alone.is_comparable = false;
  ASSERT_TRUE(first->Insert(alone, kChat, {}, "alone", 1).ok());
  ASSERT_TRUE(store.Put({"broken", "no entry"}, "", 1).ok());
  EntryRecord ahead;
  ahead.question = Question();
  ahead.category = "chat";
  ahead.vector = RandomUnit(random);
  ahead.created_ms = now_ms + int64_t{86400000};  // it would live for a day more than allowed
  ASSERT_TRUE(store.Put({"ahead", WriteRecord(ahead, "epoch 1")}, "", 1).ok());
  const auto second = MakeCache();
  int pages = 1;
  while (*second->Follow()) ++pages;
  EXPECT_EQ(pages, 2);
  EXPECT_EQ(second->counts()[kCode].entries, 300u);
  EXPECT_TRUE(Hits(*second, Question(), kChat, Near(asked, 0.8, random)));
  EXPECT_TRUE(second->FindExact(question, kChat).has_value());
  EXPECT_TRUE(second->FindExact(alone, kChat).has_value());
  EXPECT_FALSE(second->FindExact(ahead.question, kChat).has_value());
  EXPECT_FALSE(second->FindExact(question, kCode).has_value());
  SemanticCache::Options options = OptionsOf(1000);
  options.epoch = "epoch 2";
  SemanticCache third(std::move(options), &store);
  while (*third.Follow()) {
  }
  for (const auto& counts : third.counts()) EXPECT_EQ(counts.entries, 0u);
}

TEST_F(SemanticCacheTest, GraphsAreTakenOverAndDamagedOnesBuiltAnew) {
  const std::string folder = fmt::format("{}cache_graphs_{}", testing::TempDir(), getpid());
  constexpr size_t kEntries = VectorIndex::kExactMax + 600;
  std::vector<std::vector<float>> asked;
  const auto settle = [](SemanticCache& cache) {
    while (*cache.Follow()) {
    }
    while (cache.Upkeep()) {
    }
  };
  const auto found = [&](SemanticCache& cache) {
    size_t hits = 0;
    for (size_t i = 0; i < asked.size(); ++i) {
      hits += Hits(cache, Question(), kCode, asked[i], fmt::format("answer {}", i));
    }
    return hits;
  };
  {
    const auto first = MakeCache(10000);
    for (size_t i = 0; i < kEntries; ++i) {
      asked.push_back(RandomUnit(random));
      const std::string answer = fmt::format("answer {}", i);
      ASSERT_TRUE(first->Insert(Question(), kCode, asked.back(), answer, 1).ok());
    }
    settle(*first);
    ASSERT_TRUE(first->SaveGraphs(folder).ok());
    EXPECT_GE(found(*first), kEntries * 98 / 100);
  }
  std::map<std::filesystem::path, std::string> files;
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    std::ifstream in(file.path(), std::ios::binary);
    files[file.path()] = std::string{std::istreambuf_iterator<char>(in), {}};
  }
  ASSERT_EQ(files.size(), 2u);
  // The graph knows an entry that is no longer there.
  const std::string gone = store.answers().begin()->first;
  ASSERT_TRUE(store.Delete({&gone, 1}).ok());
  for (const char* damage : {"none", "flipped graph", "flipped keys", "cut graph", "cut keys"}) {
    SCOPED_TRACE(damage);
    for (const auto& [path, whole] : files) {
      std::string bytes = whole;
      const bool is_meant = std::string_view(damage).ends_with(path.extension().string().substr(1));
      if (is_meant && damage[0] == 'f') bytes[random() % bytes.size()] ^= 0x10;
      if (is_meant && damage[0] == 'c') bytes.resize(random() % bytes.size());
      std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    }
    const auto next = MakeCache(10000);
    while (*next->Follow()) {
    }
    const SemanticCache::LoadedGraphs loaded = next->LoadGraphs(folder);
    EXPECT_EQ(loaded.damaged, damage[0] == 'n' ? 0u : 1u);
    if (damage[0] == 'n') {
      EXPECT_GE(loaded.entries, 599u);
    } else {
      EXPECT_EQ(loaded.entries, 0u);
      EXPECT_FALSE(std::filesystem::exists(files.begin()->first)) << "it is not read again";
    }
    settle(*next);
    EXPECT_GE(found(*next), kEntries * 98 / 100);
    EXPECT_LT(found(*next), kEntries) << "the deleted one came back";
  }
  std::filesystem::remove_all(folder);
}

TEST_F(SemanticCacheTest, DamagedRecordsAreRefused) {
  EntryRecord record;
  record.question = Question();
  record.question.marks.content = {1, 5, 9};
  record.category = "chat";
  record.vector = RandomUnit(random);
  const std::string whole = WriteRecord(record, "e");
  const auto read = ReadRecord(whole, "e", kTestDim);
  ASSERT_TRUE(read.ok()) << Message(read.status());
  EXPECT_EQ(read->question.marks, record.question.marks);
  EXPECT_EQ(read->vector, record.vector);
  EXPECT_FALSE(ReadRecord(whole, "f", kTestDim).ok());
  EXPECT_FALSE(ReadRecord(whole, "e", kTestDim + 1).ok());
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = whole.substr(0, i % 4 == 0 ? random() % whole.size() : whole.size());
    if (!bytes.empty()) bytes[random() % bytes.size()] = static_cast<char>(random());
    const auto damaged = ReadRecord(bytes, "e", kTestDim);
    if (!damaged.ok()) continue;
    EXPECT_TRUE(damaged->vector.empty() || damaged->vector.size() == size_t{kTestDim});
    EXPECT_LE(damaged->question.marks.content.size(), Reading::kContentMax);
  }
}

TEST_F(SemanticCacheTest, LongAnswersAndUncomparableQuestionsAreLeftOut) {
  const auto cache = MakeCache();
  const std::vector<float> asked = RandomUnit(random);
  ASSERT_TRUE(cache->Insert(Question(), kChat, asked, "answer", 60).ok());
  CacheQuestion brief = Question();
  brief.tokens_max = 59;
  EXPECT_FALSE(Hits(*cache, brief, kChat, asked));
  brief.tokens_max = 60;
  EXPECT_TRUE(Hits(*cache, brief, kChat, asked));
  brief.is_comparable = false;
  EXPECT_FALSE(Hits(*cache, brief, kChat, asked));
  CacheQuestion marked = Question();
  marked.marks.numbers = 1;
  EXPECT_FALSE(Hits(*cache, marked, kChat, asked));
  std::vector<SemanticCache::Examined> examined;
  EXPECT_FALSE(cache->Find(marked, kChat, asked, &examined).has_value());
  ASSERT_EQ(examined.size(), 1u);
  EXPECT_STREQ(examined[0].verdict, "numbers");
}

TEST_F(SemanticCacheTest, ThreadsThatDoEverythingAtOnceLeaveItWhole) {
  const auto cache = MakeCache(400);
  std::vector<std::vector<float>> asked;
  for (int i = 0; i < 64; ++i) asked.push_back(RandomUnit(random));
  std::atomic<uint64_t> exact = 1000;
  const auto work = [&](uint32_t seed) {
    std::mt19937 mine(seed);
    for (int i = 0; i < 400; ++i) {
      CacheQuestion question;
      question.tenant = mine() % 2 == 0 ? "alice" : "bob";
      question.scope = {std::hash<std::string>()(question.tenant), 7};
      question.exact = {question.scope.high, mine() % 8 == 0 ? 5 : ++exact};
      question.tokens_max = 100;
      const std::vector<float>& vector = asked[mine() % asked.size()];
      const size_t category = mine() % 4;
      switch (mine() % 8) {
        case 0:
          cache->Upkeep();
          break;
        case 1:
          now_ms += 50;
          break;
        case 2:
          cache->SetLoad(static_cast<float>(mine() % 2));
          break;
        case 3:
          if (mine() % 16 == 0) cache->Invalidate({.tenant = question.tenant}).IgnoreError();
          break;
        case 4:
        case 5:
          cache->Insert(question, category, vector, question.tenant, 1).IgnoreError();
          break;
        default:
          if (const auto found = cache->Find(question, category, vector)) {
            const auto answer = cache->Answer(*found);
            if (answer.ok()) {
              EXPECT_EQ(*answer, question.tenant);
            }
          }
      }
    }
  };
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < 4; ++i) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();
  now_ms += 1000000;
  while (cache->Upkeep()) {
  }
  for (const auto& counts : cache->counts()) {
    EXPECT_EQ(counts.entries, 0u);
    EXPECT_EQ(counts.bytes, 0);
  }
  EXPECT_TRUE(store.answers().empty());
}

}  // namespace
}  // namespace trivium::router

// What the cache costs and what it gets right: time of an embedding, recall and time of a search
// while entries come, and a workload of six categories whose true answers are known.
//
//   semantic_bench --encoder FOLDER [--entries 100000] [--queries 20000] [--part
//   embed|index|workload]
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/config/config.h"
#include "common/embedding/text_encoder.h"
#include "kernels/dot.h"
#include "services/router/semantic_cache/bench_questions.h"
#include "services/router/semantic_cache/cache_service.h"
#include "services/router/semantic_cache/categories.h"
#include "services/router/semantic_cache/semantic_cache.h"

namespace trivium::router {
namespace {

using Seconds = std::chrono::duration<double>;

double Now() { return Seconds(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double Percentile(std::vector<double> values, double part) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1,
                         static_cast<size_t>(part * static_cast<double>(values.size())))];
}

std::unique_ptr<embedding::TextEncoder> Load(const std::string& folder) {
  auto encoder = embedding::TextEncoder::Load(folder, {.isa = kernels::BestIsa(), .threads = 1});
  TRIVIUM_CHECK(encoder.ok(), "{}", Message(encoder.status()));
  return *std::move(encoder);
}

std::vector<std::vector<float>> Embed(embedding::TextEncoder& encoder,
                                      const std::vector<std::string>& texts) {
  std::vector<std::vector<float>> vectors;
  for (size_t i = 0; i < texts.size(); i += 32) {
    const auto part = std::span(texts).subspan(i, std::min<size_t>(32, texts.size() - i));
    for (embedding::Embedding& one : encoder.Encode(part)) vectors.push_back(std::move(one.vector));
  }
  return vectors;
}

std::vector<CategoryPolicy> ShippedPolicies() {
  v1::SemanticCacheConfig config;
  config.set_enabled(true);
  const absl::Status status = config::AddShippedCategories(&config);
  TRIVIUM_CHECK(status.ok(), "{}", Message(status));
  for (v1::CacheCategoryConfig& category : *config.mutable_categories())
    category.set_guards("strict");
  return PoliciesOf(config);
}

Categories CategoriesOf(embedding::TextEncoder& encoder,
                        const std::vector<CategoryPolicy>& policies) {
  std::vector<std::vector<std::vector<float>>> examples;
  for (const CategoryPolicy& policy : policies) examples.push_back(Embed(encoder, policy.examples));
  return {policies, std::move(examples)};
}

void BenchEmbedding(embedding::TextEncoder& encoder) {
  const Categories categories = CategoriesOf(encoder, ShippedPolicies());
  BenchQuestions questions(1);
  std::vector<double> times;
  double tokens = 0;
  for (int i = 0; i < 400; ++i) {
    const std::vector<std::string> text{questions.Long()};
    const double begin = Now();
    const auto all = encoder.Encode(text);
    static_cast<void>(categories.Of(all[0].vector));
    if (i >= 20) times.push_back(Now() - begin);
    tokens += all[0].tokens;
  }
  std::printf("embedding + category, one thread, %.1f tokens: p50 %.2f ms, p99 %.2f ms\n",
              tokens / 400, Percentile(times, 0.5) * 1e3, Percentile(times, 0.99) * 1e3);
}

// A store that keeps nothing: what is measured is the index.
class NoStore final : public DocumentStore {
 public:
  absl::Status Put(const StoredEntry&, const std::string&, int64_t) override { return {}; }
  absl::StatusOr<std::string> Answer(const std::string&) override {
    return absl::NotFoundError("");
  }
  absl::Status Delete(std::span<const std::string>) override { return {}; }
  absl::StatusOr<std::vector<StoredEntry>> After(std::string*) override {
    return std::vector<StoredEntry>();
  }
  bool is_shared() const override { return false; }
};

void BenchIndex(embedding::TextEncoder& encoder, size_t entries) {
  BenchQuestions questions(2);
  std::printf("embedding %zu different questions ...\n", entries + 4000);
  const std::vector<std::vector<float>> vectors =
      Embed(encoder, questions.Distinct(entries + 4000));
  VectorIndex index(encoder.dim(), entries + 4000);
  double begin = Now();
  for (size_t i = 0; i < entries; ++i) {
    index.Add(i, vectors[i]);
    if (i % 64 == 63) index.Upkeep(64);
  }
  while (index.Upkeep()) {
  }
  std::printf("%zu entries: %.1f s to build, %.0f bytes each\n", entries, Now() - begin,
              static_cast<double>(index.bytes()) / static_cast<double>(entries));
  const kernels::DotFunction dot = kernels::BestDot();
  int right = 0, kSearches = 1000;
  std::vector<double> brute;
  for (int q = 0; q < kSearches; ++q) {
    const std::vector<float>& query = vectors[entries + static_cast<size_t>(q)];
    begin = Now();
    float best = -2;
    for (size_t i = 0; i < entries; ++i) {
      best = std::max(best, dot(query.data(), vectors[i].data(), encoder.dim()));
    }
    brute.push_back(Now() - begin);
    const auto found = index.Search(query, 1);
    right += !found.empty() && found[0].similarity >= best - 1e-5f;
  }
  std::printf("recall@1 against brute force: %.4f; brute force p50 %.2f ms\n",
              static_cast<double>(right) / kSearches, Percentile(brute, 0.5) * 1e3);
  // Searches on this thread while another puts entries in, 200 a second.
  for (const bool with_inserts : {false, true}) {
    std::atomic<bool> is_over = false;
    size_t inserted = 0;
    std::thread inserter([&] {
      const double start = Now();
      while (with_inserts && !is_over && inserted < 2900) {
        while (static_cast<double>(inserted) < (Now() - start) * 200 && inserted < 2900) {
          index.Add(entries + inserted, vectors[entries + 1000 + inserted]);
          ++inserted;
        }
        index.Upkeep(16);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    });
    std::vector<double> times;
    for (const double until = Now() + 8; Now() < until;) {
      const std::vector<float>& query = vectors[entries + times.size() % 1000];
      begin = Now();
      static_cast<void>(index.Search(query, 8));
      times.push_back(Now() - begin);
      std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
    is_over = true;
    inserter.join();
    std::printf(
        "search of 8, %s: p50 %.3f ms, p99 %.3f ms, worst %.3f ms (%zu searches, %zu inserts)\n",
        with_inserts ? "while inserting" : "at rest", Percentile(times, 0.5) * 1e3,
        Percentile(times, 0.99) * 1e3, Percentile(times, 1) * 1e3, times.size(), inserted);
  }
}

struct Score {
  int asked = 0, hits = 0, wrong = 0, stale = 0, misplaced = 0;
};

// The workload through a cache with these policies; an answer is its question's truth. A hit is
// wrong when it is another question's, stale when it is an older truth.
std::map<std::string, Score> RunWorkload(const std::vector<CategoryPolicy>& policies,
                                         const Categories& categories,
                                         const std::vector<BenchQuery>& queries,
                                         const std::vector<std::vector<float>>& vectors,
                                         bool one_category) {
  int64_t now_ms = 1;
  SemanticCache::Options options;
  options.categories = policies;
  options.dim = static_cast<int32_t>(vectors[0].size());
  options.entries_max = 10000;
  options.unix_ms = [&] { return now_ms; };
  const auto store = OpenSqliteStore(":memory:");
  TRIVIUM_CHECK(store.ok(), "{}", Message(store.status()));
  SemanticCache cache(std::move(options), store->get());
  std::map<std::string, Score> scores;
  for (size_t i = 0; i < queries.size(); ++i) {
    const BenchQuery& query = queries[i];
    now_ms = 1 + query.at_ms;
    CacheQuestion question;
    question.tenant = "t";
    question.scope = {1, 1};
    question.exact = {2, std::hash<std::string>()(query.text)};
    Reading reading = ReadQuestion(query.text);
    question.marks = std::move(reading.marks);
    question.tokens_max = 100;
    const size_t category =
        one_category ? *cache.CategoryNamed(kOtherCategory) : categories.Of(vectors[i]).category;
    Score& score = scores[query.category];
    ++score.asked;
    score.misplaced += policies[category].name != query.category;
    const std::string truth = fmt::format("{}/{}", query.intent, query.version);
    auto found = cache.FindExact(question, category);
    if (!found.has_value()) found = cache.Find(question, category, vectors[i]);
    const auto answer = found.has_value() ? cache.Answer(*found) : absl::NotFoundError("");
    if (answer.ok()) {
      ++score.hits;
      const bool is_same = answer->substr(0, answer->find('/')) == query.intent;
      score.wrong += !is_same;
      score.stale += is_same && *answer != truth;
      continue;
    }
    const absl::Status kept = cache.Insert(question, category, vectors[i], truth, 1);
    TRIVIUM_CHECK(kept.ok(), "{}", Message(kept));
    if (i % 64 == 0) cache.Upkeep();
  }
  return scores;
}

Score Total(const std::map<std::string, Score>& scores) {
  Score total;
  for (const auto& [category, s] : scores) {
    total.asked += s.asked;
    total.hits += s.hits;
    total.wrong += s.wrong;
    total.stale += s.stale;
  }
  return total;
}

double Part(int of, int all) { return all == 0 ? 0 : 100.0 * of / all; }

void Print(const char* name, const Score& s) {
  std::printf("  %-28s %6d asked  %5.1f %% hits  %5.2f %% of hits wrong  %5.2f %% stale\n", name,
              s.asked, Part(s.hits, s.asked), Part(s.wrong, s.hits), Part(s.stale, s.hits));
}

void BenchWorkload(embedding::TextEncoder& encoder, int count) {
  const std::vector<CategoryPolicy> policies = ShippedPolicies();
  const Categories categories = CategoriesOf(encoder, policies);
  BenchQuestions questions(3);
  const std::vector<BenchQuery> queries = questions.Workload(count);
  std::vector<std::string> texts;
  for (const BenchQuery& query : queries) texts.push_back(query.text);
  const std::vector<std::vector<float>> vectors = Embed(encoder, texts);
  const auto ours = RunWorkload(policies, categories, queries, vectors, false);
  std::printf("a policy each category, as shipped:\n");
  for (const auto& [category, score] : ours) {
    Print(category.c_str(), score);
    std::printf("    %.1f %% of them taken for another category\n",
                Part(score.misplaced, score.asked));
  }
  Print("all", Total(ours));
  std::vector<CategoryPolicy> loose = policies;
  for (CategoryPolicy& policy : loose) policy.guards = GuardLevel::kNone;
  Print("all, without guards", Total(RunWorkload(loose, categories, queries, vectors, false)));
  std::printf("one policy for all, an hour, no guards:\n");
  for (const float threshold : {0.75f, 0.80f, 0.85f, 0.90f, 0.95f, 0.98f}) {
    std::vector<CategoryPolicy> one = policies;
    for (CategoryPolicy& policy : one) {
      policy.threshold = threshold;
      policy.ttl_ms = 3600000;
      policy.quota = 1;
      policy.guards = GuardLevel::kNone;
    }
    const std::string name = fmt::format("threshold {:.2f}", threshold);
    Print(name.c_str(), Total(RunWorkload(one, categories, queries, vectors, true)));
  }
}

int Main(int argc, char** argv) {
  std::map<std::string, std::string> flags{
      {"--encoder", ""}, {"--entries", "100000"}, {"--queries", "20000"}, {"--part", ""}};
  for (int i = 1; i + 1 < argc; i += 2) flags[argv[i]] = argv[i + 1];
  const auto encoder = Load(flags["--encoder"]);
  const std::string& part = flags["--part"];
  if (part.empty() || part == "embed") BenchEmbedding(*encoder);
  if (part.empty() || part == "index") BenchIndex(*encoder, std::stoul(flags["--entries"]));
  if (part.empty() || part == "workload") BenchWorkload(*encoder, std::stoi(flags["--queries"]));
  return 0;
}

}  // namespace
}  // namespace trivium::router

int main(int argc, char** argv) { return trivium::router::Main(argc, argv); }

// What the cache costs and what it gets right: time of an embedding, recall and time of a search
// while entries come, and a workload of six categories whose true answers are known.
//
//   semantic_bench --encoder FOLDER [--entries 100000] [--queries 20000]
//                  [--part embed|index|workload|load|even]
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <deque>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/config/config.h"
#include "common/embedding/text_encoder.h"
#include "kernels/dot.h"
#include "services/router/semantic_cache/bench_questions.h"
#include "services/router/semantic_cache/break_even.h"
#include "services/router/semantic_cache/cache_service.h"
#include "services/router/semantic_cache/categories.h"
#include "services/router/semantic_cache/load_policy.h"
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
  int asked = 0, hits = 0, wrong = 0, stale = 0, misplaced = 0, refused = 0;
};

struct Run {
  bool one_category = false;  // for all questions
  bool is_told = false;       // of each change of prices: it is told to forget the old ones
  double model_s = 0;         // of a request; 0: the model is never busy
  bool follows_load = false;  // and lets the policies give way
};

// A model that answers one request after another.
class BusyModel {
 public:
  explicit BusyModel(double model_s) : model_s_(model_s) {}
  // False: too many wait, and this one is refused.
  bool Ask(double now_s, LoadPolicy* load) {
    while (!ends_.empty() && ends_.front() <= now_s) ends_.pop_front();
    if (ends_.size() >= kQueueMax) return false;
    const double begin_s = std::max(now_s, ends_.empty() ? 0.0 : ends_.back());
    ends_.push_back(begin_s + model_s_);
    load->FirstToken(At(now_s), begin_s - now_s + model_s_ / 4);
    return true;
  }
  float Load(double now_s, LoadPolicy* load) {
    while (!ends_.empty() && ends_.front() <= now_s) ends_.pop_front();
    return load->Update(At(now_s), static_cast<double>(ends_.size()));
  }

 private:
  static constexpr size_t kQueueMax = 256;
  static TimePoint At(double seconds) {
    return TimePoint() + std::chrono::duration_cast<Duration>(Seconds(1000 + seconds));
  }
  const double model_s_;
  std::deque<double> ends_;
};

// The workload through a cache with these policies; an answer is its question's truth. A hit is
// wrong when it is another question's, stale when it is an older truth.
std::map<std::string, Score> RunWorkload(const std::vector<CategoryPolicy>& policies,
                                         const Categories& categories,
                                         const std::vector<BenchQuery>& queries,
                                         const std::vector<std::vector<float>>& vectors,
                                         const Run& run) {
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
  LoadPolicy load({});
  BusyModel model(run.model_s);
  int version = 0;
  for (size_t i = 0; i < queries.size(); ++i) {
    const BenchQuery& query = queries[i];
    now_ms = 1 + query.at_ms;
    const double now_s = static_cast<double>(now_ms) / 1000;
    if (run.model_s > 0) {
      const float told = model.Load(now_s, &load);
      if (run.follows_load) cache.SetLoad(told);
    }
    if (run.is_told && query.category == "prices" &&
        std::exchange(version, query.version) != query.version) {
      TRIVIUM_CHECK(cache.Invalidate({.category = "prices"}).ok(), "the store is away");
    }
    CacheQuestion question;
    question.tenant = "t";
    question.scope = {1, 1};
    question.exact = {2, std::hash<std::string>()(query.text)};
    Reading reading = ReadQuestion(query.text);
    question.marks = std::move(reading.marks);
    question.tokens_max = 100;
    const size_t category = run.one_category ? *cache.CategoryNamed(kOtherCategory)
                                             : categories.Of(vectors[i]).category;
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
    if (run.model_s > 0 && !model.Ask(now_s, &load)) {
      ++score.refused;
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

struct Workload {
  Workload(embedding::TextEncoder& encoder, int count, uint32_t seed)
      : policies(ShippedPolicies()),
        categories(CategoriesOf(encoder, policies)),
        queries(BenchQuestions(seed).Workload(count)) {
    std::vector<std::string> texts;
    for (const BenchQuery& query : queries) texts.push_back(query.text);
    vectors = Embed(encoder, texts);
  }
  const std::vector<CategoryPolicy> policies;  // as shipped
  const Categories categories;
  const std::vector<BenchQuery> queries;
  std::vector<std::vector<float>> vectors;
};

void BenchWorkload(embedding::TextEncoder& encoder, int count) {
  const auto& [policies, categories, queries, vectors] = Workload(encoder, count, 3);
  const auto ours = RunWorkload(policies, categories, queries, vectors, {});
  std::printf("a policy each category, as shipped:\n");
  for (const auto& [category, score] : ours) {
    Print(category.c_str(), score);
    std::printf("    %.1f %% of them taken for another category\n",
                Part(score.misplaced, score.asked));
  }
  Print("all", Total(ours));
  std::vector<CategoryPolicy> loose = policies;
  for (CategoryPolicy& policy : loose) policy.guards = GuardLevel::kNone;
  Print("all, without guards", Total(RunWorkload(loose, categories, queries, vectors, {})));
  const auto told = RunWorkload(policies, categories, queries, vectors, {.is_told = true});
  Print("prices, told of changes", told.at("prices"));
  Print("all, told of changes", Total(told));
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
    Print(name.c_str(),
          Total(RunWorkload(one, categories, queries, vectors, {.one_category = true})));
  }
}

// The same questions to a model that keeps up, and to one five times as slow: first one that is
// just busy then, and one that has to refuse half of what it is asked; each with policies that stay
// and with policies that follow the load.
void BenchLoad(embedding::TextEncoder& encoder, int count) {
  const auto& [policies, categories, queries, vectors] = Workload(encoder, count, 4);
  for (const double model_s : {0.6, 3.0, 1.5, 7.5}) {
    std::map<std::string, Score> scores[2];
    for (const bool follows : {false, true}) {
      scores[follows] = RunWorkload(policies, categories, queries, vectors,
                                    {.model_s = model_s, .follows_load = follows});
    }
    std::printf("a request takes %.1f s; policies that follow the load against such that stay:\n",
                model_s);
    for (const auto& [category, stays] : scores[0]) {
      const Score& follows = scores[1].at(category);
      std::printf(
          "  %-8s hits %5.1f → %5.1f %%, %5.1f %% fewer for the model; refused %d → %d, wrong %d → "
          "%d, "
          "stale %d → %d\n",
          category.c_str(), Part(stays.hits, stays.asked), Part(follows.hits, follows.asked),
          Part(follows.hits - stays.hits, stays.asked - stays.hits), stays.refused, follows.refused,
          stays.wrong, follows.wrong, stays.stale, follows.stale);
    }
  }
}

// From which hit rate on looking pays, by times of this machine, for models of several speeds.
void BenchBreakEven(embedding::TextEncoder& encoder) {
  const std::vector<CategoryPolicy> policies = ShippedPolicies();
  const Categories categories = CategoriesOf(encoder, policies);
  BenchQuestions questions(5);
  const auto store = OpenSqliteStore(":memory:");
  TRIVIUM_CHECK(store.ok(), "{}", Message(store.status()));
  SemanticCache::Options options;
  options.categories = policies;
  options.dim = encoder.dim();
  options.unix_ms = [] { return int64_t{1}; };
  SemanticCache cache(std::move(options), store->get());
  std::map<double, BreakEven> models;
  for (const double model_s : {0.1, 0.5, 2.0}) models.try_emplace(model_s, policies.size());
  const std::string answer(600, 'x');
  for (const std::string& text : questions.Distinct(3000)) {
    CacheQuestion question;
    question.tenant = "t";
    question.scope = {1, 1};
    question.exact = {2, std::hash<std::string>()(text)};
    question.tokens_max = 100;
    double begin = Now();
    const std::vector<float> vector = encoder.Encode(std::vector<std::string>{text})[0].vector;
    const size_t category = categories.Of(vector).category;
    question.marks = ReadQuestion(text).marks;
    const auto found = cache.Find(question, category, vector);
    const double look_s = Now() - begin;
    begin = Now();
    TRIVIUM_CHECK(cache.Insert(question, category, vector, answer, 1).ok(), "insert");
    const double insert_s = Now() - begin;
    begin = Now();
    TRIVIUM_CHECK(cache.Answer(*cache.FindExact(question, category)).ok(), "fetch");
    const double fetch_s = Now() - begin;
    for (auto& [model_s, even] : models) {
      even.Looked(0, found.has_value(), look_s);
      even.Inserted(insert_s);
      even.Fetched(fetch_s);
      even.Answered(model_s);
    }
  }
  for (const auto& [model_s, even] : models) {
    std::printf("looking pays from %.2f %% hits on where the model takes %.1f s\n",
                100 * even.state(0).break_even, model_s);
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
  const int queries = std::stoi(flags["--queries"]);
  if (part.empty() || part == "workload") BenchWorkload(*encoder, queries);
  if (part.empty() || part == "load") BenchLoad(*encoder, queries);
  if (part.empty() || part == "even") BenchBreakEven(*encoder);
  return 0;
}

}  // namespace
}  // namespace trivium::router

int main(int argc, char** argv) { return trivium::router::Main(argc, argv); }

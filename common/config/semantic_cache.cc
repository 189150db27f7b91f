// The categories of the semantic cache as shipped, and what goes beyond one field of its part.
#include <map>
#include <string_view>

#include "common/config/config.h"
#include "common/net/address.h"

namespace trivium::config {
namespace {

constexpr int kCategoriesMax = 64, kExamplesMax = 64;
constexpr double kRounding = 1e-9, kDay = 86400;
constexpr std::string_view kSafety = "advice";

// Thresholds of code and chat are the paper's (see docs/semantic-cache.md). Where answers go stale
// or do harm, load changes nothing.
struct Shipped {
  const char* name;
  double threshold, ttl_s, quota, relax, stretch;
  std::initializer_list<const char*> examples;
};
const Shipped kShipped[] = {
    {"code",
     0.90,
     7 * kDay,
     0.35,
     0,
     1,
     {"How do I sort a list of dictionaries by a key in Python?",
      "write a function that reverses a linked list",
      "What does this error mean: segmentation fault (core dumped)?", "fix the bug in this loop",
      "SQL query that joins two tables and counts rows", "How to undo the last git commit?",
      "regular expression that matches an email address",
      "difference between a pointer and a reference in C++", "how to parse JSON in JavaScript",
      "what is the time complexity of quicksort"}},
    {"docs",
     0.88,
     7 * kDay,
     0.20,
     0.05,
     1,
     {"How do I configure the timeout of the client?",
      "Which parameters does this API endpoint take?", "How do I install the package on Ubuntu?",
      "Where is the configuration file of the server?", "What are the rate limits of the API?",
      "how to reset a password in the admin console", "What is the default port of PostgreSQL?",
      "how to upgrade to the latest version", "how do I get an API key",
      "what file formats are supported for upload"}},
    {"chat",
     0.75,
     3600,
     0.15,
     0.05,
     1,
     {"Hello, how are you today?", "Tell me a joke.", "What is the capital of France?",
      "Who wrote Romeo and Juliet?", "Recommend a good book to read", "Give me ideas for dinner",
      "What is the meaning of life?", "Tell me a fun fact about animals", "why is the sky blue",
      "how tall is Mount Everest", "write a short poem about autumn"}},
    {"prices",
     0.90,
     60,
     0.05,
     0,
     0,
     {"What is the price of gold today?", "How much does a share of Apple cost right now?",
      "current exchange rate of euro to dollar", "What is the weather tomorrow?",
      "latest news about the election", "bitcoin price now", "who won the game last night",
      "What time does the store close today?", "stock market today",
      "how much is a flight to London"}},
    {"advice",
     0.95,
     kDay,
     0.10,
     0,
     0,
     {"Can I take ibuprofen together with aspirin?", "What are the symptoms of a heart attack?",
      "Is it legal to record a phone call?", "Should I invest in bonds or stocks?",
      "how much paracetamol is too much", "Can a landlord evict a tenant without notice?",
      "How do I treat a burn?", "What is the dose for a child?", "should I refinance a mortgage",
      "how do taxes on capital gains work", "is this mole dangerous"}},
    {"other", 0.80, 3600, 0.10, 0, 0, {}},
};

// What `category` does not say, by `from`.
void Inherit(const Shipped& from, v1::CacheCategoryConfig* category) {
  if (!category->has_threshold()) category->set_threshold(from.threshold);
  if (!category->has_ttl_s()) category->set_ttl_s(from.ttl_s);
  if (!category->has_relax()) category->set_relax(from.relax);
  if (!category->has_stretch()) category->set_stretch(from.stretch);
  const bool is_its_own = category->name() == from.name;
  if (!category->has_quota() && is_its_own) category->set_quota(from.quota);
  if (category->examples().empty() && is_its_own) {
    for (const char* example : from.examples) category->add_examples(example);
  }
}

absl::Status CheckCategories(const v1::SemanticCacheConfig& config) {
  double quotas = 0;
  for (const v1::CacheCategoryConfig& category : config.categories()) {
    const std::string place = "semantic_cache.categories (" + category.name() + ")";
    quotas += category.quota();
    if (category.examples_size() > kExamplesMax) {
      return InvalidArgument("{}.examples: {}; allowed: 0 to {}", place, category.examples_size(),
                             kExamplesMax);
    }
    if (category.name() == kSafety && (category.relax() > 0 || category.stretch() > 0)) {
      return InvalidArgument("{}: relax and stretch must be 0: load never loosens it", place);
    }
    if (category.threshold() - category.relax() < 0.5) {
      return InvalidArgument("{}: threshold less relax is below 0.5", place);
    }
  }
  if (quotas <= 1 + kRounding) return absl::OkStatus();
  return InvalidArgument("semantic_cache.categories: quota of all is {:.3g}; allowed: at most 1",
                         quotas);
}

}  // namespace

// Before CompleteFields, which would set what is not said.
absl::Status AddShippedCategories(v1::SemanticCacheConfig* config) {
  if (!config->enabled()) return absl::OkStatus();
  if (config->categories_size() > kCategoriesMax) {
    return InvalidArgument("semantic_cache.categories: {}; allowed: 0 to {}",
                           config->categories_size(), kCategoriesMax);
  }
  std::map<std::string, v1::CacheCategoryConfig> said;
  std::vector<std::string> order;
  for (int i = 0; i < config->categories_size(); ++i) {
    const v1::CacheCategoryConfig& category = config->categories(i);
    const std::string place = fmt::format("semantic_cache.categories[{}].name", i);
    if (category.name().empty()) return InvalidArgument("{}: not set", place);
    if (!said.emplace(category.name(), category).second) {
      return InvalidArgument("{}: {} is listed twice", place, category.name());
    }
    order.push_back(category.name());
  }
  config->clear_categories();
  for (const Shipped& shipped : kShipped) {
    v1::CacheCategoryConfig& category = *config->add_categories();
    if (const auto it = said.find(shipped.name); it != said.end()) category = it->second;
    category.set_name(shipped.name);
    Inherit(shipped, &category);
    said.erase(shipped.name);
  }
  for (const std::string& name : order) {
    if (!said.contains(name)) continue;
    v1::CacheCategoryConfig& category = *config->add_categories();
    category = said.at(name);
    Inherit(std::end(kShipped)[-1], &category);
  }
  return absl::OkStatus();
}

absl::Status CheckSemanticCache(const v1::SemanticCacheConfig& config) {
  if (!config.enabled()) return absl::OkStatus();
  if (config.encoder().empty()) {
    return InvalidArgument(
        "semantic_cache.encoder: not set; name the folder that `deploy/fetch-model minilm` prints");
  }
  const bool is_redis = config.store() == "redis";
  if (is_redis != !config.redis_address().empty()) {
    return InvalidArgument(
        "semantic_cache.redis_address: needed with store: redis, and only there");
  }
  if (is_redis && config.redis_address().rfind("unix:", 0) == 0) {
    return InvalidArgument("semantic_cache.redis_address: must be host:port");
  }
  const v1::CacheLoadConfig& load = config.load();
  if (load.ttft_low_s() >= load.ttft_high_s() || load.queue_low() >= load.queue_high()) {
    return InvalidArgument("semantic_cache.load: each low mark must be below its high one");
  }
  return CheckCategories(config);
}

}  // namespace trivium::config

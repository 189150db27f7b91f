#include "services/router/semantic_cache/bench_questions.h"

#include <fmt/format.h>

#include <cmath>
#include <set>

namespace trivium::router {
namespace {

using Strings = std::vector<std::string>;

const Strings kActions = {"sort",      "reverse",  "copy",  "merge",        "filter", "print",
                          "compare",   "split",    "count", "iterate over", "search", "shuffle",
                          "serialise", "validate", "cache", "hash"};
const Strings kThings = {"a list of dictionaries",
                         "an array of integers",
                         "a linked list",
                         "a string",
                         "a hash map",
                         "two sorted arrays",
                         "a binary tree",
                         "a JSON file",
                         "a CSV file",
                         "a set of tuples",
                         "a priority queue",
                         "a date",
                         "a matrix",
                         "an XML document",
                         "a log file",
                         "a queue of jobs"};
const Strings kLanguages = {"Python", "Java", "JavaScript", "Rust", "C++", "Go", "Ruby"};
const Strings kCodeForms = {"How do I {} {} in {}?",
                            "how can I {} {} in {}",
                            "{} {} in {}: how is it done?",
                            "Show me how to {} {} in {}",
                            "I want to {} {} in {}, how?",
                            "What is the best way to {} {} in {}?",
                            "please explain how to {} {} in {}"};

const Strings kDocActions = {"configure", "install", "upgrade", "remove",  "monitor",
                             "restart",   "back up", "secure",  "migrate", "debug"};
const Strings kProducts = {"PostgreSQL", "Redis",      "Kafka",   "nginx",         "Kubernetes",
                           "Docker",     "Prometheus", "Grafana", "Elasticsearch", "RabbitMQ",
                           "MongoDB",    "Jenkins",    "GitLab",  "Terraform",     "Ansible"};
const Strings kSystems = {"on Ubuntu", "on Windows", "on a Mac", "in a container",
                          "behind a proxy"};
const Strings kDocForms = {"How do I {} {} {}?",
                           "how to {} {} {}",
                           "What are the steps to {} {} {}?",
                           "Where do the docs say how to {} {} {}?",
                           "I need to {} {} {}",
                           "Explain how to {} {} {}."};

const Strings kFacts = {
    "capital",      "population",    "national anthem",  "currency",          "flag",
    "largest city", "longest river", "highest mountain", "official language", "climate",
    "history",      "national dish", "president"};
const Strings kCountries = {
    "France",  "Spain",   "Italy",  "Japan", "Brazil",  "Canada",   "Kenya",  "India",  "Norway",
    "Peru",    "Egypt",   "Poland", "Chile", "Vietnam", "Greece",   "Turkey", "Mexico", "Ghana",
    "Ireland", "Iceland", "Nepal",  "Cuba",  "Finland", "Portugal", "Hungary"};
const Strings kChatForms = {"What is the {} of {}?",         "what's the {} of {}",
                            "Tell me the {} of {}.",         "Do you know the {} of {}?",
                            "I'd like to know the {} of {}", "the {} of {}?"};
const Strings kJokes = {"cats",     "dogs",     "lawyers",  "doctors", "penguins", "programmers",
                        "teachers", "pirates",  "chickens", "robots",  "ghosts",   "elephants",
                        "bananas",  "bicycles", "the moon", "rain"};
const Strings kJokeForms = {"Tell me a joke about {}", "do you know a joke about {}?",
                            "Give me a joke about {}, please"};

const Strings kAssets = {"gold",
                         "silver",
                         "oil",
                         "copper",
                         "wheat",
                         "coffee",
                         "bitcoin",
                         "ethereum",
                         "Apple stock",
                         "Tesla stock",
                         "Microsoft stock",
                         "Amazon stock",
                         "Intel stock",
                         "the euro in dollars",
                         "the pound in euros",
                         "the yen in dollars"};
const Strings kPriceForms = {"What is the price of {} today?", "price of {} now",
                             "How much is {} right now?", "current price of {}",
                             "Tell me today's price of {}"};

const Strings kDrugs = {"ibuprofen",  "aspirin",      "paracetamol", "naproxen", "amoxicillin",
                        "metformin",  "omeprazole",   "warfarin",    "insulin",  "prednisone",
                        "lisinopril", "atorvastatin", "sertraline",  "codeine"};
const Strings kAdviceForms = {"Can I take {} together with {}?",
                              "Is it safe to take {} and {} at the same time?",
                              "may {} be combined with {}", "What happens when I take {} with {}?"};

const Strings kAdjectives = {"old",       "broken", "blue",     "tiny",    "famous", "expensive",
                             "forgotten", "wooden", "electric", "silent",  "heavy",  "golden",
                             "frozen",    "modern", "ancient",  "portable"};
const Strings kNouns = {"bridge",   "violin",    "garden", "engine",  "castle",  "market",
                        "painting", "telescope", "island", "library", "kitchen", "museum",
                        "tractor",  "harbour",   "mirror", "carpet",  "candle",  "statue"};
const Strings kPlaces = {
    "in a village", "near the sea",      "in the mountains", "of the last century", "for children",
    "made by hand", "on a small budget", "during winter",    "without electricity", "at night"};
const Strings kOtherForms = {"Describe a {} {} {}", "Write two sentences about a {} {} {}",
                             "Why would anybody want a {} {} {}?", "How would you draw a {} {} {}?",
                             "What would a {} {} {} cost to restore?"};

const std::string& At(const Strings& strings, size_t i) { return strings[i % strings.size()]; }

// Fills the places of `form`, in order.
std::string Fill(const std::string& form, const Strings& parts) {
  std::string out;
  size_t next = 0;
  for (size_t at = 0; at < form.size(); ++at) {
    if (form.compare(at, 2, "{}") == 0) {
      out += parts[next++];
      ++at;
    } else {
      out += form[at];
    }
  }
  return out;
}

struct Intent {
  Strings parts;
  const Strings* forms;
};

Intent CodeIntent(size_t i) {
  return {{At(kActions, i), At(kThings, i / kActions.size() + i), At(kLanguages, i / 3)},
          &kCodeForms};
}
Intent DocIntent(size_t i) {
  return {{At(kDocActions, i), At(kProducts, i / kDocActions.size() + i), At(kSystems, i / 7)},
          &kDocForms};
}
Intent ChatIntent(size_t i) {
  if (i % 9 == 0) return {{At(kJokes, i / 9)}, &kJokeForms};
  return {{At(kFacts, i), At(kCountries, i / kFacts.size() + i)}, &kChatForms};
}
Intent AdviceIntent(size_t i) {
  // Either order is the same question: only one of them is asked.
  const size_t n = kDrugs.size();
  const size_t first = i % (n - 1), step = 1 + i / (n - 1) % (n - 1 - first);
  return {{kDrugs[first], kDrugs[first + step]}, &kAdviceForms};
}
Intent OtherIntent(size_t i) {
  const size_t n = kAdjectives.size(), m = kNouns.size(), p = kPlaces.size();
  const std::string& form = kOtherForms[i / (n * m * p) % kOtherForms.size()];
  return {{At(kAdjectives, i), kNouns[i / n % m], kPlaces[i / (n * m) % p], form}, nullptr};
}

}  // namespace

size_t BenchQuestions::Zipf(size_t items) {
  constexpr double kExponent = 1.1;
  double total = 0;
  for (size_t i = 1; i <= items; ++i) total += std::pow(static_cast<double>(i), -kExponent);
  double drawn = std::uniform_real_distribution<double>(0, total)(random_);
  for (size_t i = 1; i < items; ++i) {
    drawn -= std::pow(static_cast<double>(i), -kExponent);
    if (drawn < 0) return i - 1;
  }
  return items - 1;
}

std::string BenchQuestions::Long() {
  const Intent a = CodeIntent(Below(1000)), b = OtherIntent(Below(2880));
  return fmt::format("{} It is for a {} {} that has to work {}.",
                     Fill(At(kCodeForms, Below(kCodeForms.size())), a.parts), b.parts[0],
                     b.parts[1], b.parts[2]);
}

std::vector<std::string> BenchQuestions::Distinct(size_t count) {
  std::set<std::string> seen;
  std::vector<std::string> texts;
  while (texts.size() < count) {
    std::string text;
    const Intent code = CodeIntent(Below(1792)), other = OtherIntent(Below(14400));
    switch (Below(3)) {
      case 0:
        text = Fill(other.parts[3], other.parts);
        break;
      case 1:
        text = Fill(At(kCodeForms, Below(kCodeForms.size())), code.parts) + " The input is a " +
               other.parts[0] + " " + other.parts[1] + ".";
        break;
      default: {
        const Intent chat = ChatIntent(1 + Below(3000) * 9 % 2000);
        text = Fill((*chat.forms)[Below(chat.forms->size())], chat.parts) + " And a " +
               other.parts[0] + " " + other.parts[1] + " " + other.parts[2] + "?";
      }
    }
    if (seen.insert(text).second) texts.push_back(std::move(text));
  }
  return texts;
}

std::vector<BenchQuery> BenchQuestions::Workload(int count) {
  constexpr int64_t kHours = 10 * 3600000, kPriceMs = 900000;
  std::vector<BenchQuery> queries;
  for (int i = 0; i < count; ++i) {
    BenchQuery query;
    query.at_ms = kHours * i / count;
    Intent intent;
    switch (Below(6)) {
      case 0:
        query.category = "code";
        intent = CodeIntent(Zipf(600));
        break;
      case 1:
        query.category = "docs";
        intent = DocIntent(Zipf(400));
        break;
      case 2:
        query.category = "chat";
        intent = ChatIntent(Below(325));
        break;
      case 3:
        query.category = "prices";
        intent = {{At(kAssets, Zipf(kAssets.size()))}, &kPriceForms};
        query.version = static_cast<int>(query.at_ms / kPriceMs);
        break;
      case 4:
        query.category = "advice";
        intent = AdviceIntent(Below(182));
        break;
      default:
        query.category = "other";
        intent = OtherIntent(Below(14400));
        break;
    }
    const std::string& form =
        intent.forms == nullptr ? intent.parts[3] : (*intent.forms)[Below(intent.forms->size())];
    for (const std::string& part : intent.parts) query.intent += part + "|";
    query.text = Fill(form, intent.parts);
    queries.push_back(std::move(query));
  }
  return queries;
}

}  // namespace trivium::router

#include <cstdio>

#include "services/cli/client.h"
#include "services/cli/commands.h"
#include "services/cli/table.h"

namespace trivium::cli {
namespace {

int Print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  return 0;
}

std::string StatsTable(const v1::CacheStatsResponse& stats) {
  std::vector<std::vector<std::string>> rows{{"category", "hits", "misses", "hit rate", "pays from",
                                              "guarded", "entries", "MiB", "threshold", "ttl s",
                                              "evicted", ""}};
  for (const v1::CacheCategoryStatus& c : stats.categories()) {
    rows.push_back({c.category(), std::to_string(c.hits()), std::to_string(c.misses()),
                    fmt::format("{:.1f}%", 100 * c.hit_rate()),
                    fmt::format("{:.1f}%", 100 * c.break_even_hit_rate()),
                    std::to_string(c.guarded()), std::to_string(c.entries()),
                    fmt::format("{:.1f}", static_cast<double>(c.bytes()) / (1 << 20)),
                    fmt::format("{:.2f}", c.threshold()), fmt::format("{:g}", c.ttl_s()),
                    std::to_string(c.evicted()),
                    !c.enabled()    ? "off"
                    : c.suspended() ? "suspended"
                                    : ""});
  }
  return Table(rows);
}

std::string ExplanationText(const v1::CacheExplainResponse& explained) {
  if (!explained.bypass().empty()) return "not for the cache: " + explained.bypass() + "\n";
  std::string text = "category " + explained.category();
  if (explained.confidence() > 0) text += fmt::format(", {:.2f} sure", explained.confidence());
  text += explained.has_same_words() ? "; found by the same words\n" : "\n";
  for (const v1::CacheCandidate& one : explained.candidates()) {
    text +=
        fmt::format("  {:.3f}  {:8.0f} s old  {}\n", one.similarity(), one.age_s(), one.verdict());
  }
  return text;
}

}  // namespace

int RunCache(const Options& options) {
  Client client(options.router, 0, options.api_key);
  if (options.cache.action == "stats") {
    const auto stats = client.CacheStats();
    return stats.ok() ? Print(StatsTable(*stats)) : Fail(stats.status());
  }
  if (options.cache.action == "invalidate") {
    v1::CacheInvalidateRequest request;
    request.set_tenant(options.cache.tenant);
    request.set_category(options.cache.category);
    request.set_older_than_s(options.cache.older_than_s);
    const auto gone = client.CacheInvalidate(request);
    if (!gone.ok()) return Fail(gone.status());
    return Print(fmt::format("{} answers dropped\n", gone->entries()));
  }
  if (options.cache.question.empty()) {
    return Fail(absl::InvalidArgumentError("explain needs --question TEXT"));
  }
  v1::GenerateRequest request;
  if (!options.system.empty()) {
    v1::Message* system = request.mutable_chat()->add_messages();
    system->set_role("system");
    system->set_content(options.system);
  }
  v1::Message* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content(options.cache.question);
  request.mutable_cache()->set_category(options.cache.category);
  const auto explained = client.CacheExplain(request);
  return explained.ok() ? Print(ExplanationText(*explained)) : Fail(explained.status());
}

}  // namespace trivium::cli

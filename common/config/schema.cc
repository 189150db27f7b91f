#include "common/config/schema.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "common/net/address.h"
#include "common/net/text.h"

namespace trivium::config {
namespace {

constexpr double kKiB = 1 << 10, kMiB = 1 << 20;
constexpr double kEpochMax = 2147483647;
constexpr std::string_view kNameForm = "at most 64 of A-Z a-z 0-9 . _ -";

const std::vector<FieldRule>& Rules() {
  static const auto* rules = new std::vector<FieldRule>{
      {.field = "ServerConfig.listen", .form = FieldRule::Form::kAddress},
      {.field = "ServerConfig.metrics_listen", .form = FieldRule::Form::kAddress},
      {.field = "ServerConfig.log_level",
       .text = "info",
       .choices = {"trace", "debug", "info", "warning", "error"}},
      {.field = "ServerConfig.drain_timeout_s", .min = 1, .max = 3600, .value = 30},
      {.field = "EngineConfig.threads", .min = 1, .max = 256},
      {.field = "EngineConfig.isa",
       .text = "auto",
       .choices = {"auto", "reference", "avx2", "avx512", "amx"}},
      {.field = "EngineConfig.numerics", .text = "fast", .choices = {"fast", "batch_invariant"}},
      {.field = "EngineConfig.kv_memory_bytes",
       .min = kMiB,
       .max = 16 * kMiB * kMiB,
       .value = 1024 * kMiB,
       .is_bytes = true},
      {.field = "EngineConfig.step_tokens", .min = 16, .max = 65536, .value = 512},
      {.field = "EngineConfig.requests_max", .min = 1, .max = 4096, .value = 64},
      {.field = "EngineConfig.kv_type", .text = "f16", .choices = {"f16", "bf16", "int8"}},
      {.field = "EngineConfig.admission", .text = "expected", .choices = {"expected", "full"}},
      {.field = "EngineConfig.prefill_policy",
       .text = "chunked",
       .choices = {"chunked", "layered"}},
      {.field = "EngineConfig.step_target_ms", .min = 0, .max = 60000, .value = 0},
      {.field = "KvTiersConfig.memory_bytes", .min = 0, .max = 16 * kMiB * kMiB, .is_bytes = true},
      {.field = "KvTiersConfig.disk_bytes", .min = 0, .max = 16 * kMiB * kMiB, .is_bytes = true},
      {.field = "TransferConfig.interface", .text = "lo"},
      {.field = "TransferConfig.timeout_scale", .min = 0.05, .max = 100, .value = 1},
      {.field = "TransferConfig.transports", .text = "posix,tcp,self"},
      {.field = "TransferConfig.port", .min = 0, .max = 65535, .value = 0},
      {.field = "TransferConfig.port_count", .min = 16, .max = 16384, .value = 256},
      {.field = "WorkerConfig.worker_id", .form = FieldRule::Form::kName},
      {.field = "WorkerEndpoint.address", .form = FieldRule::Form::kAddress},
      {.field = "WorkerEndpoint.role", .choices = {"prefill", "decode", "encode"}},
      {.field = "RouterConfig.queue_requests", .min = 0, .max = 100000, .value = 1024},
      {.field = "RouterConfig.queue_timeout_s", .min = 0, .max = 86400, .value = 60},
      {.field = "RouterConfig.attempts_max", .min = 1, .max = 100, .value = 8},
      {.field = "RouterConfig.worker_suspect_s", .min = 0.05, .max = 3600, .value = 1.5},
      {.field = "RouterConfig.default_max_tokens", .min = 1, .max = 1000000, .value = 256},
      {.field = "RouterConfig.stage_missing_timeout_s", .min = 0.05, .max = 3600, .value = 3},
      {.field = "RouterConfig.placement",
       .text = "predicted_cost",
       .choices = {"predicted_cost", "least_loaded", "round_robin"}},
  };
  return *rules;
}

const std::vector<FieldRule>& HttpRules() {
  static const auto* rules = new std::vector<FieldRule>{
      {.field = "HttpConfig.listen", .form = FieldRule::Form::kAddress},
      {.field = "HttpConfig.connections_max", .min = 1, .max = 65536, .value = 1024},
      {.field = "HttpConfig.header_bytes_max",
       .min = kKiB,
       .max = kMiB,
       .value = 16 * kKiB,
       .is_bytes = true},
      {.field = "HttpConfig.body_bytes_max",
       .min = kKiB,
       .max = 1024 * kMiB,
       .value = 8 * kMiB,
       .is_bytes = true},
      {.field = "HttpConfig.body_memory_bytes",
       .min = kKiB,
       .max = kMiB * kMiB,
       .value = 256 * kMiB,
       .is_bytes = true},
      {.field = "HttpConfig.header_timeout_s", .min = 0.05, .max = 3600, .value = 10},
      {.field = "HttpConfig.body_timeout_s", .min = 0.05, .max = 3600, .value = 60},
      {.field = "HttpConfig.idle_timeout_s", .min = 0.05, .max = 3600, .value = 75},
      {.field = "HttpConfig.write_timeout_s", .min = 0.05, .max = 3600, .value = 30},
  };
  return *rules;
}

const std::vector<FieldRule>& TenancyRules() {
  static const auto* rules = new std::vector<FieldRule>{
      {.field = "TenancyConfig.key_epoch", .min = 0, .max = kEpochMax, .value = 0},
      {.field = "TenantConfig.id", .form = FieldRule::Form::kName},
      {.field = "TenantConfig.api_key_sha256", .form = FieldRule::Form::kSha256},
      {.field = "TenantConfig.kv_sharing", .text = "private", .form = FieldRule::Form::kSharing},
      {.field = "TenantConfig.kv_quota", .min = 0.001, .max = 1, .value = 1},
      {.field = "TenantConfig.kv_floor", .min = 0, .max = 0.9, .value = 0},
      {.field = "TenantConfig.weight", .min = 0.01, .max = 100, .value = 1},
      {.field = "SemanticCacheConfig.encoder_threads", .min = 1, .max = 64, .value = 1},
      {.field = "SemanticCacheConfig.entries_max", .min = 100, .max = 10000000, .value = 100000},
      {.field = "SemanticCacheConfig.bytes_max",
       .min = kMiB,
       .max = 16 * kMiB * kMiB,
       .value = 256 * kMiB,
       .is_bytes = true},
      {.field = "SemanticCacheConfig.temperature_max", .min = 0, .max = 100, .value = 0.3},
      {.field = "SemanticCacheConfig.store", .text = "sqlite", .choices = {"sqlite", "redis"}},
      {.field = "SemanticCacheConfig.redis_address", .form = FieldRule::Form::kAddress},
      {.field = "CacheLoadConfig.ttft_low_s", .min = 0, .max = 3600, .value = 1},
      {.field = "CacheLoadConfig.ttft_high_s", .min = 0.001, .max = 3600, .value = 5},
      {.field = "CacheLoadConfig.queue_low", .min = 0, .max = 100000, .value = 4},
      {.field = "CacheLoadConfig.queue_high", .min = 1, .max = 100001, .value = 32},
      {.field = "CacheCategoryConfig.name", .form = FieldRule::Form::kName},
      {.field = "CacheCategoryConfig.threshold", .min = 0.5, .max = 1, .value = 0.80},
      {.field = "CacheCategoryConfig.ttl_s", .min = 0.001, .max = 31536000, .value = 3600},
      {.field = "CacheCategoryConfig.quota", .min = 0.001, .max = 1, .value = 0.05},
      {.field = "CacheCategoryConfig.guards",
       .text = "strict",
       .choices = {"strict", "names", "none"}},
      {.field = "CacheCategoryConfig.relax", .min = 0, .max = 0.2, .value = 0},
      {.field = "CacheCategoryConfig.stretch", .min = 0, .max = 10, .value = 0},
      {.field = "PublicPrefixConfig.id", .form = FieldRule::Form::kName},
      {.field = "PublicPrefixConfig.chat_role", .form = FieldRule::Form::kName},
      {.field = "PublicPrefixConfig.pin_s", .min = 0, .max = 86400, .value = 600},
  };
  return *rules;
}

const std::vector<FieldRule>& PictureRules() {
  static const auto* rules = new std::vector<FieldRule>{
      {.field = "WorkerPicturesConfig.memory_bytes",
       .min = 0,
       .max = 16 * kMiB * kMiB,
       .is_bytes = true},
      {.field = "WorkerPicturesConfig.encode", .text = "workers", .choices = {"workers", "local"}},
      {.field = "RouterPicturesConfig.count_max", .min = 1, .max = 256, .value = 16},
      {.field = "RouterPicturesConfig.bytes_max",
       .min = kKiB,
       .max = 12 * kMiB,
       .value = 8 * kMiB,
       .is_bytes = true},
      {.field = "RouterPicturesConfig.total_bytes_max",
       .min = kKiB,
       .max = 12 * kMiB,
       .value = 12 * kMiB,
       .is_bytes = true},
      {.field = "RouterPicturesConfig.side_max", .min = 1, .max = 16384, .value = 16384},
      {.field = "RouterPicturesConfig.pixels_max", .min = 1, .max = 36 * kMiB, .value = 36 * kMiB},
      {.field = "RouterPicturesConfig.memory_bytes",
       .min = kMiB,
       .max = kMiB * kMiB,
       .value = 512 * kMiB,
       .is_bytes = true},
      {.field = "PublicPictureConfig.id", .form = FieldRule::Form::kName},
  };
  return *rules;
}

// Without an exponent where the number is whole.
std::string Plain(double value) {
  const bool whole = std::abs(value) < 1e15 && value == std::floor(value);
  return whole ? fmt::format("{:.0f}", value) : fmt::format("{}", value);
}

// "16 KiB": of sizes that are whole in the largest unit not above them.
std::string PlainBytes(double bytes) {
  constexpr const char* kUnits[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  for (; bytes >= 1024 && unit + 1 < std::size(kUnits); bytes /= 1024) ++unit;
  return fmt::format("{} {}", Plain(bytes), kUnits[unit]);
}

bool IsName(std::string_view text) {
  constexpr std::string_view kAllowed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  return text.size() <= kNameBytesMax && text.find_first_not_of(kAllowed) == std::string_view::npos;
}

bool IsSha256(std::string_view text) {
  return text.size() == 64 &&
         text.find_first_not_of("0123456789abcdefABCDEF") == std::string_view::npos;
}

bool IsSharing(std::string_view text) {
  constexpr std::string_view kGroup = "group:";
  if (text == "private" || text == "none") return true;
  return text.substr(0, kGroup.size()) == kGroup && text.size() > kGroup.size() &&
         IsName(text.substr(kGroup.size()));
}

absl::Status CheckForm(FieldRule::Form form, std::string_view value) {
  const std::string shown = net::Escape(value, 80);
  switch (form) {
    case FieldRule::Form::kAny:
      return absl::OkStatus();
    case FieldRule::Form::kAddress:
      return net::ParseAddress(value).status();
    case FieldRule::Form::kName:
      if (IsName(value)) return absl::OkStatus();
      return InvalidArgument("\"{}\" is no name; allowed: {}", shown, kNameForm);
    case FieldRule::Form::kSha256:
      // Not shown: it may be the key itself.
      if (IsSha256(value)) return absl::OkStatus();
      return InvalidArgument("is no SHA-256; allowed: 64 hex digits, as `sha256sum` prints them");
    case FieldRule::Form::kSharing:
      if (IsSharing(value)) return absl::OkStatus();
      return InvalidArgument(
          "\"{}\" is not known; allowed: private, none, group:NAME with a NAME of {}", shown,
          kNameForm);
  }
  return absl::OkStatus();
}

}  // namespace

const FieldRule* FindRule(const google::protobuf::FieldDescriptor& field) {
  const std::string name = field.containing_type()->name() + "." + field.name();
  for (const std::vector<FieldRule>* rules :
       {&Rules(), &HttpRules(), &TenancyRules(), &PictureRules()}) {
    for (const FieldRule& rule : *rules) {
      if (rule.field == name) return &rule;
    }
  }
  return nullptr;
}

std::string Allowed(const FieldRule& rule) {
  if (!rule.choices.empty()) return fmt::format("{}", fmt::join(rule.choices, ", "));
  if (rule.is_bytes) {
    return fmt::format("{} to {}, as a number or like \"512MiB\"", PlainBytes(rule.min),
                       PlainBytes(rule.max));
  }
  return fmt::format("{} to {}", Plain(rule.min), Plain(rule.max));
}

absl::Status CheckNumber(const FieldRule& rule, double value) {
  if (value >= rule.min && value <= rule.max) return absl::OkStatus();
  return InvalidArgument("{} is out of range; allowed: {}", Plain(value), Allowed(rule));
}

absl::Status CheckText(const FieldRule& rule, std::string_view value) {
  if (value.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(CheckForm(rule.form, value));
  if (rule.choices.empty() || std::count(rule.choices.begin(), rule.choices.end(), value) > 0) {
    return absl::OkStatus();
  }
  return InvalidArgument("\"{}\" is not known; allowed: {}", net::Escape(value, 40), Allowed(rule));
}

}  // namespace trivium::config

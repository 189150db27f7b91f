#include "services/cli/arrivals.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "services/cli/prompt.h"

namespace trivium::cli {
namespace {

using Json = nlohmann::json;

constexpr size_t kFileBytesMax = 64 << 20;
constexpr size_t kLineBytesMax = 1 << 20;
constexpr double kTimestampMsMax = 1e15;
constexpr int64_t kTokensMax = 1000000;

// The one of two names that is there.
absl::StatusOr<const Json*> Field(const Json& object, const char* name, const char* other) {
  const auto first = object.find(name), second = object.find(other);
  if (first != object.end() && second != object.end()) {
    return InvalidArgument("both {} and {} are there", name, other);
  }
  if (first != object.end()) return &*first;
  if (second != object.end()) return &*second;
  return InvalidArgument("{} (or {}) is missing", name, other);
}

absl::StatusOr<int> Tokens(const Json& object, const char* name, const char* other) {
  ASSIGN_OR_RETURN(const Json* value, Field(object, name, other));
  const bool whole = value->is_number_integer();
  // An unsigned number above int64 reads as negative.
  const int64_t tokens = whole ? value->get<int64_t>() : 0;
  if (tokens < 1 || tokens > kTokensMax) {
    return InvalidArgument("{} is no whole number from 1 to {}", name, kTokensMax);
  }
  return static_cast<int>(tokens);
}

// `at_s` stays the timestamp, from the trace's own origin.
absl::StatusOr<Arrival> ParseLine(std::string_view line) {
  if (line.size() > kLineBytesMax) return InvalidArgument("longer than {} bytes", kLineBytesMax);
  const Json object = Json::parse(line.begin(), line.end(), nullptr, false);
  if (!object.is_object()) return InvalidArgument("no JSON object");
  const auto timestamp = object.find("timestamp");
  if (timestamp == object.end()) return InvalidArgument("timestamp is missing");
  const double ms = timestamp->is_number() ? timestamp->get<double>() : -1;
  if (!(ms >= 0 && ms <= kTimestampMsMax)) {
    return InvalidArgument("timestamp is no number of milliseconds from 0 to {}", kTimestampMsMax);
  }
  Arrival arrival{.at_s = ms / 1e3};
  ASSIGN_OR_RETURN(arrival.prompt_tokens, Tokens(object, "input_length", "prompt_tokens"));
  ASSIGN_OR_RETURN(arrival.output_tokens, Tokens(object, "output_length", "output_tokens"));
  return arrival;
}

}  // namespace

double PoissonClock::Next() {
  // 53 bits: [0, 1), so that the logarithm is finite.
  const double uniform = static_cast<double>(random_() >> 11) * 0x1p-53;
  now_s_ += -std::log1p(-uniform) / per_second_;
  return now_s_;
}

absl::StatusOr<std::vector<Arrival>> ParseTrace(std::string_view text, size_t arrivals_max) {
  std::vector<Arrival> arrivals;
  double origin_s = 0;
  for (size_t line_number = 1; !text.empty() && arrivals.size() < arrivals_max; ++line_number) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    absl::StatusOr<Arrival> arrival = ParseLine(line);
    if (!arrival.ok()) {
      return InvalidArgument("line {}: {}", line_number, Message(arrival.status()));
    }
    if (arrivals.empty()) origin_s = arrival->at_s;
    arrival->at_s -= origin_s;
    if (!arrivals.empty() && arrival->at_s < arrivals.back().at_s) {
      return InvalidArgument("line {}: timestamp lies before that of the line above", line_number);
    }
    arrivals.push_back(*arrival);
  }
  if (arrivals.empty()) return InvalidArgument("no request in it");
  return arrivals;
}

absl::StatusOr<std::vector<Arrival>> ReadTrace(const std::string& path, size_t arrivals_max) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kFileBytesMax));
  auto arrivals = ParseTrace(text, arrivals_max);
  if (!arrivals.ok()) return InvalidArgument("{}: {}", path, Message(arrivals.status()));
  return arrivals;
}

}  // namespace trivium::cli

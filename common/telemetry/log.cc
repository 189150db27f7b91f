#include "common/telemetry/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <array>
#include <memory>

#include "common/net/text.h"

namespace trivium::telemetry {
namespace {

constexpr size_t kValueBytesMax = 1024;
constexpr std::array<std::pair<std::string_view, Level>, 5> kLevels = {
    {{"trace", Level::kTrace},
     {"debug", Level::kDebug},
     {"info", Level::kInfo},
     {"warning", Level::kWarning},
     {"error", Level::kError}}};

spdlog::level::level_enum ToSpdlog(Level level) {
  switch (level) {
    case Level::kTrace:
      return spdlog::level::trace;
    case Level::kDebug:
      return spdlog::level::debug;
    case Level::kInfo:
      return spdlog::level::info;
    case Level::kWarning:
      return spdlog::level::warn;
    default:
      return spdlog::level::err;
  }
}

// Lives until the process ends, so that destructors of statics may still log.
spdlog::logger& Logger() {
  static spdlog::logger* logger = [] {
    auto* made = new spdlog::logger("trivium", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_formatter(std::make_unique<spdlog::pattern_formatter>(
        "%Y-%m-%dT%H:%M:%S.%eZ %l %v", spdlog::pattern_time_type::utc));
    made->set_level(spdlog::level::info);
    return made;
  }();
  return *logger;
}

// Set once by InitLog before other threads start.
std::string& ServiceField() {
  static auto* field = new std::string;
  return *field;
}

void AppendField(std::string_view key, std::string_view value, std::string* line) {
  const std::string escaped = net::Escape(value, kValueBytesMax);
  const bool quote =
      value.empty() || escaped != value || value.find_first_of(" =") != std::string_view::npos;
  const std::string_view mark = quote ? "\"" : "";
  fmt::format_to(std::back_inserter(*line), " {}={}{}{}", key, mark, escaped, mark);
}

}  // namespace

bool InitLog(std::string_view service, std::string_view level) {
  for (const auto& [name, value] : kLevels) {
    if (name != level) continue;
    ServiceField().clear();
    if (!service.empty()) AppendField("service", service, &ServiceField());
    Logger().set_level(ToSpdlog(value));
    return true;
  }
  return false;
}

void Log(Level level, std::string_view event, std::initializer_list<Field> fields) {
  const auto spdlog_level = ToSpdlog(level);
  if (!Logger().should_log(spdlog_level)) return;
  std::string line(event);
  line += ServiceField();
  for (const Field& field : fields) AppendField(field.key, field.text, &line);
  Logger().log(spdlog_level, spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace trivium::telemetry

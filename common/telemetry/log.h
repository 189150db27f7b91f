// Structured logs: one line an event, "key=value" after the time, level and event name, on stderr.
// Never pass prompt or output text, keys or tokens. Thread-safety: all functions, any thread.
#pragma once

#include <fmt/format.h>

#include <initializer_list>
#include <string>
#include <string_view>

namespace trivium::telemetry {

enum class Level { kTrace, kDebug, kInfo, kWarning, kError };

// Once, at the start of main; before that everything from kInfo up is printed. False: no such level
// name.
bool InitLog(std::string_view service, std::string_view level);

struct Field {
  template <typename T>
  Field(std::string_view name, const T& value) : key(name), text(fmt::format("{}", value)) {}
  std::string_view key;
  std::string text;
};

// Log(Level::kInfo, "request_done", {{"request_id", id.value}, {"tokens", 40}}). Values are quoted
// where they hold spaces, quotes or control characters, so that one event is always one line, and
// are cut after 1 KiB.
void Log(Level level, std::string_view event, std::initializer_list<Field> fields = {});

}  // namespace trivium::telemetry

// absl::Status with fmt: constructors that format, propagation macros, and the check that ends the process.
// Stateless; safe from any thread. The packaged absl has its own string_view, hence the small converters.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

namespace trivium {

inline absl::string_view ToAbsl(std::string_view s) { return {s.data(), s.size()}; }
inline std::string_view FromAbsl(absl::string_view s) { return {s.data(), s.size()}; }
inline std::string Message(const absl::Status& status) { return std::string(status.message()); }

template <typename... Args>
absl::Status MakeStatus(absl::StatusCode code, fmt::format_string<Args...> format, Args&&... args) {
  return absl::Status(code, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status InvalidArgument(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kInvalidArgument, format, std::forward<Args>(args)...);
}
template <typename... Args>
absl::Status ResourceExhausted(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kResourceExhausted, format, std::forward<Args>(args)...);
}
template <typename... Args>
absl::Status FailedPrecondition(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kFailedPrecondition, format, std::forward<Args>(args)...);
}
template <typename... Args>
absl::Status Unimplemented(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kUnimplemented, format, std::forward<Args>(args)...);
}
template <typename... Args>
absl::Status Unavailable(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kUnavailable, format, std::forward<Args>(args)...);
}

// Prints the message with its place and aborts: for broken invariants only, never for input.
[[noreturn]] void Die(const char* file, int line, const char* condition, const std::string& message);

}  // namespace trivium

#define TRIVIUM_CONCAT_INNER(a, b) a##b
#define TRIVIUM_CONCAT(a, b) TRIVIUM_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expression)                                    \
  do {                                                                 \
    if (absl::Status status_of_expression = (expression); !status_of_expression.ok()) \
      return status_of_expression;                                     \
  } while (false)

#define ASSIGN_OR_RETURN(declaration, expression) \
  ASSIGN_OR_RETURN_INNER(TRIVIUM_CONCAT(status_or_, __LINE__), declaration, expression)
#define ASSIGN_OR_RETURN_INNER(result, declaration, expression) \
  auto result = (expression);                                   \
  if (!result.ok()) return std::move(result).status();          \
  declaration = std::move(result).value()

// TRIVIUM_CHECK(a == b, "why {}", a): ends the process when an invariant of ours is broken.
#define TRIVIUM_CHECK(condition, ...) \
  ((condition) ? (void)0 : ::trivium::Die(__FILE__, __LINE__, #condition, fmt::format(__VA_ARGS__)))

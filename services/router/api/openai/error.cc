#include "services/router/api/openai/error.h"

#include <chrono>
#include <nlohmann/json.hpp>

#include "services/router/api/run_handle.h"

namespace trivium::router::openai {
namespace {

using Json = nlohmann::ordered_json;

// "messages[0].content" of "messages[0].content: must be…" and of "messages[0].content has…"; empty
// when the message names no field.
std::string_view ParamOf(std::string_view message) {
  constexpr std::string_view kNameCharacters =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.[]";
  const std::string_view name = message.substr(0, message.find_first_not_of(kNameCharacters));
  const bool has_colon = message.substr(name.size(), 2) == ": ";
  return has_colon || name.find('[') != std::string_view::npos ? name : std::string_view();
}

int HttpStatus(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kOutOfRange:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

std::string_view CodeOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kNotFound:
      return "model_not_found";
    case absl::StatusCode::kUnauthenticated:
      return "invalid_api_key";
    case absl::StatusCode::kResourceExhausted:
      return "overloaded";
    case absl::StatusCode::kUnavailable:
      return "unavailable";
    default:
      return {};
  }
}

Json OrNull(std::string_view text) { return text.empty() ? Json() : Json(text); }

std::string Body(int http_status, std::string_view message, std::string_view param,
                 std::string_view code) {
  const Json error = {{"message", message},
                      {"type", http_status < 500 ? "invalid_request_error" : "server_error"},
                      {"param", OrNull(param)},
                      {"code", OrNull(code)}};
  return Json{{"error", error}}.dump(-1, ' ', false, Json::error_handler_t::replace);
}

http::Response WithHint(http::Response response) {
  if (response.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  if (response.status != 503) return response;
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(kRetryAfter).count();
  response.headers.emplace_back("Retry-After", std::to_string(seconds));
  return response;
}

}  // namespace

http::Response ErrorResponse(const absl::Status& status) {
  return WithHint({.status = HttpStatus(status.code()), .body = ErrorJson(status)});
}

http::Response ErrorResponse(int http_status, std::string_view message, std::string_view code) {
  return WithHint({.status = http_status, .body = Body(http_status, message, {}, code)});
}

std::string ErrorJson(const absl::Status& status) {
  const std::string message = Message(status);
  const bool is_model = status.code() == absl::StatusCode::kNotFound;
  return Body(HttpStatus(status.code()), message, is_model ? "model" : ParamOf(message),
              CodeOf(status.code()));
}

}  // namespace trivium::router::openai

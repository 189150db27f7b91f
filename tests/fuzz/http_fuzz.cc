// Fuzzes what the HTTP door does with a client's bytes after the HTTP parser: the path, and the
// JSON of both endpoints. The first byte picks one. What is accepted must hold texts that protobuf
// takes; what is refused must be refused in few words, as an error body that is JSON.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "services/router/api/openai/error.h"
#include "services/router/api/openai/question.h"
#include "services/router/http/message.h"

namespace {

using namespace trivium;          // NOLINT
using namespace trivium::router;  // NOLINT

constexpr size_t kErrorBytesMax = 1000;

void CheckError(const absl::Status& status) {
  const http::Response response = openai::ErrorResponse(status);
  TRIVIUM_CHECK(response.status == 400, "status {}", response.status);
  TRIVIUM_CHECK(response.body.size() < kErrorBytesMax, "{} bytes of error", response.body.size());
}

void FuzzQuestion(openai::Endpoint endpoint, std::string_view body) {
  const absl::StatusOr<openai::Question> question = openai::ParseQuestion(endpoint, body);
  if (!question.ok()) return CheckError(question.status());
  TRIVIUM_CHECK(!question->requests.empty(), "no request");
  for (const v1::GenerateRequest& request : question->requests) {
    v1::GenerateRequest again;
    TRIVIUM_CHECK(again.ParseFromString(request.SerializeAsString()), "text that is not UTF-8");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] == 'p') {
    const auto path = http::DecodePath(rest);
    TRIVIUM_CHECK(!path.has_value() || path->find('\0') == std::string::npos ||
                      rest.find('\0') != std::string_view::npos,
                  "a NUL out of nothing");
  } else {
    FuzzQuestion(data[0] == 'c' ? openai::Endpoint::kChat : openai::Endpoint::kCompletions, rest);
  }
  return 0;
}

#include "services/cli/prompt.h"

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "common/net/text.h"

namespace trivium::cli {
namespace {

constexpr size_t kPromptBytesMax = 8 << 20;

absl::StatusOr<std::string> ReadAll(FILE* file, const std::string& name, size_t bytes_max) {
  std::string text;
  char buffer[65536];
  for (size_t n;
       text.size() <= bytes_max && (n = std::fread(buffer, 1, sizeof(buffer), file)) > 0;) {
    text.append(buffer, n);
  }
  if (std::ferror(file)) return InvalidArgument("{}: {}", name, std::strerror(errno));
  if (text.size() > bytes_max) return InvalidArgument("{}: larger than {} bytes", name, bytes_max);
  return text;
}

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path, size_t bytes_max) {
  if (path == "-") return ReadAll(stdin, "standard input", bytes_max);
  FILE* file = std::fopen(path.c_str(), "re");
  if (file == nullptr) return InvalidArgument("{}: {}", path, std::strerror(errno));
  absl::StatusOr<std::string> text = ReadAll(file, path, bytes_max);
  std::fclose(file);
  return text;
}

absl::StatusOr<std::string> ReadPrompt(const Options& options) {
  std::string text = options.prompt.value_or("");
  if (!options.prompt.has_value()) {
    ASSIGN_OR_RETURN(text, ReadFile(options.file, kPromptBytesMax));
  }
  if (!net::IsUtf8(text)) return InvalidArgument("the prompt is not valid UTF-8");
  return text;
}

absl::StatusOr<v1::GenerateRequest> MakeGenerateRequest(const Options& options) {
  v1::GenerateRequest request;
  request.set_model(options.model);
  *request.mutable_sampling() = options.sampling;
  if (options.priority.has_value()) request.set_priority(*options.priority);
  if (!options.token_ids.empty()) {
    request.mutable_token_ids()->mutable_ids()->Assign(options.token_ids.begin(),
                                                       options.token_ids.end());
    return request;
  }
  ASSIGN_OR_RETURN(std::string text, ReadPrompt(options));
  if (!options.as_chat) {
    request.set_text(std::move(text));
    return request;
  }
  v1::Message* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content(std::move(text));
  return request;
}

}  // namespace trivium::cli

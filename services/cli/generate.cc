#include <fmt/core.h>

#include <cstdio>

#include "services/cli/client.h"
#include "services/cli/commands.h"
#include "services/cli/prompt.h"

namespace trivium::cli {
namespace {

// Choices come side by side. The first is shown as it comes, the others when all have ended.
void PrintDelta(const v1::Delta& delta) {
  if (delta.choice() == 0) PrintText(delta.text());
}

void PrintOthers(const Answer& answer) {
  for (size_t i = 1; i < answer.choices().size(); ++i) {
    PrintText(fmt::format("--- choice {} ---\n{}\n", i, answer.choices()[i].text));
  }
}

}  // namespace

int RunGenerate(const Options& options) {
  const absl::StatusOr<v1::GenerateRequest> request = MakeGenerateRequest(options);
  if (!request.ok()) return Fail(request.status());
  Client client(options.router, options.timeout_s, options.api_key);
  Answer answer;
  const absl::Status status =
      client.Generate(*request, &answer, options.json ? nullptr : &PrintDelta);
  if (!options.json && !answer.text().empty()) std::puts("");
  if (!options.json) PrintOthers(answer);
  std::fflush(stdout);  // before the figures, where both streams go to one place
  if (!status.ok()) return Fail(status);
  if (options.json) {
    std::puts(answer.Json().c_str());
  } else if (!options.quiet) {
    std::fprintf(stderr, "[%s]\n", answer.Figures().c_str());
  }
  return 0;
}

}  // namespace trivium::cli

#include <unistd.h>

#include <cstdio>

#include "services/cli/client.h"
#include "services/cli/commands.h"
#include "services/cli/prompt.h"

namespace trivium::cli {
namespace {

void PrintDelta(const v1::Delta& delta) {
  static const bool terminal = isatty(STDOUT_FILENO) == 1;
  const std::string text = terminal ? ForTerminal(delta.text()) : delta.text();
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

}  // namespace

int RunGenerate(const Options& options) {
  const absl::StatusOr<v1::GenerateRequest> request = MakeGenerateRequest(options);
  if (!request.ok()) return Fail(request.status());
  Client client(options.router, options.timeout_s);
  Answer answer;
  const absl::Status status =
      client.Generate(*request, &answer, options.json ? nullptr : &PrintDelta);
  if (!options.json && !answer.text().empty()) std::puts("");
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

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>

#include "services/cli/client.h"
#include "services/cli/commands.h"
#include "services/cli/prompt.h"
#include "services/cli/table.h"

namespace trivium::cli {
namespace {

constexpr double kReadyTimeoutS = 60;
constexpr auto kPollInterval = std::chrono::milliseconds(100);

int Print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  return 0;
}

// What the last poll saw, in one line.
std::string Seen(const absl::StatusOr<v1::ClusterStatusResponse>& status) {
  if (!status.ok()) return Message(status.status());
  std::string seen;
  for (const v1::WorkerStatus& w : status->workers()) {
    seen += fmt::format("{}{} at {} is {}{}{}", seen.empty() ? "" : "; ", w.role(), w.address(),
                        w.state(), w.detail().empty() ? "" : ": ", w.detail());
  }
  return seen.empty() ? "the router has no workers" : seen;
}

}  // namespace

int RunStatus(const Options& options) {
  if (options.watch.on) return RunWatch(options);
  const auto status = Client(options.router, 0, options.api_key).ClusterStatus();
  if (!status.ok()) return Fail(status.status());
  return Print(options.json ? StatusJson(*status) : StatusTable(*status));
}

int RunExplain(const Options& options) {
  const auto explained =
      Client(options.router, 0, options.api_key).ExplainPlacement(options.request_id);
  if (!explained.ok()) return Fail(explained.status());
  std::string text;
  for (const std::string& placement : explained->placements()) text += placement;
  return Print(text);
}

int RunModels(const Options& options) {
  const auto models = Client(options.router, 0, options.api_key).ListModels();
  if (!models.ok()) return Fail(models.status());
  return Print(options.json ? ModelsJson(*models) : ModelsTable(*models));
}

int RunTokenize(const Options& options) {
  const absl::StatusOr<std::string> text = ReadPrompt(options);
  if (!text.ok()) return Fail(text.status());
  v1::TokenizeRequest request;
  if (options.as_chat) {
    v1::Message* message = request.mutable_chat()->add_messages();
    message->set_role("user");
    message->set_content(*text);
  } else {
    request.set_text(*text);
  }
  const auto tokens = Client(options.router, 0, options.api_key).Tokenize(request);
  if (!tokens.ok()) return Fail(tokens.status());
  return Print(options.json ? TokensJson(*tokens) : TokensTable(*tokens));
}

int RunWaitReady(const Options& options) {
  const double timeout_s = options.timeout_s > 0 ? options.timeout_s : kReadyTimeoutS;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_s);
  Client client(options.router, 0, options.api_key);
  while (true) {
    const auto status = client.ClusterStatus();
    if (status.ok() && ReadyWorkers(*status, "prefill") >= options.prefill_workers &&
        ReadyWorkers(*status, "decode") >= options.decode_workers) {
      return 0;
    }
    if (std::chrono::steady_clock::now() >= deadline) {
      return Fail(absl::DeadlineExceededError(
          fmt::format("not ready after {} s: {}", timeout_s, Seen(status))));
    }
    std::this_thread::sleep_for(kPollInterval);
  }
}

}  // namespace trivium::cli

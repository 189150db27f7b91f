#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <string>
#include <thread>

#include "common/net/text.h"
#include "services/cli/client.h"
#include "services/cli/commands.h"
#include "services/cli/prompt.h"

namespace trivium::cli {
namespace {

constexpr int kInterruptedExitCode = 130;
constexpr size_t kImageBytesMax = 12 << 20;

// Ctrl-C stops the answer that is running; where none is, it ends the program. The thread that
// waits for the signal lives as long as the process.
void HandleInterrupts(Canceller* canceller) {
  sigset_t interrupt;
  sigemptyset(&interrupt);
  sigaddset(&interrupt, SIGINT);
  pthread_sigmask(SIG_BLOCK, &interrupt, nullptr);
  std::thread([interrupt, canceller] {
    for (int signal = 0; sigwait(&interrupt, &signal) == 0;) {
      if (canceller->Cancel()) continue;
      [[maybe_unused]] const ssize_t written = write(STDOUT_FILENO, "\n", 1);
      _exit(kInterruptedExitCode);
    }
  }).detach();
}

class Conversation {
 public:
  Conversation(const Options& options, Canceller* canceller)
      : options_(options),
        client_(options.router, options.timeout_s, options.api_key),
        canceller_(canceller) {
    request_.set_model(options.model);
    *request_.mutable_sampling() = options.sampling;
    if (options.priority.has_value()) request_.set_priority(*options.priority);
    request_.mutable_chat();
    if (!options.system.empty()) Append("system", options.system);
  }

  // Streams the answer to `text`. A cancelled answer counts as far as it came; after an error the
  // turn is forgotten, so that it can be asked again.
  absl::Status Ask(const std::string& text) {
    if (!net::IsUtf8(text)) return InvalidArgument("the message is not valid UTF-8");
    RETURN_IF_ERROR(AppendQuestion(text));
    Answer answer;
    const absl::Status status = client_.Generate(
        request_, &answer, [](const v1::Delta& delta) { PrintText(delta.text()); }, canceller_);
    if (!answer.text().empty() || status.ok()) std::puts("");
    std::fflush(stdout);  // before the figures, where both streams go to one place
    if (!status.ok() && !absl::IsCancelled(status)) {
      request_.mutable_chat()->mutable_messages()->RemoveLast();
      return status;
    }
    Append("assistant", answer.text());
    has_shown_ = true;
    if (status.ok() && !options_.quiet) std::fprintf(stderr, "[%s]\n", answer.Figures().c_str());
    return absl::OkStatus();
  }

 private:
  void Append(const char* role, const std::string& content) {
    v1::Message* message = request_.mutable_chat()->add_messages();
    message->set_role(role);
    message->set_content(content);
  }

  // Pictures stand before the first text that is answered.
  absl::Status AppendQuestion(const std::string& text) {
    if (options_.images.empty() || has_shown_) {
      Append("user", text);
      return absl::OkStatus();
    }
    v1::Message message;
    message.set_role("user");
    for (const std::string& path : options_.images) {
      ASSIGN_OR_RETURN(*message.add_parts()->mutable_picture(), ReadFile(path, kImageBytesMax));
    }
    message.add_parts()->set_text(text);
    *request_.mutable_chat()->add_messages() = std::move(message);
    return absl::OkStatus();
  }

  const Options& options_;
  bool has_shown_ = false;
  Client client_;
  Canceller* const canceller_;
  v1::GenerateRequest request_;
};

}  // namespace

int RunChat(const Options& options) {
  static Canceller canceller;  // outlives the thread that waits for signals
  HandleInterrupts(&canceller);
  Conversation conversation(options, &canceller);
  if (options.prompt.has_value()) {
    const absl::Status status = conversation.Ask(*options.prompt);
    return status.ok() ? 0 : Fail(status);
  }
  const bool terminal = isatty(STDIN_FILENO) == 1;
  int exit_code = 0;
  for (std::string line;
       (terminal && std::fputs("> ", stdout), std::fflush(stdout), std::getline(std::cin, line));) {
    if (line.empty()) continue;
    const absl::Status status = conversation.Ask(line);
    if (!status.ok()) exit_code = Fail(status);
  }
  if (terminal) std::puts("");
  return terminal ? 0 : exit_code;
}

}  // namespace trivium::cli

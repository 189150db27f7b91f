// The runs of one request with several prompts, as one answer: choice c of prompt p of P with n
// choices each is choice p * n + c. The first error ends all.
// Thread-safety: all methods, any thread. No lock is held across a call.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "services/router/api/run_handle.h"
#include "services/router/dispatch/run_types.h"

namespace trivium::router::openai {

class PromptFanIn final : public std::enable_shared_from_this<PromptFanIn> {
 public:
  // `out` must stand deltas of several runs at once.
  PromptFanIn(std::shared_ptr<ResponseSink> out, size_t prompts, int choices_each)
      : out_(std::move(out)), choices_each_(choices_each), runs_(prompts), done_(prompts) {}

  std::shared_ptr<ResponseSink> SinkOf(size_t prompt);
  RunHandle& run(size_t prompt) { return runs_[prompt]; }
  void Cancel();

 private:
  class Part;
  void OnDelta(size_t prompt, const v1::Delta& delta);
  void OnDone(size_t prompt, const v1::Done& done);
  void OnError(const absl::Status& status);
  v1::Done Joined() const;

  const std::shared_ptr<ResponseSink> out_;
  const int choices_each_;
  std::vector<RunHandle> runs_;
  std::mutex mutex_;
  std::vector<v1::Done> done_;  // by prompt
  size_t ended_ = 0;
  bool has_failed_ = false;
};

}  // namespace trivium::router::openai

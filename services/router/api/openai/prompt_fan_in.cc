#include "services/router/api/openai/prompt_fan_in.h"

#include <utility>

namespace trivium::router::openai {

class PromptFanIn::Part final : public ResponseSink {
 public:
  Part(std::shared_ptr<PromptFanIn> all, size_t prompt) : all_(std::move(all)), prompt_(prompt) {}
  void OnDelta(const v1::Delta& delta) override { all_->OnDelta(prompt_, delta); }
  void OnDone(const v1::Done& done) override { all_->OnDone(prompt_, done); }
  void OnError(const absl::Status& status) override { all_->OnError(status); }

 private:
  const std::shared_ptr<PromptFanIn> all_;
  const size_t prompt_;
};

std::shared_ptr<ResponseSink> PromptFanIn::SinkOf(size_t prompt) {
  return std::make_shared<Part>(shared_from_this(), prompt);
}

void PromptFanIn::Cancel() {
  for (RunHandle& run : runs_) run.Cancel();
}

void PromptFanIn::OnDelta(size_t prompt, const v1::Delta& delta) {
  if (prompt == 0) return out_->OnDelta(delta);
  v1::Delta moved = delta;
  moved.set_choice(delta.choice() + static_cast<int>(prompt) * choices_each_);
  out_->OnDelta(moved);
}

v1::Done PromptFanIn::Joined() const {
  v1::Done all = done_[0];
  for (size_t i = 1; i < done_.size(); ++i) {
    v1::Usage& usage = *all.mutable_usage();
    usage.set_prompt_tokens(usage.prompt_tokens() + done_[i].usage().prompt_tokens());
    usage.set_completion_tokens(usage.completion_tokens() + done_[i].usage().completion_tokens());
    usage.set_cached_prompt_tokens(usage.cached_prompt_tokens() +
                                   done_[i].usage().cached_prompt_tokens());
    all.mutable_choices()->MergeFrom(done_[i].choices());
    if (!done_[i].has_cached()) all.clear_cached();  // said of the whole answer
  }
  return all;
}

void PromptFanIn::OnDone(size_t prompt, const v1::Done& done) {
  std::unique_lock lock(mutex_);
  done_[prompt] = done;
  if (++ended_ < done_.size() || has_failed_) return;
  const v1::Done all = Joined();
  lock.unlock();
  out_->OnDone(all);
}

void PromptFanIn::OnError(const absl::Status& status) {
  std::unique_lock lock(mutex_);
  if (std::exchange(has_failed_, true)) return;
  lock.unlock();
  out_->OnError(status);
  Cancel();
}

}  // namespace trivium::router::openai

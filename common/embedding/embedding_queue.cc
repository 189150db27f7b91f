#include "common/embedding/embedding_queue.h"

#include <future>
#include <iterator>
#include <utility>

namespace trivium::embedding {

absl::StatusOr<std::unique_ptr<EmbeddingQueue>> EmbeddingQueue::Create(Options options) {
  std::unique_ptr<EmbeddingQueue> queue(new EmbeddingQueue(std::move(options)));
  std::promise<absl::Status> loaded;
  queue->thread_ = std::thread([&queue = *queue, &loaded] {
    queue.Run([&loaded](absl::Status status) { loaded.set_value(std::move(status)); });
  });
  const absl::Status status = loaded.get_future().get();
  if (!status.ok()) return status;
  return queue;
}

EmbeddingQueue::~EmbeddingQueue() {
  {
    std::lock_guard lock(mutex_);
    is_closing_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

absl::Status EmbeddingQueue::Encode(std::vector<std::string> texts, Done done) {
  {
    std::lock_guard lock(mutex_);
    if (texts.size() > options_.texts_waiting_max - texts_waiting_) {
      ++refused_;
      return ResourceExhausted("too many texts wait to be embedded");
    }
    texts_waiting_ += texts.size();
    jobs_.push_back({std::move(texts), std::move(done)});
  }
  wake_.notify_one();
  return absl::OkStatus();
}

// The jobs whose texts fit together; a job of more texts goes alone.
std::vector<EmbeddingQueue::Job> EmbeddingQueue::TakeBatch() {
  std::unique_lock lock(mutex_);
  wake_.wait(lock, [&] { return is_closing_ || !jobs_.empty(); });
  std::vector<Job> batch;
  size_t texts = 0;
  while (!jobs_.empty() &&
         (batch.empty() || texts + jobs_.front().texts.size() <= options_.batch_texts_max)) {
    texts += jobs_.front().texts.size();
    batch.push_back(std::move(jobs_.front()));
    jobs_.pop_front();
  }
  texts_waiting_ -= texts;
  return batch;
}

void EmbeddingQueue::EncodeBatch(TextEncoder& encoder, std::vector<Job> jobs) {
  std::vector<std::string> texts;
  std::vector<size_t> counts;
  for (Job& job : jobs) {
    counts.push_back(job.texts.size());
    std::move(job.texts.begin(), job.texts.end(), std::back_inserter(texts));
  }
  std::vector<Embedding> all = encoder.Encode(texts);
  auto next = std::make_move_iterator(all.begin());
  for (size_t i = 0; i < jobs.size(); ++i) {
    const auto end = next + static_cast<std::ptrdiff_t>(counts[i]);
    jobs[i].done(std::vector<Embedding>(next, end));
    next = end;
  }
}

// The encoder lives and dies on this thread.
void EmbeddingQueue::Run(std::function<void(absl::Status)> loaded) {
  auto encoder = TextEncoder::Load(options_.folder, options_.ops);
  if (encoder.ok()) {
    dim_ = (*encoder)->dim();
    fingerprint_ = (*encoder)->fingerprint();
  }
  loaded(encoder.status());
  if (!encoder.ok()) return;
  while (true) {
    std::vector<Job> batch = TakeBatch();
    if (batch.empty()) return;
    EncodeBatch(**encoder, std::move(batch));
  }
}

}  // namespace trivium::embedding

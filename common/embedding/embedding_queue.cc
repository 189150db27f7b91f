#include "common/embedding/embedding_queue.h"

#include <algorithm>
#include <future>
#include <iterator>
#include <utility>

namespace trivium::embedding {
namespace {

constexpr size_t kBulkTurn = 4;

}  // namespace

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

absl::Status EmbeddingQueue::Encode(std::vector<std::string> texts, Done done, Kind kind) {
  {
    std::lock_guard lock(mutex_);
    Line& line = lines_[static_cast<size_t>(kind)];
    if (texts.size() > options_.texts_waiting_max - line.texts) {
      ++refused_;
      return ResourceExhausted("too many texts wait to be embedded");
    }
    line.texts += texts.size();
    line.jobs.push_back(std::make_shared<Job>(
        Job{.texts = std::move(texts), .done = std::move(done), .taken = 0, .got = {}}));
  }
  wake_.notify_one();
  return absl::OkStatus();
}

void EmbeddingQueue::Take(Line* line, size_t texts_max, size_t* texts, std::vector<Part>* parts) {
  while (!line->jobs.empty()) {
    const std::shared_ptr<Job>& job = line->jobs.front();
    const size_t begin = job->taken;
    const size_t count = std::min(job->texts.size() - begin, texts_max - *texts);
    if (count == 0 && !job->texts.empty()) return;
    job->taken += count;
    *texts += count;
    line->texts -= count;
    parts->push_back({job, begin, job->taken});
    if (job->taken == job->texts.size()) line->jobs.pop_front();
  }
}

// Empty: the queue ends.
std::vector<EmbeddingQueue::Part> EmbeddingQueue::TakeBatch() {
  std::unique_lock lock(mutex_);
  Line &urgent = lines_[size_t(Kind::kUrgent)], &bulk = lines_[size_t(Kind::kBulk)];
  wake_.wait(lock, [&] { return is_closing_ || !urgent.jobs.empty() || !bulk.jobs.empty(); });
  std::vector<Part> parts;
  size_t texts = 0;
  if (++batches_ % kBulkTurn == 0) {
    Take(&bulk, std::max<size_t>(1, options_.batch_texts_max / kBulkTurn), &texts, &parts);
  }
  Take(&urgent, options_.batch_texts_max, &texts, &parts);
  Take(&bulk, options_.batch_texts_max, &texts, &parts);
  return parts;
}

void EmbeddingQueue::EncodeBatch(TextEncoder& encoder, const std::vector<Part>& parts) {
  std::vector<std::string> texts;
  for (const Part& part : parts) {
    for (size_t i = part.begin; i < part.end; ++i) texts.push_back(std::move(part.job->texts[i]));
  }
  std::vector<Embedding> all = encoder.Encode(texts);
  auto next = std::make_move_iterator(all.begin());
  for (const Part& part : parts) {
    const auto end = next + static_cast<std::ptrdiff_t>(part.end - part.begin);
    part.job->got.insert(part.job->got.end(), next, end);
    next = end;
    if (part.end == part.job->texts.size()) part.job->done(std::move(part.job->got));
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
    const std::vector<Part> batch = TakeBatch();
    if (batch.empty()) return;
    EncodeBatch(**encoder, batch);
  }
}

}  // namespace trivium::embedding

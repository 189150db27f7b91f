// An encoder on a thread of its own: what waits is encoded together, as one batch.
//
// Urgent texts come first; of every fourth batch the others have a quarter before them, so that
// these come through too. Bounded, each kind by itself: what does not fit is refused at once and
// counted. Thread-safety: all methods, any thread. The
// destructor answers what it has taken.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/base/status.h"
#include "common/embedding/text_encoder.h"

namespace trivium::embedding {

class EmbeddingQueue {
 public:
  // On the queue's thread; must not block for long.
  using Done = std::function<void(std::vector<Embedding>)>;
  struct Options {
    std::string folder;
    kernels::OpsOptions ops = {};
    size_t texts_waiting_max = 1024;  // of each kind
    size_t batch_texts_max = 16;      // bounds the memory of a batch
  };

  // Returns when the encoder is loaded, with the reason where it cannot be.
  static absl::StatusOr<std::unique_ptr<EmbeddingQueue>> Create(Options options);
  ~EmbeddingQueue();

  // kUrgent: somebody waits for what comes after it.
  enum class Kind : uint8_t { kUrgent, kBulk, kCount };
  // RESOURCE_EXHAUSTED: too much waits, and `done` is not called.
  absl::Status Encode(std::vector<std::string> texts, Done done, Kind kind = Kind::kUrgent);

  int32_t dim() const { return dim_; }
  const std::string& fingerprint() const { return fingerprint_; }
  uint64_t refused() const { return refused_; }

 private:
  struct Job {
    std::vector<std::string> texts;
    Done done;
    size_t taken = 0;            // texts that are encoded, or about to be
    std::vector<Embedding> got;  // by the queue's thread alone
  };
  struct Part {
    std::shared_ptr<Job> job;
    size_t begin = 0, end = 0;  // of its texts
  };
  struct Line {
    std::deque<std::shared_ptr<Job>> jobs;
    size_t texts = 0;  // not taken yet
  };
  explicit EmbeddingQueue(Options options) : options_(std::move(options)) {}
  void Run(std::function<void(absl::Status)> loaded);
  static void EncodeBatch(TextEncoder& encoder, const std::vector<Part>& parts);
  std::vector<Part> TakeBatch();
  static void Take(Line* line, size_t texts_max, size_t* texts, std::vector<Part>* parts);

  const Options options_;
  int32_t dim_ = 0;
  std::string fingerprint_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::array<Line, size_t(Kind::kCount)> lines_;
  size_t batches_ = 0;
  bool is_closing_ = false;
  std::atomic<uint64_t> refused_ = 0;
  std::thread thread_;
};

}  // namespace trivium::embedding

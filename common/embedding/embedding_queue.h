// An encoder on a thread of its own: what waits is encoded together, as one batch.
//
// Bounded: what does not fit is refused at once and counted. Thread-safety: all methods, any
// thread. The destructor answers what it has taken.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
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
    size_t texts_waiting_max = 1024;
    size_t batch_texts_max = 16;  // bounds the memory of a batch
  };

  // Returns when the encoder is loaded, with the reason where it cannot be.
  static absl::StatusOr<std::unique_ptr<EmbeddingQueue>> Create(Options options);
  ~EmbeddingQueue();

  // RESOURCE_EXHAUSTED: too much waits, and `done` is not called.
  absl::Status Encode(std::vector<std::string> texts, Done done);

  int32_t dim() const { return dim_; }
  const std::string& fingerprint() const { return fingerprint_; }
  uint64_t refused() const { return refused_; }

 private:
  struct Job {
    std::vector<std::string> texts;
    Done done;
  };
  explicit EmbeddingQueue(Options options) : options_(std::move(options)) {}
  void Run(std::function<void(absl::Status)> loaded);
  static void EncodeBatch(TextEncoder& encoder, std::vector<Job> jobs);
  std::vector<Job> TakeBatch();

  const Options options_;
  int32_t dim_ = 0;
  std::string fingerprint_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> jobs_;
  size_t texts_waiting_ = 0;
  bool is_closing_ = false;
  std::atomic<uint64_t> refused_ = 0;
  std::thread thread_;
};

}  // namespace trivium::embedding

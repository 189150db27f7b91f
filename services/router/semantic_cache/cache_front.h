// The cache before the dispatcher: a request is answered by what was said before, or goes on, and
// its answer is kept.
//
// Found by the same words on the caller's thread, else by meaning on the encoder's. Equal questions
// that come while one is being answered wait for that answer; when it fails, the next of them goes
// on in its place. What is kept goes through a bounded queue to a thread of its own, so that no
// answer waits for a store. Where anything fails, requests go on as if there were no cache.
//
// Thread-safety: all methods, any thread. No lock is held across a call. `submit`, cache, queue and
// categories outlive it, and it is gone only when every request has its answer.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "common/embedding/embedding_queue.h"
#include "services/router/dispatch/run_types.h"
#include "services/router/semantic_cache/break_even.h"
#include "services/router/semantic_cache/cache_request.h"
#include "services/router/semantic_cache/categories.h"
#include "services/router/semantic_cache/load_policy.h"
#include "services/router/semantic_cache/semantic_cache.h"

namespace trivium::v1 {
class CachedAnswer;
}

namespace trivium::router {

class CacheFront {
 public:
  using Submit =
      std::function<std::shared_ptr<RequestRun>(RunRequest, std::shared_ptr<ResponseSink>)>;
  // Called with the run, if one is needed; null where it was refused.
  using Started = std::function<void(const std::shared_ptr<RequestRun>&)>;

  struct Options {
    CacheRules rules = {};
    std::string epoch = {};
    size_t followers_max = 4096;  // of all questions
    size_t inserts_waiting_max = 1024;
    size_t answer_bytes_max = 1 << 20;  // a longer one is not kept
    Duration upkeep_interval = std::chrono::milliseconds(500);
    LoadPolicy::Options load = {};
    std::function<double()> queue = {};  // requests that wait for room; empty: none ever do
  };
  CacheFront(Options options, Submit submit, SemanticCache* cache,
             embedding::EmbeddingQueue* encoder, const Categories* categories);
  ~CacheFront();

  void Ask(const v1::GenerateRequest& request, RunRequest run, std::shared_ptr<ResponseSink> sink,
           Started started);

  struct Counts {
    std::array<uint64_t, size_t(Bypass::kCount)> bypassed{};
    uint64_t followed = 0;  // answered by another request's answer
    uint64_t inserts_dropped = 0, inserts_failed = 0, not_kept = 0;
  };
  Counts counts() const;
  BreakEven::State break_even(size_t category) const { return break_even_.state(category); }

  // What Ask would find, and why not: `done` is called with it, possibly on the encoder's thread.
  struct Explanation {
    Bypass bypass = Bypass::kNone;
    std::string category;
    float confidence = 0;  // in it; 0 where the caller named it
    bool has_same_words = false;
    std::vector<SemanticCache::Examined> examined;  // nearest first
  };
  void Explain(const v1::GenerateRequest& request, const RunRequest& run,
               std::function<void(absl::StatusOr<Explanation>)> done);

 private:
  class Recorder;
  struct Waiting {
    RunRequest run;
    std::shared_ptr<ResponseSink> sink;
    Started started;
  };
  // One question on its way; its first asker leads.
  struct Flight {
    CacheRequest request;
    Waiting leader;
    std::optional<size_t> category;
    std::vector<float> vector;  // empty: not known
    TimePoint asked{};
    std::deque<Waiting> followers;  // guarded by mutex_
  };
  struct Kept {
    std::shared_ptr<Flight> flight;
    std::string answer;
    int32_t completion_tokens = 0;
  };
  void Lead(std::shared_ptr<Flight> flight);
  void Embedded(const std::shared_ptr<Flight>& flight, std::vector<embedding::Embedding> found);
  void Go(const std::shared_ptr<Flight>& flight);
  bool Serve(const SemanticCache::Found& found, const Waiting& to);
  void Finished(const std::shared_ptr<Flight>& flight, const v1::CachedAnswer* answer,
                const absl::Status& status);
  std::deque<Waiting> Land(const std::shared_ptr<Flight>& flight);
  void Keep(const std::shared_ptr<Flight>& flight, const v1::CachedAnswer& answer);
  void Work();
  void Write(Kept kept);
  void Upkeep(bool* is_more);

  const Options options_;
  const Submit submit_;
  SemanticCache* const cache_;
  embedding::EmbeddingQueue* const encoder_;
  const Categories* const categories_;
  LoadPolicy load_;
  BreakEven break_even_;

  mutable std::mutex mutex_;
  std::unordered_map<std::string, std::shared_ptr<Flight>> flights_;  // by question and category
  size_t followers_ = 0;
  Counts counts_;
  std::deque<Kept> inserts_;
  std::condition_variable wake_;
  bool is_closing_ = false;
  std::thread thread_;  // the last member: it uses all others
};

}  // namespace trivium::router

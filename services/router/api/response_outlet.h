// Between a run, which produces as fast as tokens come, and a writer that takes one message at a
// time: what comes behind a slow reader is merged into few deltas of each choice, so that what
// waits is never more than the rest of one answer, and no message more than a client takes by
// default. Choices that wait take turns.
//
// The writer sees Write calls, each after the former was Written, and then one Finish, last.
// Thread-safety: all methods, any thread. Knows no gRPC.
#pragma once

#include <deque>
#include <mutex>
#include <optional>

#include "common/base/status.h"
#include "services/router/dispatch/run_types.h"
#include "trivium/v1/inference.pb.h"

namespace trivium::router {

// Called outside the outlet's lock. `response` stays as it is until Written.
class ResponseWriter {
 public:
  virtual ~ResponseWriter() = default;
  virtual void Write(const v1::GenerateResponse& response) = 0;
  virtual void Finish(const absl::Status& status) = 0;
};

class ResponseOutlet final : public ResponseSink {
 public:
  // Of a merged delta; gRPC clients refuse messages above 4 MiB unless told otherwise.
  static constexpr size_t kDeltaBytesMax = size_t{1} << 20;

  // `writer` is not used after its Finish.
  explicit ResponseOutlet(ResponseWriter* writer) : writer_(writer) {}

  void OnDelta(const v1::Delta& delta) override;
  void OnDone(const v1::Done& done) override;
  void OnError(const absl::Status& status) override;

  // The last Write is over. Not ok: the reader has gone; everything but the end is dropped.
  void Written(bool ok);

 private:
  struct Waiting {
    v1::Delta delta;
    size_t bytes = 0;  // of the delta, at most
  };
  void Proceed(std::unique_lock<std::mutex> lock);

  ResponseWriter* const writer_;
  std::mutex mutex_;
  v1::GenerateResponse writing_;  // the writer's while is_writing_
  std::deque<Waiting> waiting_;   // to be written
  std::optional<v1::Done> done_;
  std::optional<absl::Status> end_;
  bool is_writing_ = false, is_broken_ = false, is_finished_ = false;
};

}  // namespace trivium::router

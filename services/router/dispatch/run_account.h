// The times and bytes of one request, for its Done message and the log.
// Thread-safety: none; belongs to one request's strand.
#pragma once

#include "common/base/clock.h"
#include "trivium/v1/inference.pb.h"
#include "trivium/v1/stage.pb.h"

namespace trivium::router {

class RunAccount {
 public:
  explicit RunAccount(TimePoint now) : submitted_(now), waiting_since_(now) {}

  // A failed attempt has ended. One that merely found no room does not count: it still waits.
  void WaitAnew(TimePoint now) {
    waiting_since_ = now;
    queue_before_ = queue_;
  }
  void DecodeOpened(TimePoint now) { opened_ = now; }
  void Reserved(TimePoint now);
  // The time since the token before it; for the first one since the submission.
  Duration Token(int32_t index, TimePoint now);
  void Sent(const v1::PrefillSent& sent);

  TimePoint waiting_since() const { return waiting_since_; }
  // Of the tokens after the first; zero when there is none.
  Duration time_per_token() const;
  Duration queue_time() const { return queue_; }
  Duration transfer_time() const;
  Duration Total(TimePoint now) const { return now - submitted_; }

  // Fills timings, completion_tokens and the bytes moved.
  void Fill(v1::Done* done) const;

 private:
  const TimePoint submitted_;
  TimePoint waiting_since_, opened_, reserved_, first_token_, last_token_;
  Duration queue_{}, queue_before_{}, reserve_{}, prefill_{};
  int32_t tokens_ = 0;
  double transfer_ms_ = 0;
  int64_t kv_bytes_ = 0, header_bytes_ = 0;
};

}  // namespace trivium::router

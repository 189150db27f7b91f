// The times and bytes of one request, for its Done message and the log.
// Thread-safety: none; belongs to one request's strand.
#pragma once

#include <array>
#include <optional>
#include <set>
#include <string>

#include "common/base/clock.h"
#include "services/router/scheduler/placement.h"
#include "trivium/v1/inference.pb.h"
#include "trivium/v1/stage.pb.h"

namespace trivium::router {

// What one leg of the request waited for.
class LegTimes {
 public:
  explicit LegTimes(TimePoint now) : waiting_since_(now) {}

  // A failed attempt has ended. One that merely found no room does not count: it still waits.
  void WaitAnew(TimePoint now) {
    waiting_since_ = now;
    queue_before_ = queue_;
  }
  void DecodeOpened(TimePoint now) { opened_ = now; }
  void Reserved(TimePoint now);

  TimePoint waiting_since() const { return waiting_since_; }
  TimePoint reserved_at() const { return reserved_; }
  Duration queue_time() const { return queue_; }
  Duration reserve_time() const { return reserve_; }

 private:
  TimePoint waiting_since_, opened_, reserved_;
  Duration queue_{}, queue_before_{}, reserve_{};
};

class RunAccount {
 public:
  RunAccount(TimePoint now, int32_t prompt_tokens)
      : submitted_(now), prompt_tokens_(prompt_tokens) {}

  // A token, which came by a leg with these times. Gives the time since the one before it in its
  // choice; for the first one since the submission.
  Duration Token(int32_t choice, int32_t index, TimePoint now, const LegTimes& leg);
  void Sent(const v1::PrefillSent& sent);
  void Prefilled(const v1::Prefilled& prefilled);
  void AskedForSlice(TimePoint now);
  void Encoded(const std::string& worker, bool cached, TimePoint now);  // a slice has landed
  // The longest leg counts.
  void LegEnded(const LegTimes& leg);

  int32_t tokens() const { return tokens_; }  // of all choices
  // Of the prompt, not computed by the attempt that gave the first account.
  int32_t cached_tokens() const { return cached_tokens_.value_or(0); }
  // Of the tokens after the first, in the longest choice; zero when there is none.
  Duration time_per_token() const;
  Duration queue_time() const { return queue_; }
  Duration transfer_time() const;
  // From the first slice that was asked for to the last that landed; zero without one.
  Duration encode_time() const { return last_slice_ - first_slice_; }
  Duration Total(TimePoint now) const { return now - submitted_; }

  // Fills timings, usage and the bytes moved.
  void Fill(v1::Done* done) const;

 private:
  void Cached(int32_t tokens);

  const TimePoint submitted_;
  const int32_t prompt_tokens_;
  TimePoint first_token_, last_token_;
  std::array<TimePoint, kChoicesMax> last_of_choice_;
  Duration queue_{}, reserve_{}, prefill_{};
  int32_t tokens_ = 0;
  int32_t longest_ = 0;  // tokens of the longest choice
  std::optional<int32_t> cached_tokens_;
  double transfer_ms_ = 0;
  int64_t kv_bytes_ = 0, header_bytes_ = 0;
  std::set<std::string> encode_workers_;
  int32_t slices_encoded_ = 0, slices_cached_ = 0;
  TimePoint first_slice_{}, last_slice_{};
};

}  // namespace trivium::router

#include "services/router/dispatch/run_account.h"

#include <algorithm>

namespace trivium::router {
namespace {

double Milliseconds(Duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

}  // namespace

void LegTimes::Reserved(TimePoint now) {
  queue_ = queue_before_ + (opened_ - waiting_since_);
  reserve_ = now - opened_;
  reserved_ = now;
}

Duration RunAccount::Token(int32_t choice, int32_t index, TimePoint now, const LegTimes& leg) {
  TimePoint& last = last_of_choice_[static_cast<size_t>(choice)];
  const Duration since = now - (index == 0 ? submitted_ : last);
  last = now;
  if (tokens_ == 0) {
    first_token_ = now;
    prefill_ = now - leg.reserved_at();
  }
  last_token_ = now;
  tokens_ += 1;
  longest_ = std::max(longest_, index + 1);
  return since;
}

void RunAccount::LegEnded(const LegTimes& leg) {
  queue_ = std::max(queue_, leg.queue_time());
  reserve_ = std::max(reserve_, leg.reserve_time());
}

void RunAccount::Sent(const v1::PrefillSent& sent) {
  transfer_ms_ = sent.transfer_ms();
  kv_bytes_ += sent.kv_bytes();
  header_bytes_ += sent.header_bytes();
  const int64_t cached = int64_t{sent.cached_tokens()} + sent.pulled_tokens();
  Cached(static_cast<int32_t>(std::clamp<int64_t>(cached, 0, prompt_tokens_)));
}

void RunAccount::Prefilled(const v1::Prefilled& prefilled) { Cached(prefilled.cached_tokens()); }

void RunAccount::AskedForSlice(TimePoint now) {
  if (first_slice_ == TimePoint{}) first_slice_ = last_slice_ = now;
}

void RunAccount::Encoded(const std::string& worker, bool cached, TimePoint now) {
  last_slice_ = now;
  encode_workers_.insert(worker);
  ++(cached ? slices_cached_ : slices_encoded_);
}

void RunAccount::Cached(int32_t tokens) {
  if (!cached_tokens_.has_value()) cached_tokens_ = std::clamp(tokens, 0, prompt_tokens_);
}

Duration RunAccount::time_per_token() const {
  return longest_ < 2 ? Duration(0) : (last_token_ - first_token_) / (longest_ - 1);
}

Duration RunAccount::transfer_time() const {
  return std::chrono::duration_cast<Duration>(
      std::chrono::duration<double, std::milli>(transfer_ms_));
}

void RunAccount::Fill(v1::Done* done) const {
  done->mutable_usage()->set_prompt_tokens(prompt_tokens_);
  done->mutable_usage()->set_completion_tokens(tokens_);
  done->mutable_usage()->set_cached_prompt_tokens(cached_tokens());
  v1::ServedBy& served_by = *done->mutable_served_by();
  for (const std::string& worker : encode_workers_) served_by.add_encode_workers(worker);
  served_by.set_slices_encoded(slices_encoded_);
  served_by.set_slices_cached(slices_cached_);
  v1::Timings& timings = *done->mutable_timings();
  timings.set_queue_ms(Milliseconds(queue_));
  timings.set_reserve_ms(Milliseconds(reserve_));
  timings.set_prefill_ms(Milliseconds(prefill_));
  timings.set_transfer_ms(transfer_ms_);
  timings.set_encode_ms(Milliseconds(encode_time()));
  timings.set_time_to_first_token_ms(Milliseconds(first_token_ - submitted_));
  timings.set_decode_ms(Milliseconds(last_token_ - first_token_));
  if (last_token_ > first_token_) {
    timings.set_tokens_per_second(1000.0 * (tokens_ - 1) / timings.decode_ms());
  }
  done->mutable_served_by()->set_kv_bytes_moved(kv_bytes_);
  done->mutable_served_by()->set_kv_header_bytes(header_bytes_);
}

}  // namespace trivium::router

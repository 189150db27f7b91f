#include "services/router/semantic_cache/cache_front.h"

#include <utility>

#include "trivium/v1/cache.pb.h"

namespace trivium::router {
namespace {

double SecondsSince(TimePoint then) {
  return std::chrono::duration<double>(Clock::Real().Now() - then).count();
}

std::string FlightKey(const CacheRequest& request) {
  const Hash128& hash = request.question.exact;
  return fmt::format("{:x}-{:x}-{}-{}", hash.high, hash.low, request.question.tokens_max,
                     request.category);
}

// Replays an answer as this request's: its own id and prompt, and nothing of the work that the
// first one took.
void Replay(const v1::CachedAnswer& answer, const RunRequest& run, const v1::CacheMark& mark,
            ResponseSink* sink) {
  for (const v1::Delta& delta : answer.deltas()) sink->OnDelta(delta);
  v1::Done done;
  done.set_request_id(run.id);
  done.set_finish_reason(answer.done().finish_reason());
  done.set_seed(answer.done().seed());
  *done.mutable_choices() = answer.done().choices();
  done.mutable_usage()->set_prompt_tokens(static_cast<int32_t>(run.prompt_ids.size()));
  done.mutable_usage()->set_completion_tokens(answer.done().usage().completion_tokens());
  *done.mutable_cached() = mark;
  sink->OnDone(done);
}

}  // namespace

// Between the leader's run and its sink: remembers what passes.
class CacheFront::Recorder final : public ResponseSink {
 public:
  Recorder(CacheFront* front, std::shared_ptr<Flight> flight)
      : front_(front), flight_(std::move(flight)) {}

  void OnDelta(const v1::Delta& delta) override {
    if (bytes_ == 0) front_->load_.FirstToken(Clock::Real().Now(), SecondsSince(began_));
    bytes_ += delta.ByteSizeLong();
    if (bytes_ <= front_->options_.answer_bytes_max)
      *answer_.add_deltas() = delta;
    else
      answer_.clear_deltas();
    flight_->leader.sink->OnDelta(delta);
  }
  void OnDone(const v1::Done& done) override {
    *answer_.mutable_done() = done;
    flight_->leader.sink->OnDone(done);
    front_->break_even_.Answered(SecondsSince(began_));
    const bool is_whole = bytes_ <= front_->options_.answer_bytes_max;
    front_->Finished(flight_, is_whole ? &answer_ : nullptr, absl::OkStatus());
  }
  void OnError(const absl::Status& status) override {
    flight_->leader.sink->OnError(status);
    front_->Finished(flight_, nullptr, status);
  }

 private:
  CacheFront* const front_;
  const std::shared_ptr<Flight> flight_;
  const TimePoint began_ = Clock::Real().Now();
  v1::CachedAnswer answer_;
  size_t bytes_ = 0;
};

CacheFront::CacheFront(Options options, Submit submit, SemanticCache* cache,
                       embedding::EmbeddingQueue* encoder, const Categories* categories)
    : options_(std::move(options)),
      submit_(std::move(submit)),
      cache_(cache),
      encoder_(encoder),
      categories_(categories),
      load_(options_.load),
      break_even_(cache->categories()),
      thread_([this] { Work(); }) {}

CacheFront::~CacheFront() {
  {
    std::lock_guard lock(mutex_);
    is_closing_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void CacheFront::Ask(const v1::GenerateRequest& request, RunRequest run,
                     std::shared_ptr<ResponseSink> sink, Started started) {
  auto flight = std::make_shared<Flight>();
  flight->request = ReadCacheRequest(request, run, options_.epoch, options_.rules);
  flight->asked = Clock::Real().Now();
  flight->leader = {std::move(run), std::move(sink), std::move(started)};
  const CacheRequest& asked = flight->request;
  if (asked.bypass != Bypass::kNone) {
    {
      std::lock_guard lock(mutex_);
      ++counts_.bypassed[static_cast<size_t>(asked.bypass)];
    }
    return flight->leader.started(submit_(std::move(flight->leader.run), flight->leader.sink));
  }
  if (!asked.category.empty()) flight->category = cache_->CategoryNamed(asked.category);
  if (flight->category.has_value() && !cache_->policy(*flight->category).is_enabled) {
    return flight->leader.started(submit_(std::move(flight->leader.run), flight->leader.sink));
  }
  if (asked.may_find) {
    const auto found = cache_->FindExact(asked.question, flight->category);
    if (found.has_value() && Serve(*found, flight->leader)) return;
  }
  if (asked.may_find && asked.may_keep) {
    std::lock_guard lock(mutex_);
    const auto [it, is_first] = flights_.emplace(FlightKey(asked), flight);
    if (!is_first && followers_ < options_.followers_max) {
      ++followers_;
      it->second->followers.push_back(std::move(flight->leader));
      return;
    }
  }
  Lead(std::move(flight));
}

void CacheFront::Lead(std::shared_ptr<Flight> flight) {
  if (!flight->request.question.is_comparable && flight->category.has_value()) return Go(flight);
  const absl::Status taken = encoder_->Encode(
      {flight->request.text},
      [this, flight](std::vector<embedding::Embedding> all) { Embedded(flight, std::move(all)); });
  if (!taken.ok()) Go(flight);
}

// On the encoder's thread.
void CacheFront::Embedded(const std::shared_ptr<Flight>& flight,
                          std::vector<embedding::Embedding> all) {
  CacheRequest& asked = flight->request;
  flight->vector = std::move(all[0].vector);
  // Of a text that was cut the rest may say anything.
  if (all[0].is_cut) asked.question.is_comparable = false;
  if (!flight->category.has_value()) flight->category = categories_->Of(flight->vector).category;
  if (!cache_->policy(*flight->category).is_enabled) {
    asked.may_keep = asked.may_find = false;
    for (Waiting& follower : Land(flight)) {
      follower.started(submit_(std::move(follower.run), follower.sink));
    }
  }
  // Embedded all the same: what is kept meanwhile has to be found when looking pays again.
  if (!asked.may_find || !break_even_.ShouldLook(*flight->category)) return Go(flight);
  const auto found = cache_->Find(asked.question, *flight->category, flight->vector);
  break_even_.Looked(*flight->category, found.has_value(), SecondsSince(flight->asked));
  if (!found.has_value()) {
    cache_->CountMiss(*flight->category);
    return Go(flight);
  }
  if (!Serve(*found, flight->leader)) return Go(flight);
  // Those who asked the same meanwhile find the same.
  for (const Waiting& follower : Land(flight)) {
    if (!Serve(*found, follower)) {
      follower.started(submit_(follower.run, follower.sink));
    }
  }
}

bool CacheFront::Serve(const SemanticCache::Found& found, const Waiting& to) {
  const TimePoint before = Clock::Real().Now();
  const absl::StatusOr<std::string> bytes = cache_->Answer(found);
  break_even_.Fetched(SecondsSince(before));
  v1::CachedAnswer answer;
  if (!bytes.ok() || !answer.ParseFromString(*bytes)) return false;
  v1::CacheMark mark;
  mark.set_category(cache_->policy(found.category).name);
  mark.set_age_s(static_cast<double>(found.age_ms) / 1000);
  mark.set_same_words(found.is_exact);
  mark.set_relaxed(found.is_relaxed);
  Replay(answer, to.run, mark, to.sink.get());
  return true;
}

void CacheFront::Go(const std::shared_ptr<Flight>& flight) {
  // A copy: who leads next has a run of its own, and this one's sink still needs the flight.
  const auto recorder = std::make_shared<Recorder>(this, flight);
  flight->leader.started(submit_(std::move(flight->leader.run), recorder));
}

std::deque<CacheFront::Waiting> CacheFront::Land(const std::shared_ptr<Flight>& flight) {
  std::lock_guard lock(mutex_);
  const auto it = flights_.find(FlightKey(flight->request));
  if (it != flights_.end() && it->second == flight) flights_.erase(it);
  followers_ -= flight->followers.size();
  return std::exchange(flight->followers, {});
}

// The leader has its end. `answer` is null where nobody else can use it.
void CacheFront::Finished(const std::shared_ptr<Flight>& flight, const v1::CachedAnswer* answer,
                          const absl::Status& status) {
  const bool is_good = answer != nullptr && MayKeep(answer->done());
  if (is_good && flight->request.may_keep) Keep(flight, *answer);
  std::deque<Waiting> followers = Land(flight);
  if (followers.empty()) return;
  if (answer != nullptr) {
    {
      std::lock_guard lock(mutex_);
      counts_.followed += followers.size();
    }
    v1::CacheMark mark;
    if (flight->category.has_value()) mark.set_category(cache_->policy(*flight->category).name);
    mark.set_same_words(true);
    for (const Waiting& follower : followers) {
      Replay(*answer, follower.run, mark, follower.sink.get());
    }
    return;
  }
  // That it was cancelled or had no more time is the leader's own affair; what else failed would
  // fail for each of them in turn.
  const bool is_its_own = absl::IsCancelled(status) || absl::IsDeadlineExceeded(status);
  if (!status.ok() && !is_its_own) {
    for (const Waiting& follower : followers) follower.sink->OnError(status);
    return;
  }
  auto next = std::make_shared<Flight>();
  next->request = flight->request;
  next->category = flight->category;
  next->vector = flight->vector;
  next->leader = std::move(followers.front());
  followers.pop_front();
  {
    std::lock_guard lock(mutex_);
    followers_ += followers.size();
    const auto [it, is_first] = flights_.emplace(FlightKey(next->request), next);
    std::deque<Waiting>& with = it->second->followers;
    std::move(followers.begin(), followers.end(), std::back_inserter(with));
  }
  Go(next);
}

void CacheFront::Keep(const std::shared_ptr<Flight>& flight, const v1::CachedAnswer& answer) {
  const bool can_be_placed = flight->category.has_value();
  std::lock_guard lock(mutex_);
  if (!can_be_placed || inserts_.size() >= options_.inserts_waiting_max) {
    ++counts_.inserts_dropped;
    return;
  }
  v1::CachedAnswer kept = answer;
  const int32_t tokens = answer.done().usage().completion_tokens();
  kept.mutable_done()->clear_request_id();
  kept.mutable_done()->clear_timings();
  kept.mutable_done()->clear_served_by();
  inserts_.push_back({flight, kept.SerializeAsString(), tokens});
  wake_.notify_all();
}

void CacheFront::Write(Kept kept) {
  const CacheRequest& asked = kept.flight->request;
  const TimePoint before = Clock::Real().Now();
  const absl::Status status =
      cache_->Insert(asked.question, *kept.flight->category, kept.flight->vector, kept.answer,
                     kept.completion_tokens);
  if (status.ok()) return break_even_.Inserted(SecondsSince(before));
  std::lock_guard lock(mutex_);
  ++counts_.inserts_failed;
}

void CacheFront::Upkeep(bool* is_more) {
  *is_more = cache_->Upkeep();
  const absl::StatusOr<bool> followed = cache_->Follow();
  *is_more |= followed.ok() && *followed;
  const TimePoint now = Clock::Real().Now();
  cache_->SetLoad(load_.Update(now, options_.queue ? options_.queue() : 0));
  break_even_.Tick(now);
}

void CacheFront::Explain(const v1::GenerateRequest& request, const RunRequest& run,
                         std::function<void(absl::StatusOr<Explanation>)> done) {
  const auto asked = std::make_shared<CacheRequest>(
      ReadCacheRequest(request, run, options_.epoch, options_.rules));
  Explanation out;
  out.bypass = asked->bypass;
  if (asked->bypass != Bypass::kNone) return done(std::move(out));
  const std::optional<size_t> named = cache_->CategoryNamed(asked->category);
  out.has_same_words = cache_->FindExact(asked->question, named).has_value();
  const absl::Status taken = encoder_->Encode(
      {asked->text},
      [this, asked, named, out, done](std::vector<embedding::Embedding> all) mutable {
        const Categories::Choice choice = categories_->Of(all[0].vector);
        const size_t category = named.value_or(choice.category);
        out.category = cache_->policy(category).name;
        out.confidence = named.has_value() ? 0 : choice.confidence;
        if (!all[0].is_cut) {
          cache_->Find(asked->question, category, all[0].vector, &out.examined);
        }
        done(std::move(out));
      });
  if (!taken.ok()) done(taken);
}

void CacheFront::Work() {
  bool is_more = false;
  TimePoint next_upkeep{};
  std::unique_lock lock(mutex_);
  while (true) {
    const auto due = [&] { return is_closing_ || !inserts_.empty(); };
    if (!is_more) wake_.wait_for(lock, options_.upkeep_interval, due);
    if (inserts_.empty() && is_closing_) return;
    if (!inserts_.empty()) {
      Kept kept = std::move(inserts_.front());
      inserts_.pop_front();
      lock.unlock();
      Write(std::move(kept));
    } else {
      lock.unlock();
    }
    if (is_more || Clock::Real().Now() >= next_upkeep) {
      Upkeep(&is_more);
      next_upkeep = Clock::Real().Now() + options_.upkeep_interval;
    }
    lock.lock();
  }
}

CacheFront::Counts CacheFront::counts() const {
  std::lock_guard lock(mutex_);
  return counts_;
}

}  // namespace trivium::router

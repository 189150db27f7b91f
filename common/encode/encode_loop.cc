#include "common/encode/encode_loop.h"

#include <algorithm>
#include <set>
#include <utility>

#include "common/encode/job.h"
#include "common/telemetry/log.h"
#include "common/vision/picture_key.h"
#include "common/vision/slices.h"

namespace trivium::encode {
namespace {

// The acknowledgements that free blocks wake the loop; leases end on the transport's thread, which
// posts nothing.
constexpr Duration kLeasePoll = std::chrono::milliseconds(5);
// Pixels of so many slices wait for their batch: two batches of small ones.
constexpr int64_t kDecodedRowsMax = 2 * vision::PictureEncoder::kPassRows;
constexpr double kSpeedWeight = 0.2;  // of the newest batch

template <typename... F>
struct Overloaded : F... {
  using F::operator()...;
};

double Seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

std::span<const uint8_t> BytesOf(const std::string& file) {
  return {reinterpret_cast<const uint8_t*>(file.data()), file.size()};
}

}  // namespace

EncodeLoop::EncodeLoop(const EncodeContext& context)
    : context_(context),
      admission_(context.requests_max),
      mailbox_(std::make_shared<worker::Mailbox<Command>>()) {
  PublishLoad();
  thread_ = std::thread([this] { Run(); });
}

EncodeLoop::~EncodeLoop() { Stop(); }

// ---- Any thread ----

absl::Status EncodeLoop::CheckRequest(const EncodeRequest& request) const {
  if (!request.picture_key.empty()) return CheckNamed(request);
  ASSIGN_OR_RETURN(const image::ImageInfo info,
                   image::Inspect(BytesOf(request.picture), context_.limits));
  const vision::TowerConfig& config = context_.encoder->tower().config;
  ASSIGN_OR_RETURN(const vision::PicturePlan plan,
                   vision::PlanPicture(config, info.width, info.height));
  if (media::BlocksFor(plan.tokens_per_slice) > context_.media->blocks->counts().total) {
    return InvalidArgument("a slice of {} tokens is more than this worker holds",
                           plan.tokens_per_slice);
  }
  std::set<int32_t> seen;
  for (const WantedSlice& wanted : request.slices) {
    if (wanted.slice < 0 || wanted.slice >= plan.slices() || !seen.insert(wanted.slice).second) {
      return InvalidArgument("slices: has {}, the picture's are 0 … {}, each at most once",
                             wanted.slice, plan.slices() - 1);
    }
    if (wanted.ticket.token_begin != 0 || wanted.ticket.token_end != plan.tokens_per_slice) {
      return InvalidArgument("slices: a ticket for the tokens {} to {}, a slice has {}",
                             wanted.ticket.token_begin, wanted.ticket.token_end,
                             plan.tokens_per_slice);
    }
  }
  return seen.empty() ? InvalidArgument("slices: none is wanted") : absl::OkStatus();
}

absl::Status EncodeLoop::Enter(const EncodeRequest& request) {
  const auto slices = static_cast<int32_t>(request.slices.size());
  const auto bytes = static_cast<int64_t>(request.picture.size());
  RETURN_IF_ERROR(admission_.Enter());
  std::unique_lock lock(mutex_);
  if (slices <= context_.slices_max - slices_waiting_ &&
      bytes <= context_.bytes_max - bytes_waiting_) {
    slices_waiting_ += slices;
    bytes_waiting_ += bytes;
    return absl::OkStatus();
  }
  const std::string full =
      fmt::format("{} slices and {} bytes of pictures wait", slices_waiting_, bytes_waiting_);
  lock.unlock();
  admission_.Leave();
  return worker::RetryLater(full);
}

void EncodeLoop::LeaveQueue(int32_t slices, int64_t bytes) {
  std::lock_guard lock(mutex_);
  slices_waiting_ -= slices;
  bytes_waiting_ -= bytes;
}

absl::StatusOr<uint64_t> EncodeLoop::Submit(EncodeRequest request, EncodeSink* sink) {
  RETURN_IF_ERROR(CheckRequest(request));
  RETURN_IF_ERROR(Enter(request));
  auto job = std::make_unique<Job>();
  const uint64_t number = next_number_++;
  job->number = number;
  job->sink = sink;
  job->submitted = context_.clock->Now();
  job->slices_queued = static_cast<int32_t>(request.slices.size());
  job->alive = std::make_shared<const uint64_t>(number);
  for (WantedSlice& wanted : request.slices) {
    Slice& slice = job->slices.emplace_back();
    slice.index = slice.report.slice = wanted.slice;
    slice.ticket = std::move(wanted.ticket);
    slice.is_elsewhere = wanted.is_elsewhere;
  }
  const auto bytes = static_cast<int64_t>(request.picture.size());
  const int32_t slices = job->slices_queued;
  job->request = std::move(request);
  if (mailbox_->Post(Arrived{std::move(job)})) return number;
  LeaveQueue(slices, bytes);
  admission_.Leave();
  return Unavailable("the worker is stopping");
}

void EncodeLoop::Cancel(uint64_t number) { mailbox_->Post(Cancelled{number}); }

void EncodeLoop::Drain() {
  admission_.Drain();
  context_.board->SetDraining();
}

void EncodeLoop::Stop() {
  mailbox_->Close();
  if (thread_.joinable()) thread_.join();
}

// ---- The loop's thread ----

void EncodeLoop::Run() {
  while (true) {
    for (Command& command : mailbox_->Take(IdleTime())) Apply(std::move(command));
    if (mailbox_->closed()) break;
    CheckPulls();
    DecodeAhead();
    PublishLoad();
    if (const Batch batch = FormBatch(); !batch.empty()) RunBatch(batch);
    PublishLoad();
  }
  for (Command& command : mailbox_->Take(Duration::zero())) Apply(std::move(command));
  while (!jobs_.empty()) End(jobs_.begin()->first, Unavailable("the worker is stopping"));
}

std::optional<Duration> EncodeLoop::IdleTime() const {
  bool pulls = false;
  for (const auto& [number, job] : jobs_) {
    const auto is_any = [&job](Slice::State state) {
      return std::ranges::count(job->slices, state, &Slice::state) > 0;
    };
    if (is_any(Slice::State::kWaiting)) return lacks_blocks_ ? kLeasePoll : Duration::zero();
    pulls |= is_any(Slice::State::kPulling);
  }
  if (pulls) return kLeasePoll;
  return std::nullopt;
}

void EncodeLoop::Apply(Command command) {
  std::visit(Overloaded{[this](Arrived& arrived) {
                          Job& job = *arrived.job;
                          jobs_.emplace(job.number, std::move(arrived.job));
                          if (!job.request.picture_key.empty()) return FindHeld(job);
                          undecoded_.Add({.ticket = job.number,
                                          .share = job.request.share,
                                          .arrived = job.submitted});
                        },
                        [this](Cancelled& cancelled) {
                          if (!jobs_.contains(cancelled.number)) return;
                          End(cancelled.number, absl::CancelledError("cancelled by the caller"));
                        },
                        [this](Delivered& delivered) {
                          const auto job = jobs_.find(delivered.number);
                          if (job != jobs_.end()) Deliver(*job->second, delivered);
                        },
                        [this](Pulled& pulled) {
                          const auto job = jobs_.find(pulled.number);
                          if (job != jobs_.end()) EndPull(*job->second, pulled);
                        }},
             command);
}

void EncodeLoop::Deliver(Job& job, const Delivered& delivered) {
  const auto slice = std::ranges::find(job.slices, delivered.slice, &Slice::index);
  slice->sender.reset();
  slice->blocks = kv::Reservation();
  if (delivered.stats.ok()) {
    slice->state = Slice::State::kLanded;
    slice->report.bytes = delivered.stats->kv_bytes;
    slice->report.transfer_s = Seconds(delivered.stats->first_send_to_last_ack);
    job.sink->OnSlice(slice->report);
  } else {
    slice->state = Slice::State::kLost;
    job.lost = fmt::format("slice {}: {}", slice->index, Message(delivered.stats.status()));
  }
  EndIfDone(job);
}

void EncodeLoop::EndIfDone(Job& job) {
  const bool is_done = std::ranges::all_of(job.slices, [](const Slice& slice) {
    return slice.state == Slice::State::kLanded || slice.state == Slice::State::kLost;
  });
  if (!is_done) return;
  if (job.lost.empty()) return End(job.number, absl::OkStatus());
  End(job.number, job.request.picture_key.empty()
                      ? absl::AbortedError("prefill worker lost: " + job.lost)
                      : absl::NotFoundError(job.lost));
}

int64_t EncodeLoop::RowsOf(const Job& job) const {
  int64_t rows = 0;
  for (const Slice& slice : job.slices) {
    // What is pulled waits for another worker: nobody else has to wait for that.
    if (slice.state == Slice::State::kPulling || slice.pixels.rgb.empty()) continue;
    rows += context_.encoder->tower().config.RowsOf(slice.pixels.width, slice.pixels.height);
  }
  return rows;
}

void EncodeLoop::DecodeAhead() {
  using Verdict = scheduling::FairQueue::Verdict;
  int64_t rows = 0;
  for (const auto& [turn, job] : decoded_) rows += RowsOf(*job);
  std::vector<std::pair<uint64_t, absl::Status>> failed;
  undecoded_.Serve(context_.clock->Now(), [&](uint64_t number) -> scheduling::FairQueue::Outcome {
    if (rows >= kDecodedRowsMax) return {Verdict::kEnough};
    Job& job = *jobs_.at(number);
    const TimePoint begin = context_.clock->Now();
    absl::Status status = Decode(job);
    context_.probe->OnPicture(Seconds(context_.clock->Now() - begin));
    if (!status.ok()) failed.emplace_back(number, std::move(status));
    const int64_t more = RowsOf(job);
    rows += more;
    return {Verdict::kTaken, more};
  });
  for (auto& [number, status] : failed) End(number, std::move(status));
}

// Pixels are kept of those slices alone whose tokens are not here; those of the others are held
// from now on.
absl::Status EncodeLoop::Decode(Job& job) {
  const std::string file = std::exchange(job.request.picture, {});
  LeaveQueue(0, static_cast<int64_t>(file.size()));
  job.turn = ++turns_;
  decoded_.emplace(job.turn, &job);
  ASSIGN_OR_RETURN(const image::Image image, image::Decode(BytesOf(file), context_.limits));
  const vision::Tower& tower = context_.encoder->tower();
  ASSIGN_OR_RETURN(const vision::PicturePlan plan,
                   vision::PlanPicture(tower.config, image.width, image.height));
  std::string key;
  if (job.request.domain.has_value()) {
    const kv::Domain& domain = *job.request.domain;
    key = vision::PictureKey(vision::PixelDigest(image), tower, context_.numerics_class);
    for (Slice& slice : job.slices) {
      ASSIGN_OR_RETURN(slice.chain, media::ChainOf(domain.key, key, slice.index, slice.tokens(),
                                                   domain.quota, domain.floor));
    }
  }
  bool needs_pixels = false;
  for (Slice& slice : job.slices) {
    if (slice.chain.size() > 0 && Take(slice) && !slice.report.cached) {
      slice.blocks = kv::Reservation();
    }
    needs_pixels |= slice.blocks.empty();
  }
  if (!needs_pixels) return absl::OkStatus();
  std::vector<image::Image> pixels = vision::CutPicture(tower.config, plan, image);
  for (Slice& slice : job.slices) {
    if (slice.blocks.empty()) slice.pixels = std::move(pixels[static_cast<size_t>(slice.index)]);
  }
  BeginPull(job, key);
  return absl::OkStatus();
}

// Blocks that were found wait for nobody: one that came earlier may be waiting for them.
void EncodeLoop::SendHeld() {
  for (const auto& [turn, job] : decoded_) {
    for (Slice& slice : job->slices) {
      if (slice.state == Slice::State::kWaiting && !slice.blocks.empty()) Send(*job, slice);
    }
  }
}

// In the order in which they were decoded, as many as the encoder takes in one pass.
EncodeLoop::Batch EncodeLoop::FormBatch() {
  SendHeld();
  Batch batch;
  int64_t rows = 0;
  lacks_blocks_ = false;
  for (const auto& [turn, job] : decoded_) {
    for (Slice& slice : job->slices) {
      if (slice.state != Slice::State::kWaiting) continue;
      const int64_t more =
          context_.encoder->tower().config.RowsOf(slice.pixels.width, slice.pixels.height);
      if (!batch.empty() && rows + more > vision::PictureEncoder::kPassRows) return batch;
      lacks_blocks_ = !Take(slice);
      if (lacks_blocks_) return batch;
      if (slice.report.cached) {
        Send(*job, slice);
        continue;
      }
      rows += more;
      batch.emplace_back(job, &slice);
    }
  }
  return batch;
}

// False: it has to wait for blocks.
bool EncodeLoop::Take(Slice& slice) {
  const kv::PrefixUse prefix{.chain = slice.chain.size() > 0 ? &slice.chain : nullptr,
                             .blocks_max = slice.chain.size(),
                             .may_take_kept = true};
  auto blocks = context_.media->blocks->Reserve(slice.blocks_needed(), prefix);
  if (!blocks.ok()) return false;
  slice.blocks = *std::move(blocks);
  slice.report.cached = slice.blocks.cached_blocks() == slice.blocks_needed();
  return true;
}

void EncodeLoop::RunBatch(const Batch& batch) {
  const TimePoint begin = context_.clock->Now();
  std::vector<image::Image> pixels;
  int64_t tokens = 0, rows = 0;
  for (const auto& [job, slice] : batch) {
    rows += context_.encoder->tower().config.RowsOf(slice->pixels.width, slice->pixels.height);
    slice->report.queue_s = Seconds(begin - job->submitted);
    pixels.push_back(std::exchange(slice->pixels, {}));
    tokens += slice->tokens();
  }
  const int64_t hidden = context_.media->hidden();
  tokens_.resize(static_cast<size_t>(tokens * hidden));
  context_.encoder->Encode(pixels, tokens_.data());
  ++batches_;
  const double seconds = Seconds(context_.clock->Now() - begin);
  const double each = seconds / static_cast<double>(batch.size());
  seconds_per_slice_ += seconds_per_slice_ == 0 ? each : kSpeedWeight * (each - seconds_per_slice_);
  context_.probe->OnBatch(static_cast<int32_t>(batch.size()), rows, seconds);
  std::span<const float> left(tokens_);
  for (const auto& [job, slice] : batch) {
    const auto size = static_cast<size_t>(slice->tokens() * hidden);
    // What was found of it belongs to others too, and is never written.
    const int32_t found = slice->blocks.cached_blocks() * media::kBlockTokens;
    media::WriteRows(*context_.media->storage, slice->blocks.blocks(), found,
                     left.first(size).subspan(static_cast<size_t>(found * hidden)));
    left = left.subspan(size);
    if (slice->chain.size() > 0) {
      context_.media->blocks->Publish(slice->blocks, slice->chain, slice->chain.size());
    }
    slice->report.encode_s = seconds;
    Send(*job, *slice);
  }
}

void EncodeLoop::Send(Job& job, Slice& slice) {
  slice.pixels = {};
  slice.state = Slice::State::kSending;
  --job.slices_queued;
  LeaveQueue(1, 0);
  context_.probe->OnSlice(slice.report);
  auto done = [mailbox = mailbox_, alive = std::weak_ptr<const uint64_t>(job.alive),
               index = slice.index](absl::StatusOr<transfer::TransferStats> stats) {
    const auto number = alive.lock();
    if (number != nullptr) mailbox->Post(Delivered{*number, index, std::move(stats)});
  };
  const std::span<const BlockId> blocks = slice.blocks.blocks();
  auto sender = context_.media->transport->Open(
      slice.ticket, job.request.key,
      {.blocks = {blocks.begin(), blocks.end()}, .lease = slice.blocks.Lease()}, done);
  if (!sender.ok()) {
    // Through the mailbox, as every other end: the caller goes through the jobs.
    mailbox_->Post(Delivered{job.number, slice.index, sender.status()});
    return;
  }
  slice.sender = *std::move(sender);
  slice.sender->Send({0, 1, 0, slice.tokens()});
  slice.sender->Finish("", true);
}

void EncodeLoop::End(uint64_t number, absl::Status status) {
  undecoded_.Remove(number);
  auto node = jobs_.extract(number);
  std::unique_ptr<Job> job = std::move(node.mapped());
  decoded_.erase(job->turn);
  for (const Slice& slice : job->slices) {
    if (slice.landing != 0) context_.media->transport->Withdraw(slice.landing);
  }
  LeaveQueue(job->slices_queued, static_cast<int64_t>(job->request.picture.size()));
  EncodeSink* sink = job->sink;
  context_.probe->OnEnd(status);
  const auto count = [&job](bool cached) {
    return std::ranges::count_if(job->slices, [cached](const Slice& slice) {
      return slice.state == Slice::State::kLanded && slice.report.cached == cached;
    });
  };
  const bool expected = status.ok() || absl::IsCancelled(status);
  telemetry::Log(expected ? telemetry::Level::kInfo : telemetry::Level::kWarning, "encode_end",
                 {{"request_id", job->request.key.request.value},
                  {"attempt", job->request.key.attempt.value},
                  {"status", absl::StatusCodeToString(status.code())},
                  {"error", Message(status)},
                  {"slices", job->slices.size()},
                  {"encoded", count(false)},
                  {"cached", count(true)}});
  job.reset();
  admission_.Leave();
  PublishLoad();
  sink->OnEnd(std::move(status));
}

void EncodeLoop::PublishLoad() {
  worker::Load load{.steps = batches_,
                    .requests_max = context_.requests_max,
                    .slices_max = context_.slices_max,
                    .seconds_per_slice = seconds_per_slice_};
  for (const auto& [number, job] : jobs_) {
    ++(job->slices_queued > 0 ? load.requests_waiting : load.requests_running);
  }
  {
    std::lock_guard lock(mutex_);
    load.slices_waiting = slices_waiting_;
  }
  context_.board->Set(load);
}

}  // namespace trivium::encode

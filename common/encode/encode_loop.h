// The encode stage without its network: takes pictures, turns the slices that are wanted of them
// into multimedia tokens, in batches over all requests, and sends each slice to its landing as soon
// as it is there. What was encoded before, of the same pixels in the same sharing domain, is sent
// from where it lies. Requests take turns by their tenants' shares, as everywhere
// (scheduling::FairQueue): a tenant is charged the rows that are to be encoded for it when its
// picture is decoded.
//
// A slice that another worker seems to hold is pulled from there (encode_pull.cc): it gets its
// blocks, the sink hears of landings in them, and whoever holds the slice is asked to send it there
// by its key. What has not come in time is encoded here, in other blocks.
//
// One thread owns the encoder and every request. Commands reach it through a mailbox and are read
// between batches; outputs leave through EncodeSink. Thread-safety: all public methods, any thread.
// Invariants: a slice has all its blocks or none, and waits for those of others to be acknowledged,
// so that what is on its way never exceeds the pool; every submitted request ends with exactly one
// OnEnd; blocks stay leased while the transport may read them. Bounds: EncodeContext's; pictures
// are decoded one at a time, as far ahead as the next batches need.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "common/image/decode.h"
#include "common/media/media_pool.h"
#include "common/scheduling/fair_queue.h"
#include "common/vision/picture_encoder.h"
#include "common/worker/admission.h"
#include "common/worker/load_board.h"
#include "common/worker/mailbox.h"

namespace trivium::encode {

inline constexpr int32_t kSlicesMax = 4096;  // of any picture

struct WantedSlice {
  int32_t slice = 0;  // of the picture
  transfer::Ticket ticket;
  bool is_elsewhere = false;  // another worker seems to hold it
};

// Slices of one picture. At least one is wanted, none twice.
struct EncodeRequest {
  transfer::Credentials key;
  std::string picture;      // the file
  std::string picture_key;  // or the name of what is wanted as far as it is held
  std::vector<WantedSlice> slices;
  std::optional<kv::Domain> domain;  // where the tokens are kept and found; none: nowhere
  scheduling::TenantShare share{};
  Duration pull_for{};  // no longer is waited for what is elsewhere
};

// What another worker may send here, by which name.
struct SlicesElsewhere {
  std::string picture_key;
  std::vector<WantedSlice> slices;  // with tickets of this worker
};

struct SliceReport {
  int32_t slice = 0;
  bool cached = false;  // here or elsewhere
  bool pulled = false;  // elsewhere
  int64_t bytes = 0;
  double queue_s = 0;   // from the request's arrival to the slice's batch
  double encode_s = 0;  // that batch
  double transfer_s = 0;
};

// Where the outputs of one request go. Called on the loop's thread; must not block. Not touched
// after OnEnd, until which it must live.
class EncodeSink {
 public:
  virtual void OnElsewhere(const SlicesElsewhere& slices) = 0;  // once at most, and first
  virtual void OnSlice(const SliceReport& report) = 0;          // it has landed; in any order
  virtual void OnEnd(absl::Status status) = 0;

 protected:
  ~EncodeSink() = default;
};

// Called on the loop's thread; must not block.
class EncodeProbe {
 public:
  virtual ~EncodeProbe() = default;
  virtual void OnBatch(int32_t slices, int64_t rows, double seconds) = 0;
  virtual void OnPicture(double decode_seconds) = 0;
  virtual void OnSlice(const SliceReport& report) = 0;  // that is about to be sent
  virtual void OnEnd(const absl::Status& status) = 0;
};

// Everything pointed to outlives the loop.
struct EncodeContext {
  vision::PictureEncoder* encoder = nullptr;  // driven by the loop's thread alone
  const media::MediaPool* media = nullptr;
  worker::LoadBoard* board = nullptr;
  EncodeProbe* probe = nullptr;
  Clock* clock = &Clock::Real();
  std::string numerics_class;
  image::DecodeLimits limits;
  int32_t requests_max = 64;
  int32_t slices_max = 1024;               // waiting or being encoded
  int64_t bytes_max = int64_t{256} << 20;  // of files that wait to be decoded
};

class EncodeLoop {
 public:
  explicit EncodeLoop(const EncodeContext& context);
  ~EncodeLoop();  // Stop
  EncodeLoop(const EncodeLoop&) = delete;
  EncodeLoop& operator=(const EncodeLoop&) = delete;

  // Gives the request's number, for Cancel. An error ends the request at once, without OnEnd:
  // UNAVAILABLE while draining, RESOURCE_EXHAUSTED with a retry hint beyond a bound, and errors of
  // image::Inspect and vision::PlanPicture, which are INVALID_ARGUMENT, as is a slice that the
  // picture does not have, or a ticket for another number of tokens. OnEnd later gives: OK when
  // every slice has landed, INVALID_ARGUMENT for a picture that is damaged, ABORTED when the others
  // have ended and some were not taken, NOT_FOUND likewise where some asked for by name are not
  // held, CANCELLED.
  absl::StatusOr<uint64_t> Submit(EncodeRequest request, EncodeSink* sink);
  void Cancel(uint64_t number);  // ignored for a request that has ended
  // Refuses new requests from now on; running ones finish.
  void Drain();
  // Ends what still runs with UNAVAILABLE and joins the thread.
  void Stop();

 private:
  struct Slice;
  struct Job;
  struct Arrived {
    std::unique_ptr<Job> job;
  };
  struct Cancelled {
    uint64_t number;
  };
  struct Delivered {
    uint64_t number;
    int32_t slice;
    absl::StatusOr<transfer::TransferStats> stats;
  };
  struct Pulled {
    uint64_t number;
    int32_t slice;
    absl::Status status;
  };
  using Command = std::variant<Arrived, Cancelled, Delivered, Pulled>;
  using Batch = std::vector<std::pair<Job*, Slice*>>;

  absl::Status CheckRequest(const EncodeRequest& request) const;
  absl::Status CheckNamed(const EncodeRequest& request) const;
  absl::Status Enter(const EncodeRequest& request);
  void LeaveQueue(int32_t slices, int64_t bytes);
  void Run();
  std::optional<Duration> IdleTime() const;
  void Apply(Command command);
  void Deliver(Job& job, const Delivered& delivered);
  void FindHeld(Job& job);
  void BeginPull(Job& job, const std::string& picture_key);
  void EndPull(Job& job, const Pulled& pulled);
  void CheckPulls();
  void DecodeAhead();
  absl::Status Decode(Job& job);
  int64_t RowsOf(const Job& job) const;
  void SendHeld();
  Batch FormBatch();
  bool Take(Slice& slice);
  void RunBatch(const Batch& batch);
  void Send(Job& job, Slice& slice);
  void EndIfDone(Job& job);
  void End(uint64_t number, absl::Status status);
  void PublishLoad();

  const EncodeContext context_;
  worker::Admission admission_;
  std::shared_ptr<worker::Mailbox<Command>> mailbox_;  // callbacks may outlive the loop
  std::atomic<uint64_t> next_number_{1};
  mutable std::mutex mutex_;  // of the next two
  int32_t slices_waiting_ = 0;
  int64_t bytes_waiting_ = 0;
  // The loop's thread only.
  std::map<uint64_t, std::unique_ptr<Job>> jobs_;  // by arrival
  scheduling::FairQueue undecoded_;
  std::map<uint64_t, Job*> decoded_;  // in the order in which they were
  uint64_t turns_ = 0, batches_ = 0;
  double seconds_per_slice_ = 0;
  bool lacks_blocks_ = false;  // the next slice does
  std::vector<float> tokens_;
  std::thread thread_;
};

}  // namespace trivium::encode

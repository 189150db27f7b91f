// The landings of one worker: which messages may write where, what has arrived, and when a landing
// is over. Knows no clock, link or thread of its own, so it is tested by plain calls.
// Thread-safety: none; one thread owns it. Callbacks are called from End().
// Invariants: one message at a time writes a row, none once it has landed; on_arrival is called
// exactly once for every landing added.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/transfer/sealed_rows.h"
#include "common/transfer/wire.h"

namespace trivium::transfer {

// Which (layer, token) pairs of a landing are claimed, by a message that is on its way or has
// landed, and how many have landed.
class Coverage {
 public:
  Coverage(int32_t layers, int32_t token_begin, int32_t token_end);
  bool Any(const RowRange& rows) const;
  void Claim(const RowRange& rows);  // none of them claimed before
  void Unclaim(const RowRange& rows);
  void Land(const RowRange& rows);  // claimed ones
  bool Full() const { return landed_ == total_; }
  // Where all claimed rows have landed: the first token that some layer lacks, or token_end. While
  // others are on their way, token_begin.
  int32_t CompleteEnd() const;

 private:
  template <typename F>
  void ForEachWord(const RowRange& rows, F&& visit) const;

  int32_t token_begin_, token_end_;
  int64_t words_per_layer_;
  int64_t total_, landed_ = 0;
  std::vector<uint64_t> claimed_;
};

struct Landing {
  Landing(LandingOptions landing_options, int32_t layers);

  LandingOptions options;
  uint64_t request_hash;
  TimePoint last_sign{};  // of life: made, kept alive
  bool begun = false;     // a sender has shown its credentials
  uint64_t source = 0;    // that sender's transport
  uint64_t sender_id = 0;
  Coverage covered;
  int64_t kv_bytes = 0;
  uint64_t messages = 0;  // Rows that landed
  bool finished = false;  // Finish came: how many Rows there are, and what else it said
  uint64_t messages_due = 0;
  bool rows_due = false;  // missing rows are a loss
  std::string tail;
};

class LandingTable {
 public:
  LandingTable(RowMap rows, WorkerEpoch epoch) : rows_(rows), epoch_(epoch) {}

  void Add(uint64_t id, LandingOptions options, TimePoint now);
  void KeepAlive(uint64_t id, TimePoint now);
  const Landing* Find(uint64_t id) const;
  size_t size() const { return landings_.size(); }

  // Every check that needs no payload: epoch, landing, request and secret, attempt, generation,
  // peer, range, replay, size. Nothing: the message may go on.
  std::optional<Refusal> Check(const MessageHeader& header) const;

  // The message passed Check and its checksum.
  void Begin(const MessageHeader& header);
  void Finish(const MessageHeader& header, std::span<const uint8_t> tail);
  // The same of Rows, whose seal is still to come: nobody else may write these rows until Land or
  // Reject, which are for the time that the landing lives.
  std::shared_ptr<ArrivingRows> Claim(const MessageHeader& header, const HeaderBytes& bytes);
  void Land(const MessageHeader& header);
  void Reject(const MessageHeader& header);  // they may come again

  // What on_arrival should be told now; nothing while messages are due.
  std::optional<absl::StatusOr<Arrival>> Outcome(uint64_t id) const;
  // Forgets the landing, lets go of its blocks, calls on_arrival. False when there was none.
  bool End(uint64_t id, absl::StatusOr<Arrival> outcome);

  // Landings that no sender reached for `unused` after their last sign of life.
  std::vector<uint64_t> Unused(TimePoint now, Duration unused) const;
  std::vector<uint64_t> OfPeer(uint64_t source) const;
  std::vector<uint64_t> All() const;

 private:
  std::optional<Refusal> CheckPlace(const Landing& landing, const MessageHeader& header) const;

  RowMap rows_;
  WorkerEpoch epoch_;
  std::unordered_map<uint64_t, std::unique_ptr<Landing>> landings_;
};

}  // namespace trivium::transfer

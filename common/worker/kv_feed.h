// What one Watch stream tells of the pool's blocks: the pool's event log as messages of bounded
// size, a snapshot first, and again where the stream has fallen too far behind. Thread-safety:
// none; belongs to one stream, one caller at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/kv/event_log.h"

namespace trivium::v1 {
class KvEvents;
}

namespace trivium::worker {

class KvFeed {
 public:
  static constexpr size_t kKeysMax = 16384;  // of one message: 256 KiB

  // The log outlives the feed.
  explicit KvFeed(const kv::EventLog& log) : log_(&log) {}

  // The next message; false, and nothing is written, when there is nothing new.
  bool Next(v1::KvEvents* message);

 private:
  const kv::EventLog* log_;
  uint64_t cursor_ = 0;                // of the log; 0: a snapshot is due
  std::vector<kv::KvChange> pending_;  // read from the log
  size_t sent_ = 0;                    // of these
  bool is_snapshot_ = false;           // what is pending
  uint64_t next_event_ = 1;            // of the stream
};

}  // namespace trivium::worker

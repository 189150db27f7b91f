#include "common/worker/kv_feed.h"

#include <algorithm>
#include <utility>

#include "trivium/v1/stage.pb.h"

namespace trivium::worker {

bool KvFeed::Next(v1::KvEvents* message) {
  bool begins = false;
  if (sent_ == pending_.size()) {
    kv::EventLog::Reading reading = log_->Read(cursor_, kKeysMax);
    cursor_ = reading.next;
    pending_ = std::move(reading.changes);
    sent_ = 0;
    begins = is_snapshot_ = reading.is_snapshot;
    // A snapshot of nothing says that nothing is held any more.
    if (pending_.empty() && !begins) return false;
  }
  message->set_first(next_event_);
  message->set_is_snapshot_begin(begins);
  message->set_is_snapshot(is_snapshot_);
  const size_t end = std::min(pending_.size(), sent_ + kKeysMax);
  std::string* keys = nullptr;
  for (size_t i = sent_; i < end; ++i) {
    if (keys == nullptr || pending_[i].stored != pending_[i - 1].stored ||
        pending_[i].tier != pending_[i - 1].tier) {
      v1::KvEvent* event = message->add_events();
      ++next_event_;
      v1::KvStored* blocks =
          pending_[i].stored ? event->mutable_stored() : event->mutable_removed();
      blocks->set_tier(static_cast<v1::KvTier>(pending_[i].tier));
      keys = blocks->mutable_keys();
    }
    kv::AppendBytes(pending_[i].key, keys);
  }
  sent_ = end;
  return true;
}

}  // namespace trivium::worker

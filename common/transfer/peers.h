// The transports that this one talks to: connections, heartbeats, and when a peer counts as lost.
// Thread-safety: none; one thread owns it.
// Invariant: a peer with open transfers is pinged every heartbeat, and lost after one lease of
// silence. So is one whose transfers are over while the wire still works on their memory: else a
// peer that has stopped would keep it.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/transfer/link.h"
#include "common/transfer/transport.h"
#include "common/transfer/wire.h"

namespace trivium::transfer {

inline constexpr size_t kMaxPeers = 1024;

// `timeouts` with its scale applied.
TransferTimeouts Scaled(const TransferTimeouts& timeouts);

class PeerTable {
 public:
  // `timeouts` are scaled already.
  PeerTable(Link* link, const Clock* clock, uint64_t own_id, TransferTimeouts timeouts)
      : link_(link), clock_(clock), own_id_(own_id), timeouts_(timeouts) {}

  bool Knows(uint64_t id) const { return peers_.contains(id); }
  // Connects unless connected. RESOURCE_EXHAUSTED when too many peers have open transfers.
  absl::Status Reach(uint64_t id, const std::string& link_address);
  // One open transfer more or fewer with this peer.
  void Hold(uint64_t id);
  void Release(uint64_t id);
  // Any message of the peer is a sign of life.
  void Heard(uint64_t id);
  bool Suspect(uint64_t id) const;

  // Completes `header` with our id. Unknown peers swallow it. Returns the bytes handed to the link.
  int64_t Post(uint64_t id, MessageHeader header, Buffer payload = {});
  int64_t PostSealed(uint64_t id, const HeaderBytes& header, Buffer payload);
  bool ReadsRows(uint64_t id) const;  // else PostRows must not be called
  int64_t PostRows(uint64_t id, const HeaderBytes& header, SealedRows rows);

  // Sends the heartbeats that are due; returns the peers that are lost, with the reason.
  struct Lost {
    uint64_t id;
    std::string reason;
  };
  std::vector<Lost> Sweep();
  // Force-closes and forgets.
  void Drop(uint64_t id);
  // Of a connection that the link reported; 0: none of ours.
  uint64_t Owner(Connection connection) const;
  std::vector<uint64_t> All() const;
  // Whether the last Sweep had anybody to watch.
  bool AnyWatched() const { return any_watched_; }
  int64_t Suspects() const;

 private:
  struct Peer {
    Connection connection = 0;
    int64_t transfers = 0;
    bool answered = false;  // ever
    TimePoint watched_since{};
    TimePoint last_heard{};
    TimePoint last_ping{};
  };
  Duration Silence(const Peer& peer) const;
  bool EvictIdle();

  Link* link_;
  const Clock* clock_;
  uint64_t own_id_;
  TransferTimeouts timeouts_;
  std::unordered_map<uint64_t, Peer> peers_;
  bool any_watched_ = false;
};

}  // namespace trivium::transfer

#include "common/transfer/peers.h"

#include <algorithm>

namespace trivium::transfer {

TransferTimeouts Scaled(const TransferTimeouts& timeouts) {
  const auto times = [&](Duration d) {
    return Duration(static_cast<int64_t>(static_cast<double>(d.count()) * timeouts.scale));
  };
  TransferTimeouts scaled;
  scaled.connect = times(timeouts.connect);
  scaled.heartbeat = times(timeouts.heartbeat);
  scaled.suspect = times(timeouts.suspect);
  scaled.lease = times(timeouts.lease);
  scaled.unused_ticket = times(timeouts.unused_ticket);
  scaled.acknowledgement = times(timeouts.acknowledgement);
  return scaled;
}

absl::Status PeerTable::Reach(uint64_t id, const std::string& link_address) {
  if (Knows(id)) return absl::OkStatus();
  if (peers_.size() >= kMaxPeers && !EvictIdle()) {
    return ResourceExhausted("transfer: {} peers with open transfers", kMaxPeers);
  }
  ASSIGN_OR_RETURN(const Connection connection, link_->Connect(link_address));
  Peer peer;
  peer.connection = connection;
  peer.last_heard = peer.watched_since = peer.last_ping = clock_->Now();
  peers_.emplace(id, peer);
  return absl::OkStatus();
}

bool PeerTable::EvictIdle() {
  uint64_t oldest = 0;
  TimePoint oldest_heard = TimePoint::max();
  for (const auto& [id, peer] : peers_) {
    if (peer.transfers > 0 || peer.last_heard >= oldest_heard) continue;
    oldest = id;
    oldest_heard = peer.last_heard;
  }
  if (oldest_heard == TimePoint::max()) return false;
  Drop(oldest);
  return true;
}

void PeerTable::Hold(uint64_t id) {
  const auto it = peers_.find(id);
  if (it == peers_.end()) return;
  // Silence counts only while somebody listens for this peer.
  if (it->second.transfers++ == 0) it->second.watched_since = clock_->Now();
}

void PeerTable::Release(uint64_t id) {
  if (const auto it = peers_.find(id); it != peers_.end()) --it->second.transfers;
}

void PeerTable::Heard(uint64_t id) {
  const auto it = peers_.find(id);
  if (it == peers_.end()) return;
  it->second.last_heard = clock_->Now();
  it->second.answered = true;
}

Duration PeerTable::Silence(const Peer& peer) const {
  return clock_->Now() - std::max(peer.last_heard, peer.watched_since);
}

bool PeerTable::Suspect(uint64_t id) const {
  const auto it = peers_.find(id);
  return it == peers_.end() || Silence(it->second) > timeouts_.suspect;
}

int64_t PeerTable::Suspects() const {
  return std::count_if(peers_.begin(), peers_.end(), [&](const auto& entry) {
    return entry.second.transfers > 0 && Silence(entry.second) > timeouts_.suspect;
  });
}

int64_t PeerTable::Post(uint64_t id, MessageHeader header, Buffer payload) {
  header.source = own_id_;
  header.payload_bytes = static_cast<uint32_t>(payload.bytes().size());
  const HeaderBytes bytes = EncodeHeader(header, payload.bytes());
  return PostSealed(id, bytes, std::move(payload));
}

int64_t PeerTable::PostSealed(uint64_t id, const HeaderBytes& header, Buffer payload) {
  const auto it = peers_.find(id);
  if (it == peers_.end()) return 0;
  const int64_t bytes = static_cast<int64_t>(kHeaderBytes + payload.bytes().size());
  link_->Send(it->second.connection, header, std::move(payload));
  return bytes;
}

bool PeerTable::ReadsRows(uint64_t id) const {
  const auto it = peers_.find(id);
  return it != peers_.end() && link_->ReadsRows(it->second.connection);
}

int64_t PeerTable::PostRows(uint64_t id, const HeaderBytes& header, SealedRows rows) {
  const auto it = peers_.find(id);
  if (it == peers_.end()) return 0;
  const auto bytes = static_cast<int64_t>(kHeaderBytes + rows.bytes());
  link_->SendRows(it->second.connection, header, std::move(rows));
  return bytes;
}

std::vector<PeerTable::Lost> PeerTable::Sweep() {
  std::vector<Lost> lost;
  const TimePoint now = clock_->Now();
  any_watched_ = false;
  for (auto& [id, peer] : peers_) {
    if (peer.transfers == 0 && !link_->IsBusy(peer.connection)) continue;
    any_watched_ = true;
    const Duration silence = Silence(peer);
    if (!peer.answered && silence > timeouts_.connect) {
      lost.push_back({id, "the peer did not answer the connection"});
    } else if (silence > timeouts_.lease) {
      lost.push_back({id, "no heartbeat of the peer within its lease"});
    } else if (now - peer.last_ping >= timeouts_.heartbeat) {
      peer.last_ping = now;
      MessageHeader ping;
      ping.type = MessageType::kPing;
      Post(id, ping);
    }
  }
  return lost;
}

void PeerTable::Drop(uint64_t id) {
  const auto it = peers_.find(id);
  if (it == peers_.end()) return;
  link_->ForceClose(it->second.connection);
  peers_.erase(it);
}

uint64_t PeerTable::Owner(Connection connection) const {
  for (const auto& [id, peer] : peers_) {
    if (peer.connection == connection) return id;
  }
  return 0;
}

std::vector<uint64_t> PeerTable::All() const {
  std::vector<uint64_t> ids;
  for (const auto& [id, peer] : peers_) ids.push_back(id);
  return ids;
}

}  // namespace trivium::transfer

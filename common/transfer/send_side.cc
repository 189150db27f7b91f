#include "common/transfer/send_side.h"

#include <cstring>

namespace trivium::transfer {
namespace {

// Then the loop looks at the wire again, so that the other side can work on what it has.
constexpr int kMessagesPerTurn = 2;

absl::Status StatusOfRefusal(Refusal refusal) {
  switch (refusal) {
    case Refusal::kChecksum:
      return absl::DataLossError("the receiver found a damaged message");
    case Refusal::kUnknownLanding:
      return absl::AbortedError("the receiver has no such landing any more");
    case Refusal::kOverLimit:
      return ResourceExhausted("the receiver refused a message: {}", RefusalName(refusal));
    default:
      return FailedPrecondition("the receiver refused a message: {}", RefusalName(refusal));
  }
}

}  // namespace

SendSide::SendSide(Wiring* wiring)
    : wiring_(wiring), buffers_(kMaxPayloadBytes, wiring->limits.send_buffers) {}

void SendSide::Open(uint64_t id, Ticket ticket, TransportAddress to, Credentials credentials,
                    SequenceBlocks from, DeliveryCallback done) {
  const auto [it, added] = transfers_.emplace(
      id, Transfer{to.transport_id,
                   Outgoing(wiring_->rows, std::move(ticket), std::move(credentials),
                            std::move(from), std::move(done), id, wiring_->limits.window_bytes)});
  TRIVIUM_CHECK(added, "transfer {} opened twice", id);
  if (auto status = wiring_->peers->Reach(to.transport_id, to.link); !status.ok()) {
    return End(id, status);
  }
  wiring_->peers->Hold(to.transport_id);
  it->second.has_begun = PostBegin(it->second);
}

bool SendSide::PostBegin(Transfer& transfer) {
  Buffer address = buffers_.Take(wiring_->address.size());
  if (address.empty()) return false;
  std::memcpy(address.bytes().data(), wiring_->address.data(), wiring_->address.size());
  Outgoing& outgoing = transfer.outgoing;
  outgoing.stats().header_bytes += static_cast<int64_t>(wiring_->address.size());
  outgoing.NoteSent(kBeginSequence, 0, wiring_->clock->Now());
  wiring_->tally->bytes_sent +=
      wiring_->peers->Post(transfer.peer, outgoing.Header(MessageType::kBegin), std::move(address));
  return true;
}

void SendSide::SendRows(uint64_t id, const RowRange& rows) {
  const auto it = transfers_.find(id);
  if (it == transfers_.end()) return;
  const absl::Status status = it->second.outgoing.Queue(rows);
  if (!status.ok()) EndAndTell(id, status, Refusal::kCount);
}

void SendSide::Finish(uint64_t id, std::string tail, bool kv_complete) {
  const auto it = transfers_.find(id);
  if (it == transfers_.end()) return;
  const absl::Status status = it->second.outgoing.QueueFinish(std::move(tail), kv_complete);
  if (!status.ok()) EndAndTell(id, status, Refusal::kCount);
}

void SendSide::FinishShort(uint64_t id) {
  const auto it = transfers_.find(id);
  if (it == transfers_.end()) return;
  const absl::Status status = it->second.outgoing.QueueFinishShort();
  if (!status.ok()) EndAndTell(id, status, Refusal::kCount);
}

void SendSide::Abort(uint64_t id, const absl::Status& why) {
  if (transfers_.contains(id)) EndAndTell(id, why, Refusal::kCount);
}

void SendSide::Handle(const MessageHeader& header) {
  const auto it = transfers_.find(header.sender_id);
  if (it == transfers_.end()) return AnswerLate(header);
  Transfer& transfer = it->second;
  Outgoing& outgoing = transfer.outgoing;
  if (header.source != transfer.peer || header.epoch != outgoing.ticket().epoch.value ||
      !SecretsEqual(header.secret, outgoing.credentials().secret)) {
    return wiring_->tally->Refuse(Refusal::kWrongSecret);
  }
  if (header.type == MessageType::kRefused) {
    return EndAndTell(header.sender_id, StatusOfRefusal(header.refusal), header.refusal);
  }
  if (!outgoing.Acknowledged(header.sequence, wiring_->clock->Now())) {
    return wiring_->tally->Refuse(Refusal::kReplay);
  }
  if (outgoing.Delivered()) End(header.sender_id, outgoing.stats());
}

void SendSide::AnswerLate(const MessageHeader& header) {
  if (header.type != MessageType::kAck || header.sequence != kBeginSequence) return;
  // The landing has only just begun for a transfer that is over: nobody else would ever end it.
  MessageHeader abort = header;
  abort.type = MessageType::kAbort;
  wiring_->tally->bytes_sent += wiring_->peers->Post(header.source, abort);
}

bool SendSide::PostRows(const Transfer& transfer, const MessageHeader& header) {
  PeerTable& peers = *wiring_->peers;
  const SequenceBlocks& from = transfer.outgoing.from();
  const HeaderBytes bytes = EncodeHeader(header, {});
  SealedRows rows(bytes, wiring_->rows.Runs(from.blocks, header.rows), from.lease);
  if (peers.ReadsRows(transfer.peer)) {
    wiring_->tally->bytes_sent += peers.PostRows(transfer.peer, bytes, std::move(rows));
    return true;
  }
  Buffer buffer = buffers_.Take(rows.bytes());
  if (buffer.empty()) return false;
  rows.Read(0, buffer.bytes());
  wiring_->tally->bytes_sent += peers.PostSealed(transfer.peer, bytes, std::move(buffer));
  return true;
}

bool SendSide::PostFinish(const Transfer& transfer, const MessageHeader& header) {
  const std::string& tail = transfer.outgoing.tail();
  Buffer buffer;
  if (!tail.empty()) {
    buffer = buffers_.Take(tail.size());
    if (buffer.empty()) return false;
    std::memcpy(buffer.bytes().data(), tail.data(), tail.size());
  }
  const HeaderBytes bytes = EncodeHeader(header, buffer.bytes());
  wiring_->tally->bytes_sent += wiring_->peers->PostSealed(transfer.peer, bytes, std::move(buffer));
  return true;
}

bool SendSide::PumpOne(Transfer& transfer) {
  if (!transfer.has_begun) return transfer.has_begun = PostBegin(transfer);
  std::optional<MessageHeader> next = transfer.outgoing.Next();
  if (!next || wiring_->peers->Suspect(transfer.peer)) return false;
  next->source = wiring_->transport_id;
  const bool sent =
      next->type == MessageType::kRows ? PostRows(transfer, *next) : PostFinish(transfer, *next);
  if (sent) transfer.outgoing.Taken(wiring_->clock->Now());
  return sent;
}

bool SendSide::Turn(std::vector<PeerTable::Lost>* lost) {
  SweepOverdue(lost);
  int sent = 0;
  size_t idle = 0;
  auto it = transfers_.upper_bound(turn_from_);
  while (sent < kMessagesPerTurn && idle < transfers_.size()) {
    if (it == transfers_.end()) it = transfers_.begin();
    if (PumpOne(it->second)) {
      ++sent;
      idle = 0;
    } else {
      ++idle;
    }
    turn_from_ = it->first;
    ++it;
  }
  return sent == kMessagesPerTurn;
}

void SendSide::SweepOverdue(std::vector<PeerTable::Lost>* lost) {
  const TimePoint now = wiring_->clock->Now();
  for (const auto& [id, transfer] : transfers_) {
    const bool begun = transfer.outgoing.begin_acked();
    const Duration limit = begun ? wiring_->timeouts.acknowledgement : wiring_->timeouts.connect;
    if (!transfer.outgoing.Overdue(now, limit)) continue;
    lost->push_back({transfer.peer, begun ? "no acknowledgement in time"
                                          : "no answer to the start of a transfer"});
  }
}

void SendSide::EndAndTell(uint64_t id, const absl::Status& status, Refusal reason) {
  const auto it = transfers_.find(id);
  if (it == transfers_.end()) return;
  MessageHeader abort = it->second.outgoing.Header(MessageType::kAbort);
  abort.refusal = reason;
  wiring_->tally->bytes_sent += wiring_->peers->Post(it->second.peer, abort);
  End(id, status);
}

void SendSide::End(uint64_t id, absl::StatusOr<TransferStats> outcome) {
  auto node = transfers_.extract(id);
  if (node.empty()) return;
  wiring_->peers->Release(node.mapped().peer);
  --wiring_->tally->senders_open;
  DeliveryCallback done;
  {
    // The blocks are let go before the owner hears that they may be.
    Transfer transfer = std::move(node.mapped());
    done = transfer.outgoing.TakeDone();
  }
  if (done) done(std::move(outcome));
}

void SendSide::PeerLost(uint64_t peer, const std::string& reason) {
  std::vector<uint64_t> ids;
  for (const auto& [id, transfer] : transfers_) {
    if (transfer.peer == peer) ids.push_back(id);
  }
  for (const uint64_t id : ids) End(id, Unavailable("the receiver was lost: {}", reason));
}

void SendSide::EndAll(const absl::Status& status) {
  while (!transfers_.empty()) EndAndTell(transfers_.begin()->first, status, Refusal::kCount);
}

}  // namespace trivium::transfer

#include "common/transfer/landing.h"

#include <algorithm>
#include <bit>

namespace trivium::transfer {

Coverage::Coverage(int32_t layers, int32_t token_begin, int32_t token_end)
    : token_begin_(token_begin),
      token_end_(token_end),
      words_per_layer_((int64_t{token_end} - token_begin + 63) / 64),
      total_(int64_t{layers} * (token_end - token_begin)),
      claimed_(static_cast<size_t>(words_per_layer_ * layers), 0) {}

template <typename F>
void Coverage::ForEachWord(const RowRange& rows, F&& visit) const {
  const int64_t begin = rows.token_begin - token_begin_, end = rows.token_end - token_begin_;
  for (int64_t layer = rows.layer_begin; layer < rows.layer_end; ++layer) {
    for (int64_t bit = begin; bit < end;) {
      const int64_t from = bit % 64, count = std::min<int64_t>(64 - from, end - bit);
      const uint64_t ones = count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
      visit(static_cast<size_t>(layer * words_per_layer_ + bit / 64), ones << from);
      bit += count;
    }
  }
}

bool Coverage::Any(const RowRange& rows) const {
  uint64_t any = 0;
  ForEachWord(rows, [&](size_t word, uint64_t mask) { any |= claimed_[word] & mask; });
  return any != 0;
}

void Coverage::Claim(const RowRange& rows) {
  ForEachWord(rows, [&](size_t word, uint64_t mask) { claimed_[word] |= mask; });
}

void Coverage::Unclaim(const RowRange& rows) {
  ForEachWord(rows, [&](size_t word, uint64_t mask) { claimed_[word] &= ~mask; });
}

void Coverage::Land(const RowRange& rows) {
  landed_ += int64_t{rows.layer_end - rows.layer_begin} * (rows.token_end - rows.token_begin);
}

int32_t Coverage::CompleteEnd() const {
  int64_t claimed = 0;
  for (const uint64_t word : claimed_) claimed += std::popcount(word);
  if (claimed != landed_) return token_begin_;
  const auto step = static_cast<size_t>(words_per_layer_);
  for (size_t i = 0; i < step; ++i) {
    uint64_t in_all = ~uint64_t{0};
    for (size_t at = i; at < claimed_.size(); at += step) in_all &= claimed_[at];
    if (in_all == ~uint64_t{0}) continue;
    return token_begin_ + static_cast<int32_t>(i) * 64 + std::countr_one(in_all);
  }
  return token_end_;
}

Landing::Landing(LandingOptions landing_options, int32_t layers)
    : options(std::move(landing_options)),
      request_hash(HashRequest(options.credentials.request)),
      covered(layers, options.token_begin, options.token_end) {}

void LandingTable::Add(uint64_t id, LandingOptions options, TimePoint now) {
  auto landing = std::make_unique<Landing>(std::move(options), rows_.layers());
  landing->last_sign = now;
  landings_.emplace(id, std::move(landing));
}

void LandingTable::KeepAlive(uint64_t id, TimePoint now) {
  if (const auto it = landings_.find(id); it != landings_.end()) it->second->last_sign = now;
}

const Landing* LandingTable::Find(uint64_t id) const {
  const auto it = landings_.find(id);
  return it == landings_.end() ? nullptr : it->second.get();
}

std::optional<Refusal> LandingTable::Check(const MessageHeader& header) const {
  if (header.epoch != epoch_.value) return Refusal::kOldEpoch;
  const Landing* landing = Find(header.landing_id);
  if (landing == nullptr) return Refusal::kUnknownLanding;
  const Credentials& wanted = landing->options.credentials;
  const bool secret_right = SecretsEqual(header.secret, wanted.secret);
  if (!secret_right || header.request_hash != landing->request_hash) return Refusal::kWrongSecret;
  if (header.attempt != wanted.attempt.value) return Refusal::kOldAttempt;
  if (header.generation != landing->options.generation) return Refusal::kOldGeneration;
  return CheckPlace(*landing, header);
}

std::optional<Refusal> LandingTable::CheckPlace(const Landing& landing,
                                                const MessageHeader& header) const {
  if (header.type == MessageType::kBegin) {
    return landing.begun ? std::optional(Refusal::kReplay) : std::nullopt;
  }
  if (!landing.begun || header.source != landing.source || header.sender_id != landing.sender_id) {
    return Refusal::kUnknownPeer;
  }
  if (header.type == MessageType::kFinish && landing.finished) return Refusal::kReplay;
  if (header.type != MessageType::kRows) return std::nullopt;
  const RowRange& rows = header.rows;
  if (rows.layer_begin < 0 || rows.layer_begin >= rows.layer_end ||
      rows.layer_end > rows_.layers() || rows.token_begin < landing.options.token_begin ||
      rows.token_begin >= rows.token_end || rows.token_end > landing.options.token_end) {
    return Refusal::kOutOfRange;
  }
  if (header.wire_format != WireFormatOf(rows_.storage().layout().type) ||
      header.payload_bytes != rows_.Bytes(rows) + static_cast<int64_t>(kSealBytes)) {
    return Refusal::kMalformed;
  }
  if (landing.covered.Any(rows)) return Refusal::kReplay;
  return std::nullopt;
}

void LandingTable::Begin(const MessageHeader& header) {
  Landing& landing = *landings_.at(header.landing_id);
  landing.begun = true;
  landing.source = header.source;
  landing.sender_id = header.sender_id;
}

std::shared_ptr<ArrivingRows> LandingTable::Claim(const MessageHeader& header,
                                                  const HeaderBytes& bytes) {
  Landing& landing = *landings_.at(header.landing_id);
  landing.covered.Claim(header.rows);
  const SequenceBlocks& into = landing.options.into;
  return std::make_shared<ArrivingRows>(bytes, rows_.Runs(into.blocks, header.rows), into.lease);
}

void LandingTable::Land(const MessageHeader& header) {
  Landing& landing = *landings_.at(header.landing_id);
  landing.covered.Land(header.rows);
  landing.kv_bytes += rows_.Bytes(header.rows);
  ++landing.messages;
}

void LandingTable::Reject(const MessageHeader& header) {
  landings_.at(header.landing_id)->covered.Unclaim(header.rows);
}

void LandingTable::Finish(const MessageHeader& header, std::span<const uint8_t> tail) {
  Landing& landing = *landings_.at(header.landing_id);
  landing.finished = true;
  landing.messages_due = header.sequence;
  landing.rows_due = header.kv_complete;
  landing.tail.assign(tail.begin(), tail.end());
}

std::optional<absl::StatusOr<Arrival>> LandingTable::Outcome(uint64_t id) const {
  const Landing* landing = Find(id);
  if (landing == nullptr || !landing->finished || landing->messages < landing->messages_due) {
    return std::nullopt;
  }
  if (landing->rows_due && !landing->covered.Full()) {
    return absl::StatusOr<Arrival>(absl::Status(
        absl::StatusCode::kDataLoss, "the sender finished, but not every row of the KV has come"));
  }
  if (landing->covered.Full()) {
    rows_.ZeroTail(landing->options.into.blocks, landing->options.token_end);
  }
  Arrival arrival;
  arrival.kv_complete = landing->covered.Full();
  arrival.token_end = landing->covered.CompleteEnd();
  arrival.tail = landing->tail;
  arrival.kv_bytes = landing->kv_bytes;
  arrival.messages = static_cast<int32_t>(landing->messages);
  return absl::StatusOr<Arrival>(std::move(arrival));
}

bool LandingTable::End(uint64_t id, absl::StatusOr<Arrival> outcome) {
  auto node = landings_.extract(id);
  if (node.empty()) return false;
  ArrivalCallback on_arrival = std::move(node.mapped()->options.on_arrival);
  node.mapped().reset();
  if (on_arrival) on_arrival(std::move(outcome));
  return true;
}

std::vector<uint64_t> LandingTable::Unused(TimePoint now, Duration unused) const {
  std::vector<uint64_t> ids;
  for (const auto& [id, landing] : landings_) {
    if (!landing->begun && now - landing->last_sign > unused) ids.push_back(id);
  }
  return ids;
}

std::vector<uint64_t> LandingTable::OfPeer(uint64_t source) const {
  std::vector<uint64_t> ids;
  for (const auto& [id, landing] : landings_) {
    if (landing->begun && landing->source == source) ids.push_back(id);
  }
  return ids;
}

std::vector<uint64_t> LandingTable::All() const {
  std::vector<uint64_t> ids;
  for (const auto& [id, landing] : landings_) ids.push_back(id);
  return ids;
}

}  // namespace trivium::transfer

// One call inside the encode loop, and its slices. Thread-safety: none; the loop's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/encode/encode_loop.h"

namespace trivium::encode {

struct EncodeLoop::Slice {
  enum class State : uint8_t { kWaiting, kPulling, kSending, kLanded, kLost };

  int32_t index = 0;  // of the picture
  transfer::Ticket ticket;
  State state = State::kWaiting;
  image::Image pixels;
  kv::BlockChain chain;  // stays empty where nothing is kept
  bool is_elsewhere = false;
  uint64_t landing = 0;  // of what is pulled; 0: none is open
  SliceReport report;
  // The sender goes first: it stops reading before the blocks go.
  kv::Reservation blocks;
  std::unique_ptr<transfer::Sender> sender;

  int32_t tokens() const { return ticket.token_end; }
  int32_t blocks_needed() const { return media::BlocksFor(tokens()); }
};

struct EncodeLoop::Job {
  uint64_t number = 0;
  EncodeRequest request;
  EncodeSink* sink = nullptr;
  TimePoint submitted;
  uint64_t turn = 0;          // in which it was decoded; 0: not yet
  int32_t slices_queued = 0;  // that count as waiting
  std::vector<Slice> slices;
  std::string lost;  // why a slice was
  TimePoint pull_until{};
  // Late callbacks of a request that has ended find this gone and post nothing.
  std::shared_ptr<const uint64_t> alive;
};

}  // namespace trivium::encode

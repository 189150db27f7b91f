// Turns ordinary text, which lies between tokens that stand for themselves, into token ids: the
// part of a tokenizer that depends on the kind of vocabulary. Immutable; safe from any thread.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace trivium::model {

class SegmentEncoder {
 public:
  virtual ~SegmentEncoder() = default;

  // Appends the ids of `text`, which may be empty. `opens`: a text begins here, as it does at the
  // very start and behind a control token.
  virtual void Encode(std::string_view text, bool opens, std::vector<int32_t>& out) const = 0;

  // Encode puts a space in front of a text that opens.
  virtual bool adds_space() const = 0;
};

}  // namespace trivium::model

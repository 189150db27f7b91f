#include "services/router/dispatch/text_assembler.h"

#include <algorithm>
#include <utility>

namespace trivium::router {

TextAssembler::TextAssembler(const model::Tokenizer& tokenizer, int32_t previous_id,
                             std::vector<std::string> stop)
    : detokenizer_(tokenizer, previous_id), stop_(std::move(stop)) {}

std::string TextAssembler::Add(int32_t id) {
  if (is_stopped_) return "";
  undecided_ += detokenizer_.Add(id);
  return Decide();
}

std::string TextAssembler::Flush() {
  if (is_stopped_) return "";
  undecided_ += detokenizer_.Flush();
  std::string decided = Decide();
  if (!is_stopped_) decided += std::exchange(undecided_, "");
  return decided;
}

std::string TextAssembler::Decide() {
  size_t match = std::string::npos;
  for (const std::string& stop : stop_) match = std::min(match, undecided_.find(stop));
  is_stopped_ = match != std::string::npos;
  const size_t decided_bytes = is_stopped_ ? match : undecided_.size() - HeldBytes();
  std::string decided = undecided_.substr(0, decided_bytes);
  undecided_.erase(0, is_stopped_ ? undecided_.size() : decided_bytes);
  return decided;
}

// Bytes of the longest end of the text with which a stop string begins. Stop strings are valid
// UTF-8, so the cut lies between characters.
size_t TextAssembler::HeldBytes() const {
  size_t held = 0;
  for (const std::string& stop : stop_) {
    for (size_t n = std::min(stop.size() - 1, undecided_.size()); n > held; --n) {
      if (undecided_.compare(undecided_.size() - n, n, stop, 0, n) == 0) {
        held = n;
        break;
      }
    }
  }
  return held;
}

}  // namespace trivium::router

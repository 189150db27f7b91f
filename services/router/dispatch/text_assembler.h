// Token ids to the text that a client may see: whole UTF-8, cut before the first stop string. The
// end of the text that may still become a stop string is held back until it is decided.
//
// After each token, the text so far is what a search over the whole of it would give: the output
// ends before the leftmost stop string that is complete by then.
// Thread-safety: none; belongs to one request's strand.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/model/tokenizer.h"

namespace trivium::router {

class TextAssembler {
 public:
  // No stop string is empty; all are valid UTF-8. `previous_id` as in model::Detokenizer.
  TextAssembler(const model::Tokenizer& tokenizer, int32_t previous_id,
                std::vector<std::string> stop);

  std::string Add(int32_t id);  // text that is now decided, possibly empty; "" once stopped
  std::string Flush();          // the rest; after the last token
  bool is_stopped() const { return is_stopped_; }

 private:
  std::string Decide();
  size_t HeldBytes() const;

  model::Detokenizer detokenizer_;
  const std::vector<std::string> stop_;
  std::string undecided_;
  bool is_stopped_ = false;
};

}  // namespace trivium::router

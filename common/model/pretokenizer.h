// Cuts text into the words within which BPE merges, by the rule that vocabularies call `smollm`:
// every digit (any character of class N) stands alone, and what lies between digits is cut by
// GPT-2's pattern
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// Classes are those of the ICU that is linked. A byte that is not part of UTF-8 counts as
// punctuation. One pass, O(1) memory. A Pretokenizer belongs to one thread; views point into the
// given text.
#pragma once

#include <string_view>

namespace trivium::model {

class Pretokenizer {
 public:
  explicit Pretokenizer(std::string_view text) : rest_(text) {}

  // The next word; empty at the end. The words, joined, are the text.
  std::string_view Next();

 private:
  std::string_view rest_;
};

}  // namespace trivium::model

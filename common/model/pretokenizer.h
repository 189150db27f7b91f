// Cuts text into the words within which byte-level BPE merges, by the rule that a vocabulary names.
//
// kGpt2      's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// kSmollm    every digit (any character of class N) stands alone; kGpt2 between the digits
// kLlamaBpe  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
//             ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
// kQwen2     the same with \p{N} in place of \p{N}{1,3}
//
// Classes are those of the ICU that is linked. A byte that is not part of UTF-8 counts as
// punctuation. Linear time, O(1) memory: no character is looked at more than a few times. A
// Pretokenizer belongs to one thread; views point into the given text.
#pragma once

#include <cstdint>
#include <string_view>

namespace trivium::model {

enum class WordRule : uint8_t { kGpt2, kSmollm, kLlamaBpe, kQwen2 };

class Pretokenizer {
 public:
  Pretokenizer(std::string_view text, WordRule rule) : rest_(text), rule_(rule) {}

  // The next word; empty at the end. The words, joined, are the text.
  std::string_view Next();

 private:
  std::string_view rest_;
  WordRule rule_;
};

}  // namespace trivium::model

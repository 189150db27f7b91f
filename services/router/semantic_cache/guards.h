// What embeddings hardly see and answers hang on: numbers, negations, names, identifiers of code,
// words of which one for another turns a question round ("ascending", "north", "euro").
//
// Two questions may share an answer when they say these alike and in the same order ("from Paris
// to London" is not "from London to Paris"), and when their words of content are the same, in any
// order. Reading is bounded by the text's length. Stateless; safe from any thread.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace trivium::router {

enum class GuardLevel : uint8_t {
  kNone,
  kNames,   // all but words of content
  kStrict,  // all
};

// What a question says, as hashes: no text is kept.
struct GuardMarks {
  uint64_t numbers = 0, names = 0, identifiers = 0, turning_words = 0;  // of each kind, in order
  uint32_t negations = 0;
  std::vector<uint32_t> content;  // stems, sorted, without repetition; at most kContentMax
  friend bool operator==(const GuardMarks&, const GuardMarks&) = default;
};

struct Reading {
  static constexpr size_t kContentMax = 64;

  GuardMarks marks;
  bool is_personal = false;   // speaks of the asker: "my order", an address, a telephone number
  bool is_injection = false;  // speaks to the model about its instructions
  bool has_too_many = false;  // words of content: not to be compared
};
Reading ReadQuestion(std::string_view text);

// Why an answer to `a` is none to `b`; kNone: nothing says so.
enum class GuardRefusal : uint8_t {
  kNone,
  kNumbers,
  kNegations,
  kNames,
  kIdentifiers,
  kTurningWords,
  kContent,
  kCount
};
GuardRefusal Compare(const GuardMarks& a, const GuardMarks& b, GuardLevel level);
const char* Name(GuardRefusal refusal);

}  // namespace trivium::router

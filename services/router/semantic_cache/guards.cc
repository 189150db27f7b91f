#include "services/router/semantic_cache/guards.h"

#include <unicode/uchar.h>
#include <xxhash.h>

#include <algorithm>
#include <string>
#include <utility>

#include "common/model/utf8.h"
#include "services/router/semantic_cache/guard_words.h"

namespace trivium::router {
namespace {

constexpr int kPersonalDigits = 7;  // so many in a row are somebody's number

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsUpper(char c) { return c >= 'A' && c <= 'Z'; }
bool IsLower(char c) { return c >= 'a' && c <= 'z'; }
// Light ones, behind which the order of things turns a question round.
bool IsSideWord(std::string_view word) {
  return word == "from" || word == "than" || word == "into";
}
bool IsSpace(char c) { return static_cast<unsigned char>(c) <= ' '; }

bool BeginsUpper(std::string_view word) {
  const model::Utf8Char first = model::DecodeUtf8(word);
  return first.valid && u_isupper(static_cast<UChar32>(first.code_point));
}

std::string Lower(std::string_view word) {
  std::string out;
  while (!word.empty()) {
    const model::Utf8Char c = model::DecodeUtf8(word);
    if (c.valid)
      model::AppendUtf8(static_cast<uint32_t>(u_tolower(static_cast<UChar32>(c.code_point))), out);
    word.remove_prefix(c.length);
  }
  return out;
}

// Without a possessive ending, and with ’ as '.
std::string Plain(std::string word) {
  for (size_t at; (at = word.find("\xe2\x80\x99")) != std::string::npos;) word.replace(at, 3, "'");
  if (word.size() > 2 && word.ends_with("'s")) word.resize(word.size() - 2);
  return word;
}

// Cuts the commonest endings off: "sorting", "sorted", "sorts" and "sort" are one.
std::string Stem(std::string word) {
  const size_t size = word.size();
  if (size > 5 && word.ends_with("ing")) {
    word.resize(size - 3);
  } else if (size > 4 && word.ends_with("ed")) {
    word.resize(size - 2);
  } else if (size > 4 && word.ends_with("ies")) {
    word.replace(size - 3, 3, "y");
  } else if (size > 3 && word.ends_with("s") && !word.ends_with("ss") && !word.ends_with("us")) {
    word.resize(size - 1);
  }
  if (word.size() > 3 && word.ends_with("e")) word.pop_back();
  return std::string(Canonical(word));
}

// "3.5", "1,000", "20%", "$5", "10:30", "2024-05-01", "-4"
bool IsNumber(std::string_view token) {
  const bool has_digit = std::any_of(token.begin(), token.end(), IsDigit);
  return has_digit && std::all_of(token.begin(), token.end(), [](char c) {
           return IsDigit(c) || std::string_view(".,:/%-+$#").find(c) != std::string_view::npos ||
                  static_cast<unsigned char>(c) >= 0x80;
         });
}

bool IsIdentifier(std::string_view token) {
  bool has_letter = false, has_digit = false;
  for (size_t i = 0; i < token.size(); ++i) {
    const char c = token[i];
    if (std::string_view("_`(){}[]<>=\\@&|*~^$#+/").find(c) != std::string_view::npos) return true;
    if (c == ':' && i + 1 < token.size()) return true;
    if (c == '.' && i > 0 && i + 1 < token.size()) return true;
    if (i > 0 && IsUpper(c) && IsLower(token[i - 1])) return true;
    has_letter |= IsLower(c) || IsUpper(c);
    has_digit |= IsDigit(c);
  }
  return has_letter && has_digit;
}

bool HasPersonalNumber(std::string_view token) {
  int digits = 0;
  for (const char c : token) {
    if (IsDigit(c))
      ++digits;
    else if (c != '-' && c != '(' && c != ')' && c != '+')
      digits = 0;
    if (digits >= kPersonalDigits) return true;
  }
  return token.find('@') != std::string_view::npos && token.find('.') != std::string_view::npos;
}

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {
    is_shouted_ = std::none_of(text.begin(), text.end(), IsLower);
  }

  Reading Read() {
    const std::string lower = Lower(text_);
    out_.is_injection = HasInjection(lower);
    for (size_t at = 0; at < text_.size();) {
      if (IsSpace(text_[at])) {
        const size_t line = at;
        while (at < text_.size() && IsSpace(text_[at])) ++at;
        Indentation(text_.substr(line, at - line));
        continue;
      }
      size_t end = at;
      while (end < text_.size() && !IsSpace(text_[end])) ++end;
      Token(text_.substr(at, end - at));
      at = end;
    }
    std::vector<uint32_t>& content = out_.marks.content;
    std::sort(content.begin(), content.end());
    content.erase(std::unique(content.begin(), content.end()), content.end());
    out_.has_too_many = content.size() > Reading::kContentMax;
    if (out_.has_too_many) content.resize(Reading::kContentMax);
    return std::move(out_);
  }

 private:
  static void Add(std::string_view what, uint64_t* chain) {
    *chain = XXH3_64bits_withSeed(what.data(), what.size(), *chain + 1);
  }

  // Of a line behind another, as code has it.
  void Indentation(std::string_view blanks) {
    const size_t line = blanks.rfind('\n');
    if (line == std::string_view::npos || line + 1 == blanks.size()) return;
    Add(blanks.substr(line), &out_.marks.identifiers);
  }

  void Token(std::string_view token) {
    if (token.find_first_not_of("+-*/%=<>^&|~") == std::string_view::npos) {
      return Add(token, &out_.marks.identifiers);
    }
    const bool ends_sentence = token.find_last_of(".!?:\n") == token.size() - 1 && token.size() > 1;
    out_.is_personal |= HasPersonalNumber(token);
    size_t begin = token.find_first_not_of("\"'([{,;.!?*");
    if (begin == std::string_view::npos) return;
    if (begin > 0 && token[begin - 1] == '.' && IsDigit(token[begin])) --begin;
    token.remove_prefix(begin);
    const size_t last = token.find_last_not_of("\"')]},;.!?:*");
    token = token.substr(0, last + 1);
    if (IsNumber(token)) {
      Number(token);
    } else if (IsIdentifier(token)) {
      Add(token, &out_.marks.identifiers);
    } else {
      while (!token.empty()) {
        const size_t dash = std::min(token.find('-'), token.size());
        if (dash > 0) Word(token.substr(0, dash));
        token.remove_prefix(std::min(dash + 1, token.size()));
      }
    }
    is_sentence_start_ = ends_sentence;
  }

  void Number(std::string_view token) {
    is_behind_thing_ = true;
    std::string digits(token);
    std::erase(digits, ',');
    Add(digits, &out_.marks.numbers);
  }

  void Word(std::string_view word) {
    const std::string lower = Plain(Lower(word));
    const bool at_start = std::exchange(is_sentence_start_, false);
    if (lower.empty()) return;
    out_.is_personal |= IsPersonalWord(lower);
    const bool is_light = IsLightWord(lower);
    if (is_light) {
      // "From here to there": what comes next has a side, unless the "to" is that of a verb.
      has_side_ |= IsSideWord(lower) || (lower == "to" && is_behind_thing_);
      is_behind_thing_ = false;
    } else {
      is_behind_thing_ = true;
      if (std::exchange(has_side_, false)) Add(Stem(lower), &out_.marks.turning_words);
    }
    if (IsNegation(lower)) {
      ++out_.marks.negations;
    } else if (const std::string_view number = NumberOf(lower); !number.empty()) {
      Add(number, &out_.marks.numbers);
    } else if (IsTurningWord(lower)) {
      Add(lower, &out_.marks.turning_words);
    } else if (!at_start && !is_shouted_ && BeginsUpper(word) && !is_light) {
      Add(lower, &out_.marks.names);
    } else if (!is_light) {
      const std::string stem = Stem(lower);
      out_.marks.content.push_back(static_cast<uint32_t>(XXH3_64bits(stem.data(), stem.size())));
    }
  }

  const std::string_view text_;
  Reading out_;
  bool is_sentence_start_ = true, is_shouted_ = false;
  bool has_side_ = false, is_behind_thing_ = false;
};

}  // namespace

Reading ReadQuestion(std::string_view text) { return Reader(text).Read(); }

GuardRefusal Compare(const GuardMarks& a, const GuardMarks& b, GuardLevel level) {
  if (level == GuardLevel::kNone) return GuardRefusal::kNone;
  if (a.numbers != b.numbers) return GuardRefusal::kNumbers;
  if (a.negations != b.negations) return GuardRefusal::kNegations;
  if (a.names != b.names) return GuardRefusal::kNames;
  if (a.identifiers != b.identifiers) return GuardRefusal::kIdentifiers;
  if (a.turning_words != b.turning_words) return GuardRefusal::kTurningWords;
  const bool is_strict = level == GuardLevel::kStrict;
  if (is_strict && a.content != b.content) return GuardRefusal::kContent;
  return GuardRefusal::kNone;
}

const char* Name(GuardRefusal refusal) {
  constexpr const char* kNames[] = {"none",        "numbers",       "negations", "names",
                                    "identifiers", "turning_words", "content"};
  return kNames[static_cast<size_t>(refusal)];
}

}  // namespace trivium::router

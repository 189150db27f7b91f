#include "common/model/jinja/lexer.h"

#include <algorithm>
#include <cstdlib>

#include "common/model/jinja/string_literal.h"

namespace trivium::model::jinja {
namespace {

// "\r\n" and "\r" become "\n"; one newline at the end goes.
std::u32string Normalised(Text source) {
  std::u32string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n') continue;
    out += source[i] == '\r' ? U'\n' : source[i];
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

constexpr size_t kNameSizeMax = 100;

bool IsNameStart(char32_t c) { return c == '_' || IsAlpha(c); }
bool IsNameChar(char32_t c) { return c == '_' || IsAlnum(c); }
bool IsDigit(char32_t c) { return c >= '0' && c <= '9'; }

class Lexer {
 public:
  Lexer(Text source, std::deque<std::u32string>& texts) : source_(source), texts_(texts) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) RETURN_IF_ERROR(ReadData());
    Add(TokenKind::kEnd);
    return std::move(tokens_);
  }

 private:
  bool Sees(Text wanted) const { return StartsWith(source_.substr(at_), wanted); }
  char32_t Peek(size_t ahead = 0) const {
    return at_ + ahead < source_.size() ? source_[at_ + ahead] : U'\0';
  }
  template <typename... Args>
  absl::Status Fail(fmt::format_string<Args...> format, Args&&... args) const {
    return InvalidArgument("line {}: {}", line_, fmt::format(format, std::forward<Args>(args)...));
  }

  void Advance(size_t count) {
    for (const size_t end = at_ + count; at_ < end; ++at_) line_ += source_[at_] == '\n';
  }
  void SkipSpace() {
    while (at_ < source_.size() && IsSpace(source_[at_])) Advance(1);
  }
  Token& Add(TokenKind kind, Text text = {}) {
    tokens_.push_back({kind, line_, text, 0, 0});
    return tokens_.back();
  }

  // Where the next tag opens, or the end. Looks at no character twice, whatever tags there are.
  size_t FindTag() const {
    for (size_t at = source_.find(U'{', at_); at != Text::npos; at = source_.find(U'{', at + 1)) {
      const Text sign = source_.substr(at + 1, 1);
      if (sign == U"{" || sign == U"%" || sign == U"#") return at;
    }
    return source_.size();
  }

  // The text up to the next tag, and that tag.
  absl::Status ReadData() {
    const size_t tag = FindTag();
    const Text data = source_.substr(at_, tag - at_);
    if (tag == source_.size()) {
      if (!data.empty()) Add(TokenKind::kData, data);
      at_ = tag;
      return absl::OkStatus();
    }
    const char32_t type = source_[tag + 1];
    const char32_t sign = tag + 2 < source_.size() ? source_[tag + 2] : U'\0';
    AddData(data, sign, type == '{');
    Advance(tag - at_ + 2 + (sign == '-' || sign == '+'));
    if (type == '#') return SkipComment();
    if (type == '%' && ReadsRaw()) return ReadRaw();
    return ReadTag(type == '{');
  }

  // What stands before a tag with `sign`.
  void AddData(Text data, char32_t sign, bool before_variable) {
    if (sign == '-') {
      data = Strip(data, nullptr, false, true);
    } else if (sign != '+' && !before_variable) {
      const size_t newline = data.rfind(U'\n');
      const size_t begin = newline == Text::npos ? 0 : newline + 1;
      const bool starts_line = newline != Text::npos || line_starting_;
      if (starts_line && Strip(data.substr(begin), nullptr, true, false).empty()) {
        data = data.substr(0, begin);
      }
    }
    line_starting_ = false;
    if (!data.empty()) Add(TokenKind::kData, data);
  }

  // Behind a closing tag of `size` characters: what its sign or trim_blocks removes.
  void Close(size_t size, bool strips, bool trims) {
    Advance(size);
    const size_t begin = at_;
    if (strips) SkipSpace();
    if (!strips && trims && Peek() == '\n') Advance(1);
    line_starting_ = at_ > begin && source_[at_ - 1] == '\n';
  }

  absl::Status SkipComment() {
    const size_t end = source_.find(U"#}", at_);
    if (end == Text::npos) return Fail("a comment does not end");
    const char32_t sign = end > at_ ? source_[end - 1] : U'\0';
    Advance(end - at_);
    Close(2, sign == '-', sign != '+');
    return absl::OkStatus();
  }

  // Whether the tag that begins here is {% name %}; its length up to the closing, and its sign.
  bool IsTag(size_t begin, Text name, size_t* end, char32_t* sign) const {
    size_t i = begin;
    while (i < source_.size() && IsSpace(source_[i])) ++i;
    if (!StartsWith(source_.substr(i), name)) return false;
    i += name.size();
    while (i < source_.size() && IsSpace(source_[i])) ++i;
    *sign = i < source_.size() ? source_[i] : U'\0';
    if (*sign == '-' || *sign == '+') ++i;
    *end = i;
    return StartsWith(source_.substr(i), U"%}");
  }

  bool ReadsRaw() const {
    size_t end = 0;
    char32_t sign = 0;
    return IsTag(at_, U"raw", &end, &sign) && sign != '+';
  }

  absl::Status ReadRaw() {
    size_t end = 0;
    char32_t sign = 0;
    IsTag(at_, U"raw", &end, &sign);
    Advance(end - at_);
    Close(2, sign == '-', false);
    for (size_t tag = source_.find(U"{%", at_); tag != Text::npos;
         tag = source_.find(U"{%", tag + 1)) {
      const char32_t open_sign = tag + 2 < source_.size() ? source_[tag + 2] : U'\0';
      const size_t inside = tag + 2 + (open_sign == '-' || open_sign == '+');
      if (!IsTag(inside, U"endraw", &end, &sign)) continue;
      AddData(source_.substr(at_, tag - at_), open_sign, false);
      Advance(end - at_);
      Close(2, sign == '-', sign != '+');
      return absl::OkStatus();
    }
    if (at_ == source_.size()) return absl::OkStatus();  // as Jinja2: nothing is there to be raw
    return Fail("a raw block does not end");
  }

  absl::Status ReadTag(bool variable) {
    Add(variable ? TokenKind::kVariableBegin : TokenKind::kBlockBegin);
    const Text closing = variable ? U"}}" : U"%}";
    std::u32string open;  // brackets
    for (;;) {
      SkipSpace();
      if (at_ >= source_.size()) return Fail("a tag does not end");
      const char32_t sign = Peek();
      const bool signed_end = sign == '-' || (sign == '+' && !variable);
      const size_t skipped = signed_end ? 1 : 0;
      if (open.empty() && StartsWith(source_.substr(at_ + skipped), closing)) {
        Add(variable ? TokenKind::kVariableEnd : TokenKind::kBlockEnd);
        Close(2 + skipped, sign == '-', !variable && sign != '+');
        return absl::OkStatus();
      }
      RETURN_IF_ERROR(ReadToken(open));
    }
  }

  absl::Status ReadToken(std::u32string& open) {
    const char32_t c = Peek();
    const bool after_dot =
        tokens_.back().kind == TokenKind::kOperator && Equal(tokens_.back().text, ".");
    if (IsDigit(c)) return ReadNumber(!after_dot);
    if (c == '\'' || c == '"') return ReadString();
    if (IsNameStart(c)) {
      size_t size = 1;
      while (IsNameChar(Peek(size))) ++size;
      if (size > kNameSizeMax) return Fail("a name has more than {} characters", kNameSizeMax);
      Add(TokenKind::kName, source_.substr(at_, size));
      Advance(size);
      return absl::OkStatus();
    }
    size_t size = 0;
    for (const Text two : {U"//", U"**", U"==", U"!=", U">=", U"<="}) {
      if (Sees(two)) size = 2;
    }
    if (size == 0 && Text(U"+-/*%~[](){}><=.:|,;").find(c) != Text::npos) size = 1;
    if (size == 0) return Fail("the character U+{:04X} has no meaning here", uint32_t{c});
    if (c == '(' || c == '[' || c == '{') open += c == '(' ? U')' : c == '[' ? U']' : U'}';
    if (c == ')' || c == ']' || c == '}') {
      if (open.empty() || open.back() != c) {
        return Fail("'{}' closes nothing", static_cast<char>(c));
      }
      open.pop_back();
    }
    Add(TokenKind::kOperator, source_.substr(at_, size));
    Advance(size);
    return absl::OkStatus();
  }

  absl::Status ReadNumber(bool may_be_float) {
    size_t size = 0;
    bool is_float = false;
    const auto digits = [&] {
      while (IsDigit(Peek(size)) || (Peek(size) == '_' && IsDigit(Peek(size + 1)))) ++size;
    };
    const bool hex = Peek() == '0' && (Peek(1) == 'x' || Peek(1) == 'X');
    digits();
    if (hex) {
      for (size = 2; Peek(size) < 0x80 && std::isxdigit(static_cast<int>(Peek(size)));) ++size;
    } else if (may_be_float) {
      if (Peek(size) == '.' && IsDigit(Peek(size + 1))) {
        is_float = true;
        ++size;
        digits();
      }
      const size_t sign = Peek(size + 1) == '+' || Peek(size + 1) == '-' ? 1 : 0;
      if ((Peek(size) == 'e' || Peek(size) == 'E') && IsDigit(Peek(size + 1 + sign))) {
        is_float = true;
        size += 1 + sign;
        digits();
      }
    }
    std::string number = ToUtf8(source_.substr(at_, size));
    std::erase(number, '_');
    const bool padded = !hex && number.size() > 1 && number[0] == '0' &&
                        number.find_first_not_of('0') != std::string::npos;
    errno = 0;
    const long long integer = std::strtoll(number.c_str(), nullptr, hex ? 16 : 10);
    if (!is_float && (errno != 0 || padded)) return Fail("'{:.100}' is no 64-bit integer", number);
    Token& token = Add(is_float ? TokenKind::kFloat : TokenKind::kInteger);
    token.integer = integer;
    token.number = std::strtod(number.c_str(), nullptr);
    Advance(size);
    return absl::OkStatus();
  }

  absl::Status ReadString() {
    const char32_t quote = Peek();
    size_t size = 1;
    while (at_ + size < source_.size() && Peek(size) != quote) size += Peek(size) == '\\' ? 2 : 1;
    if (at_ + size >= source_.size()) return Fail("a string does not end");
    absl::StatusOr<std::u32string> text = Unescaped(source_.substr(at_ + 1, size - 1));
    if (!text.ok()) return Fail("{}", Message(text.status()));
    texts_.push_back(*std::move(text));
    Add(TokenKind::kString, texts_.back());
    Advance(size + 1);
    return absl::OkStatus();
  }

  const Text source_;
  std::deque<std::u32string>& texts_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // nothing but a newline stands before
};

}  // namespace

absl::StatusOr<std::vector<Token>> Tokenise(std::string_view source,
                                            std::deque<std::u32string>& texts) {
  std::u32string decoded;
  RETURN_IF_ERROR(AppendUtf8Text(source, 0, decoded));
  texts.push_back(Normalised(decoded));
  return Lexer(texts.back(), texts).Run();
}

}  // namespace trivium::model::jinja

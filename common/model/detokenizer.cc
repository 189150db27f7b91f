#include "common/model/tokenizer.h"
#include "common/model/utf8.h"

namespace trivium::model {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

}  // namespace

std::string Detokenizer::Add(int32_t id) {
  std::string_view piece = tokenizer_.Piece(id);
  if (piece.starts_with(' ') && tokenizer_.AddsSpaceAfter(previous_id_)) piece.remove_prefix(1);
  previous_id_ = id;
  held_ += piece;
  std::string whole;
  std::string_view rest = held_;
  while (!rest.empty()) {
    const Utf8Char c = DecodeUtf8(rest);
    if (c.unfinished) break;
    whole += c.valid ? rest.substr(0, c.length) : kReplacement;
    rest.remove_prefix(c.length);
  }
  held_ = std::string(rest);
  return whole;
}

std::string Detokenizer::Flush() {
  const bool broken = !held_.empty();
  held_.clear();
  return broken ? std::string(kReplacement) : std::string();
}

}  // namespace trivium::model

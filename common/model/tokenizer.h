// Text to token ids and back, from the vocabulary inside a GGUF file: byte-level BPE, or
// SentencePiece's BPE by score.
// Thread-safety: a Tokenizer is immutable and may be shared; a Detokenizer belongs to one stream.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/status.h"
#include "common/model/gguf.h"

namespace trivium::model {

class Tokenizer {
 public:
  // UNIMPLEMENTED for a vocabulary kind or pre-tokenizer that is not supported, naming it.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const GgufFile& file);
  virtual ~Tokenizer() = default;

  struct Options {
    bool add_bos = false;        // prepend bos_id(), where the vocabulary has one
    bool add_eos = false;        // append eos_id(), likewise
    bool parse_special = false;  // "<|im_start|>" in the text becomes its control token
  };
  // Any bytes are accepted, up to 2 GiB: what is not UTF-8 is encoded byte by byte. Bytes for which
  // the vocabulary has no token are left out, or become its token for the unknown, as the model's
  // own tokenizer does; SmolLM2 lacks six control characters (0x04 0x06 0x13 0x14 0x16 0x1D) and
  // bytes that no assigned character needs. BPE by score takes U+2581 for a space. All else decodes
  // to the same bytes. Linear in text size up to BPE's n log n.
  virtual std::vector<int32_t> Encode(std::string_view text, Options options) const = 0;
  // The bytes of one token, which may be part of a UTF-8 sequence; control tokens give ""
  // unless `special`, ids outside of the vocabulary always.
  virtual std::string_view Piece(int32_t id, bool special = false) const = 0;

  // Whether Encode puts a space in front of a text that begins behind `previous_id` (-1: at the
  // very start). The space that opens the pieces there is not part of the text.
  virtual bool AddsSpaceAfter(int32_t previous_id) const = 0;

  virtual int32_t vocab_size() const = 0;
  virtual int32_t bos_id() const = 0;  // -1: none
  virtual int32_t eos_id() const = 0;
  virtual std::span<const int32_t> end_of_generation_ids() const = 0;  // eos, eot, "<|im_end|>"…
  virtual bool adds_bos() const = 0;            // the file asks for it on raw text
  virtual bool adds_eos() const = 0;            // likewise
  virtual std::string_view digest() const = 0;  // 32 bytes over everything above
};

// Turns a stream of ids into valid UTF-8: holds back an unfinished sequence, replaces a broken one
// by U+FFFD. Leaves out the space that Encode puts in front of a text.
class Detokenizer {
 public:
  // `previous_id`: the id before the stream, as the last one of a prompt; -1: a text begins here.
  explicit Detokenizer(const Tokenizer& tokenizer, int32_t previous_id = -1)
      : tokenizer_(tokenizer), previous_id_(previous_id) {}
  std::string Add(int32_t id);  // text that is now whole, possibly empty
  std::string Flush();          // what was held back, replaced where it never became whole

 private:
  const Tokenizer& tokenizer_;
  int32_t previous_id_;
  std::string held_;
};

}  // namespace trivium::model

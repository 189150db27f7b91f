// One choice of an answer: its tokens in order, and the text that a client may see of them.
// Thread-safety: none; belongs to one request's strand.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "services/router/dispatch/text_assembler.h"
#include "services/router/dispatch/token_sequencer.h"
#include "trivium/v1/inference.pb.h"

namespace trivium::router {

void FillOutput(const v1::StageToken& token, v1::OutputToken* out);

class OutputChoice {
 public:
  OutputChoice(TokenSequencer sequencer, TextAssembler assembler)
      : sequencer_(std::move(sequencer)), assembler_(std::move(assembler)) {}

  TokenSequencer::Verdict Offer(const v1::StageToken& token) { return sequencer_.Offer(token); }
  // What a client gets for the token that Offer has just taken.
  void Fill(const v1::StageToken& token, v1::Delta* delta);

  const TokenSequencer& tokens() const { return sequencer_; }
  bool is_over() const { return !finish_reason_.empty(); }
  // A worker may still be at it: a stop string has ended the choice, of which workers know nothing.
  bool is_cut() const { return is_over() && !sequencer_.is_finished(); }
  const std::string& finish_reason() const { return finish_reason_; }  // empty: it goes on

 private:
  TokenSequencer sequencer_;
  TextAssembler assembler_;
  std::string finish_reason_;
};

}  // namespace trivium::router

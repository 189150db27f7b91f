#include "services/router/dispatch/output_choice.h"

namespace trivium::router {

void FillOutput(const v1::StageToken& token, v1::OutputToken* out) {
  out->set_index(token.index());
  out->set_id(token.id());
  if (token.has_logprob()) out->set_logprob(token.logprob());
  for (const v1::StageTokenLogprob& top : token.top()) {
    v1::TokenLogprob* one = out->add_top();
    one->set_id(top.id());
    one->set_logprob(top.logprob());
  }
}

void OutputChoice::Fill(const v1::StageToken& token, v1::Delta* delta) {
  FillOutput(token, delta->add_tokens());
  // A stop token says that the text has ended and is no part of it.
  std::string text = token.finish_reason() == "stop" ? "" : assembler_.Add(token.id());
  if (sequencer_.is_finished()) text += assembler_.Flush();
  delta->set_text(text);
  if (assembler_.is_stopped()) {
    finish_reason_ = "stop";
  } else if (sequencer_.is_finished()) {
    finish_reason_ = token.finish_reason();
  }
}

}  // namespace trivium::router

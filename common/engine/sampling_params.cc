#include "common/engine/sampling_params.h"

namespace trivium::engine {
namespace {

absl::Status CheckId(int32_t id, int32_t vocab, const char* field, size_t index) {
  if (id >= 0 && id < vocab) return absl::OkStatus();
  return InvalidArgument("sampling.{}[{}] is {}, must be 0 … {}", field, index, id, vocab - 1);
}

// Comparisons are written so that a NaN fails each of them.
absl::Status CheckRange(float value, float least, float most, const char* field) {
  if (value >= least && value <= most) return absl::OkStatus();
  return InvalidArgument("sampling.{} is {}, must be {} … {}", field, value, least, most);
}

absl::Status CheckAboveZero(float value, float most, const char* field) {
  if (value > 0 && value <= most) return absl::OkStatus();
  return InvalidArgument("sampling.{} is {}, must be above 0 and at most {}", field, value, most);
}

absl::Status CheckCuts(const SamplingParams& params) {
  RETURN_IF_ERROR(CheckRange(params.temperature, 0, 100, "temperature"));
  if (params.top_k < 0) return InvalidArgument("sampling.top_k is {}, must be >= 0", params.top_k);
  RETURN_IF_ERROR(CheckAboveZero(params.top_p, 1, "top_p"));
  RETURN_IF_ERROR(CheckRange(params.min_p, 0, 1, "min_p"));
  return CheckAboveZero(params.typical_p, 1, "typical_p");
}

absl::Status CheckEdits(const SamplingParams& params, int32_t vocab) {
  RETURN_IF_ERROR(CheckAboveZero(params.repetition_penalty, 10, "repetition_penalty"));
  RETURN_IF_ERROR(CheckRange(params.presence_penalty, -2, 2, "presence_penalty"));
  RETURN_IF_ERROR(CheckRange(params.frequency_penalty, -2, 2, "frequency_penalty"));
  if (params.logit_bias.size() > kMaxLogitBias) {
    return InvalidArgument("sampling.logit_bias has {} entries, at most {}",
                           params.logit_bias.size(), kMaxLogitBias);
  }
  for (const auto& [id, bias] : params.logit_bias) {
    if (id < 0 || id >= vocab) {
      return InvalidArgument("sampling.logit_bias: no token {}, must be 0 … {}", id, vocab - 1);
    }
    if (!(bias >= -100 && bias <= 100)) {
      return InvalidArgument("sampling.logit_bias[{}] is {}, must be -100 … 100", id, bias);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLengths(const SamplingParams& params) {
  if (params.max_tokens < 1) {
    return InvalidArgument("sampling.max_tokens is {}, must be >= 1", params.max_tokens);
  }
  if (params.min_tokens < 0 || params.min_tokens > params.max_tokens) {
    return InvalidArgument("sampling.min_tokens is {}, must be 0 … max_tokens ({})",
                           params.min_tokens, params.max_tokens);
  }
  return absl::OkStatus();
}

absl::Status CheckLogprobs(int32_t count, const char* field) {
  if (count >= -1 && count <= kMaxLogprobs) return absl::OkStatus();
  return InvalidArgument("sampling.{} is {}, must be -1 … {}", field, count, kMaxLogprobs);
}

}  // namespace

absl::Status Validate(const SamplingParams& params, int32_t vocab) {
  RETURN_IF_ERROR(CheckCuts(params));
  RETURN_IF_ERROR(CheckEdits(params, vocab));
  RETURN_IF_ERROR(CheckLengths(params));
  RETURN_IF_ERROR(CheckLogprobs(params.logprobs, "logprobs"));
  RETURN_IF_ERROR(CheckLogprobs(params.prompt_logprobs, "prompt_logprobs"));
  if (params.stop_token_ids.size() > kMaxStopTokens) {
    return InvalidArgument("sampling.stop_token_ids has {} entries, at most {}",
                           params.stop_token_ids.size(), kMaxStopTokens);
  }
  for (size_t i = 0; i < params.stop_token_ids.size(); ++i) {
    RETURN_IF_ERROR(CheckId(params.stop_token_ids[i], vocab, "stop_token_ids", i));
  }
  return absl::OkStatus();
}

}  // namespace trivium::engine

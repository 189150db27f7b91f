// The beginnings of prompts that everybody may share: which of the declared texts a prompt begins
// with, and how far, in tokens.
//
// A declared text counts by its own tokens. A prompt is tokenised whole, and what it has in common
// with them, rounded down to whole blocks, is public; a token that holds a byte of anything else
// differs from the declared one, so that no block with private text is ever among them. Where
// several texts begin alike, a prompt is said to begin with the one that it follows for the most
// blocks, of those the one declared first. So two prompts with the same public blocks get the same
// answer whatever stands behind them, and a beginning that N texts have in common is kept at most N
// times.
// Thread-safety: immutable after Create; any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "common/base/status.h"
#include "trivium/v1/config.pb.h"
#include "trivium/v1/inference.pb.h"

namespace trivium::router {

// As prompts are tokenised.
using Tokenize =
    std::function<absl::StatusOr<std::vector<int32_t>>(const v1::TokenizeRequest& request)>;

class PublicPrefixes {
 public:
  // `config` is complete. Errors, of files and of what the model's chat template refuses, name the
  // prefix.
  static absl::StatusOr<PublicPrefixes> Create(const v1::TenancyConfig& config,
                                               const Tokenize& tokenize, int32_t block_tokens);

  struct Match {
    int32_t prefix = -1;  // its place in the configuration; -1: none
    int32_t tokens = 0;   // whole blocks
  };
  // About two comparisons of the prompt with declared texts, however many they are.
  Match Longest(std::span<const int32_t> prompt) const;

 private:
  struct Declared {
    std::vector<int32_t> tokens;  // whole blocks, at least one
    int32_t index = 0;            // in the configuration
  };

  int32_t block_tokens_ = 0;
  std::vector<Declared> sorted_;  // by tokens
};

}  // namespace trivium::router

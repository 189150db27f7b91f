// Reads the files under tests/oracle/data, whose formats README.md gives. The files are ours: a
// broken one ends the process. Stateless; safe from any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace trivium::oracle {

struct TokenizedString {
  std::string text;
  std::vector<int32_t> ids;
};

// What the oracle computed before it chose one token.
struct Position {
  int32_t token = 0;                // the greedy choice
  float margin = 0;                 // its logit less the second one's
  float rest = 0;                   // probability of all tokens that `top_ids` lacks
  std::vector<int32_t> top_ids;     // likeliest first
  std::vector<float> top_logprobs;  // natural, of the same
  std::vector<float> logprobs;      // of the whole vocabulary, rounded to float16; empty for most
};

struct Prompt {
  std::string name;
  std::string text;  // with control tokens as text
  std::vector<int32_t> ids;
  std::vector<Position>
      positions;  // after the prompt, then after each generated token but the last
};

// How a rule cuts each string of WordData into words: HashIds of the words' sizes in bytes.
struct CutStrings {
  std::string rule;
  std::vector<uint64_t> hashes;
};

struct WordData {
  std::vector<std::string> strings;
  std::vector<CutStrings> rules;
};

// The ids that a vocabulary gives each string of WordData: HashIds of them.
struct EncodedStrings {
  std::string vocabulary;  // a file under data/
  std::vector<uint64_t> hashes;
};

struct PerplexityText {
  std::vector<int32_t> ids;
  std::vector<float> nll;  // nll[i] = -log P(ids[i + 1] | ids[0 … i])
};

// A tiny model and the logits that it gives for some tokens.
struct FamilyLogits {
  std::string file;  // under data/
  std::vector<int32_t> ids;
  uint32_t every = 0;                      // logits[i] are those of token (i + 1) * every - 1
  std::vector<std::vector<float>> logits;  // [.., vocabulary]
};

std::vector<TokenizedString> ReadTokenizerData();
WordData ReadWordData();
std::vector<EncodedStrings> ReadScoredData();
std::vector<FamilyLogits> ReadFamilyData();
// greedy.bin, or another file of its format.
std::vector<Prompt> ReadGreedyData(const std::string& name = "greedy.bin");
PerplexityText ReadPerplexityData();

std::string DataPath(const std::string& name);

// 64-bit FNV-1a over the values as little-endian 32-bit integers.
uint64_t HashIds(std::span<const int32_t> values);

// KL(oracle || other) in nats over the oracle's top tokens and one bucket for the rest, or over the
// whole vocabulary where the position holds it. Bucketing makes it a lower bound. `logits` are the
// other's.
double KlDivergence(const Position& position, std::span<const float> logits);
double BucketedKlDivergence(const Position& position, std::span<const float> logits);

// log(sum(exp(logits))).
double LogSumExp(std::span<const float> logits);

}  // namespace trivium::oracle

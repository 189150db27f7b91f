#include "tests/oracle/oracle_data.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string_view>

#include "common/base/status.h"
#include "kernels/weights.h"

namespace trivium::oracle {
namespace {

// Ids of larger vocabularies take four bytes.
constexpr uint32_t kMostShortIds = 65536;

class Reader {
 public:
  Reader(const std::string& name, std::string_view magic) {
    const std::string path = DataPath(name);
    std::ifstream file(path, std::ios::binary);
    std::stringstream content;
    content << file.rdbuf();
    bytes_ = content.str();
    TRIVIUM_CHECK(bytes_.starts_with(magic), "{} is missing or of another kind", path);
    position_ = magic.size();
    TRIVIUM_CHECK(Read<uint32_t>() == 1, "{} has another version", path);
  }

  template <typename T>
  T Read() {
    T value;
    std::memcpy(&value, Take(sizeof(T)), sizeof(T));
    return value;
  }
  template <typename T>
  std::vector<T> ReadArray(size_t count) {
    std::vector<T> values(count);
    if (count > 0) std::memcpy(values.data(), Take(count * sizeof(T)), count * sizeof(T));
    return values;
  }
  std::string ReadString() {
    const auto size = Read<uint32_t>();
    return {Take(size), size};
  }
  std::vector<int32_t> ReadIds() { return ReadArray<int32_t>(Read<uint32_t>()); }
  void CheckAtEnd() const {
    TRIVIUM_CHECK(position_ == bytes_.size(), "{} bytes are left over", bytes_.size() - position_);
  }

 private:
  const char* Take(size_t size) {
    TRIVIUM_CHECK(size <= bytes_.size() - position_, "the file ends at {}", bytes_.size());
    position_ += size;
    return bytes_.data() + position_ - size;
  }

  std::string bytes_;
  size_t position_ = 0;
};

Position ReadPosition(Reader& reader, uint32_t top, uint32_t vocab) {
  Position position;
  position.token = reader.Read<int32_t>();
  position.margin = reader.Read<float>();
  position.rest = reader.Read<float>();
  if (vocab <= kMostShortIds) {
    const auto ids = reader.ReadArray<uint16_t>(top);
    position.top_ids.assign(ids.begin(), ids.end());
  } else {
    position.top_ids = reader.ReadArray<int32_t>(top);
  }
  position.top_logprobs = reader.ReadArray<float>(top);
  if (reader.Read<uint8_t>() != 0) {
    for (uint16_t half : reader.ReadArray<uint16_t>(vocab)) {
      position.logprobs.push_back(kernels::HalfToFloat(half));
    }
  }
  return position;
}

}  // namespace

std::vector<TokenizedString> ReadTokenizerData() {
  Reader reader("tokenizer.bin", "TRVT");
  std::vector<TokenizedString> strings(reader.Read<uint32_t>());
  for (TokenizedString& string : strings) {
    string.text = reader.ReadString();
    string.ids = reader.ReadIds();
  }
  reader.CheckAtEnd();
  return strings;
}

WordData ReadWordData() {
  Reader reader("words.bin", "TRVS");
  WordData data;
  data.strings.resize(reader.Read<uint32_t>());
  for (std::string& string : data.strings) string = reader.ReadString();
  data.rules.resize(reader.Read<uint32_t>());
  for (CutStrings& rule : data.rules) {
    rule.rule = reader.ReadString();
    rule.hashes = reader.ReadArray<uint64_t>(data.strings.size());
  }
  reader.CheckAtEnd();
  return data;
}

std::vector<EncodedStrings> ReadScoredData() {
  Reader reader("scored.bin", "TRVB");
  std::vector<EncodedStrings> all(reader.Read<uint32_t>());
  for (EncodedStrings& encoded : all) {
    encoded.vocabulary = reader.ReadString();
    encoded.hashes = reader.ReadArray<uint64_t>(reader.Read<uint32_t>());
  }
  reader.CheckAtEnd();
  return all;
}

std::vector<FamilyLogits> ReadFamilyData() {
  Reader reader("families.bin", "TRVM");
  std::vector<FamilyLogits> families(reader.Read<uint32_t>());
  for (FamilyLogits& family : families) {
    family.file = reader.ReadString();
    family.ids = reader.ReadIds();
    family.every = reader.Read<uint32_t>();
    const auto vocab = reader.Read<uint32_t>();
    for (size_t left = family.ids.size() / family.every; left > 0; --left) {
      family.logits.push_back(reader.ReadArray<float>(vocab));
    }
  }
  reader.CheckAtEnd();
  return families;
}

std::vector<Prompt> ReadGreedyData(const std::string& name) {
  Reader reader(name, "TRVG");
  std::vector<Prompt> prompts(reader.Read<uint32_t>());
  const auto top = reader.Read<uint32_t>();
  const auto vocab = reader.Read<uint32_t>();
  for (Prompt& prompt : prompts) {
    prompt.name = reader.ReadString();
    prompt.text = reader.ReadString();
    prompt.ids = reader.ReadIds();
    for (auto count = reader.Read<uint32_t>(); count > 0; --count) {
      prompt.positions.push_back(ReadPosition(reader, top, vocab));
    }
  }
  reader.CheckAtEnd();
  return prompts;
}

PerplexityText ReadPerplexityData() {
  Reader reader("perplexity.bin", "TRVP");
  PerplexityText text;
  text.ids = reader.ReadIds();
  text.nll = reader.ReadArray<float>(text.ids.size() - 1);
  reader.CheckAtEnd();
  return text;
}

std::string DataPath(const std::string& name) {
  return std::string(TRIVIUM_ORACLE_DATA) + "/" + name;
}

uint64_t HashIds(std::span<const int32_t> values) {
  uint64_t hash = 0xCBF29CE484222325;
  for (int32_t value : values) {
    for (int shift = 0; shift < 32; shift += 8) {
      hash = (hash ^ (static_cast<uint32_t>(value) >> shift & 0xFF)) * 0x100000001B3;
    }
  }
  return hash;
}

double LogSumExp(std::span<const float> logits) {
  const float most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(double{logit} - most);
  return most + std::log(sum);
}

double BucketedKlDivergence(const Position& position, std::span<const float> logits) {
  const double log_sum = LogSumExp(logits);
  double kl = 0;
  double others = 1;
  for (size_t i = 0; i < position.top_ids.size(); ++i) {
    const double logprob = logits[static_cast<size_t>(position.top_ids[i])] - log_sum;
    const double expected = position.top_logprobs[i];
    kl += std::exp(expected) * (expected - logprob);
    others -= std::exp(logprob);
  }
  // Below this, float32 rounding of the sum decides, and the bucket's term is as small.
  constexpr double kLeastRest = 1e-7;
  if (position.rest > kLeastRest) {
    kl += position.rest * std::log(position.rest / std::max(others, kLeastRest));
  }
  return kl;
}

double KlDivergence(const Position& position, std::span<const float> logits) {
  if (position.logprobs.empty()) return BucketedKlDivergence(position, logits);
  const double log_sum = LogSumExp(logits);
  std::vector<double> expected(position.logprobs.begin(), position.logprobs.end());
  for (size_t i = 0; i < position.top_ids.size(); ++i) {
    expected[static_cast<size_t>(position.top_ids[i])] = position.top_logprobs[i];
  }
  double kl = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    kl += std::exp(expected[i]) * (expected[i] - (logits[i] - log_sum));
  }
  return kl;
}

}  // namespace trivium::oracle

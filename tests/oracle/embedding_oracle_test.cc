// Texts as vectors against sentence-transformers, and their tokens against `tokenizers`: with a
// tiny model, and with all-MiniLM-L6-v2 where TRIVIUM_TEST_MINILM is the folder that
// `deploy/fetch-model minilm` prints. How it was recorded: embedding.py.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "common/embedding/text_encoder.h"
#include "tests/oracle/oracle_data.h"

namespace trivium::embedding {
namespace {

using kernels::Isa;

struct Recorded {
  std::string text;
  uint32_t tokens = 0;
  std::vector<float> vector;
};
struct Case {
  std::vector<uint64_t> hashes;
  std::vector<Recorded> texts;
};

class Reader {
 public:
  explicit Reader(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    bytes_.assign((std::istreambuf_iterator<char>(file)), {});
  }
  std::string_view Bytes(size_t size) {
    TRIVIUM_CHECK(bytes_.size() - at_ >= size, "embedding.bin ends early");
    at_ += size;
    return std::string_view(bytes_).substr(at_ - size, size);
  }
  template <typename T>
  std::vector<T> Numbers(size_t count) {
    std::vector<T> values(count);
    std::memcpy(values.data(), Bytes(count * sizeof(T)).data(), count * sizeof(T));
    return values;
  }
  uint32_t Number() { return Numbers<uint32_t>(1)[0]; }

 private:
  std::string bytes_;
  size_t at_ = 0;
};

Case ReadCase(Reader& reader) {
  Case c;
  c.hashes = reader.Numbers<uint64_t>(reader.Number());
  c.texts.resize(reader.Number());
  for (Recorded& text : c.texts) {
    text.text = reader.Bytes(reader.Number());
    text.tokens = reader.Number();
    text.vector = reader.Numbers<float>(reader.Number());
  }
  return c;
}

// "[SEP]" in a text is a special token to `tokenizers`, and text to us.
std::string AsRecorded(std::string text) {
  for (size_t at = text.find("[SEP]"); at != std::string::npos; at = text.find("[SEP]", at)) {
    text.replace(at, 5, "[ SEP ]");
  }
  return text;
}

double Cosine(const std::vector<float>& a, const std::vector<float>& b) {
  double dot = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    dot += double{a[i]} * b[i];
    aa += double{a[i]} * a[i];
    bb += double{b[i]} * b[i];
  }
  return dot / std::sqrt(aa * bb);
}

class EmbeddingOracle : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const char* real = std::getenv("TRIVIUM_TEST_MINILM");
    if (GetParam() == "minilm" && real == nullptr) GTEST_SKIP() << "TRIVIUM_TEST_MINILM is not set";
    folder_ = GetParam() == "minilm" ? real : oracle::DataPath("tiny-bert");
    Reader reader(oracle::DataPath("embedding.bin"));
    ASSERT_EQ(reader.Bytes(4), "TRVE");
    ASSERT_EQ(reader.Number(), 1u);
    ASSERT_EQ(reader.Number(), 2u);
    case_ = ReadCase(reader);
    if (GetParam() == "tiny") case_ = ReadCase(reader);
  }

  std::string folder_;
  Case case_;
};

TEST_P(EmbeddingOracle, EveryStringGivesTheRecordedIds) {
  const auto words = WordPiece::Load(folder_ + "/tokenizer.json");
  ASSERT_TRUE(words.ok()) << Message(words.status());
  const oracle::WordData data = oracle::ReadWordData();
  ASSERT_EQ(data.strings.size(), case_.hashes.size());
  for (size_t i = 0; i < data.strings.size(); ++i) {
    const auto tokens = words->Encode(data.strings[i], 1 << 20);
    EXPECT_FALSE(tokens.is_cut);
    EXPECT_EQ(oracle::HashIds(tokens.ids), case_.hashes[i]) << "\"" << data.strings[i] << "\"";
  }
}

TEST_P(EmbeddingOracle, VectorsAreTheRecordedOnes) {
  std::vector<std::string> texts;
  for (const Recorded& recorded : case_.texts) texts.push_back(AsRecorded(recorded.text));
  for (const Isa isa : kernels::SupportedIsas()) {
    if (isa == Isa::kReference && GetParam() == "minilm") continue;
    const auto encoder = TextEncoder::Load(folder_, {.isa = isa});
    ASSERT_TRUE(encoder.ok()) << Message(encoder.status());
    const std::vector<Embedding> all = (*encoder)->Encode(texts);
    double worst = 1;
    for (size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ(all[i].tokens, static_cast<int32_t>(case_.texts[i].tokens)) << texts[i];
      double squares = 0;
      for (const float value : all[i].vector) squares += double{value} * value;
      EXPECT_NEAR(squares, 1, 1e-5);
      worst = std::min(worst, Cosine(all[i].vector, case_.texts[i].vector));
    }
    std::printf("%s %s: cosine at least %.7f\n", GetParam().c_str(), kernels::IsaName(isa), worst);
    // On AMX more than four rows are multiplied in bfloat16.
    EXPECT_GE(worst, isa == Isa::kAmx ? 1 - 3e-4 : 1 - 1e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, EmbeddingOracle, testing::Values("tiny", "minilm"),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace trivium::embedding

// Files that are wrong, and what an encoder and its queue promise of batches. Equality with
// sentence-transformers: tests/oracle/embedding_oracle_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <latch>
#include <mutex>
#include <random>

#include "common/embedding/embedding_queue.h"

namespace trivium::embedding {
namespace {

using testing::HasSubstr;

// A folder with the tiny model of the oracle, whose files may be changed.
class EmbeddingTest : public testing::Test {
 protected:
  EmbeddingTest() : folder_(fmt::format("{}embedding_test_{}", testing::TempDir(), getpid())) {
    std::filesystem::copy(TRIVIUM_TINY_BERT, folder_, std::filesystem::copy_options::recursive);
  }
  ~EmbeddingTest() override { std::filesystem::remove_all(folder_); }

  std::string Read(const std::string& name) const {
    std::ifstream file(folder_ + "/" + name, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void Write(const std::string& name, const std::string& bytes) const {
    std::ofstream(folder_ + "/" + name, std::ios::binary) << bytes;
  }
  void Replace(const std::string& name, const std::string& from, const std::string& to) const {
    std::string text = Read(name);
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    Write(name, text.replace(at, from.size(), to));
  }
  std::string LoadError() const {
    const auto encoder = TextEncoder::Load(folder_, {});
    return encoder.ok() ? "" : Message(encoder.status());
  }

  const std::string folder_;
};

// With spaces behind the header, so that what follows is aligned.
std::string SafeTensors(std::string header, size_t data_bytes) {
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t size = header.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &size, 8);
  return out + header + std::string(data_bytes, '\1');
}

TEST_F(EmbeddingTest, WeightsThatCannotBeAreRefused) {
  const auto error = [&](const std::string& bytes) {
    Write("odd", bytes);
    const auto file = SafeTensorsFile::Open(folder_ + "/odd");
    return file.ok() ? std::string() : Message(file.status());
  };
  const auto one = [&](const std::string& fields) {
    return error(SafeTensors("{\"a\":{" + fields + "}}", 64));
  };
  EXPECT_EQ(one(R"("dtype":"F32","shape":[2,8],"data_offsets":[0,64])"), "");
  EXPECT_THAT(error("1234567"), HasSubstr("ends within"));
  EXPECT_THAT(error(SafeTensors("{}", 0).replace(0, 8, 8, '\xff')), HasSubstr("a header of"));
  EXPECT_THAT(error(SafeTensors("{\"a\":", 8)), HasSubstr("no JSON object"));
  EXPECT_THAT(error(SafeTensors("[]", 8)), HasSubstr("no JSON object"));
  EXPECT_THAT(one(R"("dtype":"F31","shape":[16],"data_offsets":[0,64])"), HasSubstr("dtype"));
  EXPECT_THAT(one(R"("dtype":"F32","shape":[16],"data_offsets":[0,68])"), HasSubstr("lie in"));
  EXPECT_THAT(one(R"("dtype":"F32","shape":[16],"data_offsets":[8,4])"), HasSubstr("lie in"));
  EXPECT_THAT(one(R"("dtype":"F32","shape":[16],"data_offsets":[0,-4])"), HasSubstr("whole"));
  EXPECT_THAT(one(R"("dtype":"F32","shape":[15],"data_offsets":[0,64])"), HasSubstr("asks for 60"));
  EXPECT_THAT(one(R"("dtype":"F32","shape":[0],"data_offsets":[0,0])"), HasSubstr("fit"));
  EXPECT_THAT(one(R"("dtype":"F32","shape":[15],"data_offsets":[2,62])"), HasSubstr("aligned"));
  EXPECT_THAT(one(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4])"),
              HasSubstr("at most 8"));
  // The product of the sizes is 4 again in 64 bits.
  EXPECT_THAT(one(R"("dtype":"F32","shape":[4611686018427387905,16],"data_offsets":[0,64])"),
              HasSubstr("fit"));
  const std::string half = R"({"dtype":"F32","shape":[8],"data_offsets":)";
  EXPECT_THAT(error(SafeTensors("{\"a\":" + half + "[0,32]},\"b\":" + half + "[16,48]}}", 64)),
              HasSubstr("overlap"));
}

TEST_F(EmbeddingTest, ABrokenFileIsRefusedOrReadButNeverMore) {
  const std::string whole = Read("model.safetensors");
  const uint32_t seed = std::random_device()();
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 300; ++i) {
    std::string bytes = whole;
    if (i % 3 == 0) bytes.resize(random() % bytes.size());
    for (int flips = 0; flips < 1 + i % 5 && !bytes.empty(); ++flips) {
      bytes[random() % std::min<size_t>(bytes.size(), 3000)] = static_cast<char>(random());
    }
    Write("model.safetensors", bytes);
    const auto encoder = TextEncoder::Load(folder_, {});
    if (encoder.ok()) (*encoder)->Encode(std::vector<std::string>{"a text"});
  }
}

TEST_F(EmbeddingTest, WhatWouldBeComputedOtherwiseIsRefused) {
  EXPECT_EQ(LoadError(), "");
  Replace("config.json", "\"gelu\"", "\"relu\"");
  EXPECT_THAT(LoadError(), HasSubstr("hidden_act"));
  Replace("config.json", "\"relu\"", "\"gelu\"");
  Replace("config.json", "\"num_attention_heads\": 5", "\"num_attention_heads\": 7");
  EXPECT_THAT(LoadError(), HasSubstr("must divide"));
  Replace("config.json", "\"num_attention_heads\": 7", "\"num_attention_heads\": 5");
  Replace("config.json", "\"intermediate_size\": 72", "\"intermediate_size\": 71");
  EXPECT_THAT(LoadError(), HasSubstr("has the shape [72, 40], not [71, 40]"));
  Replace("config.json", "\"intermediate_size\": 71", "\"intermediate_size\": 72");
  Replace("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
  EXPECT_THAT(LoadError(), HasSubstr("encoder.layer.2.attention.self.query.weight is missing"));
  Replace("config.json", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2");
  Replace("tokenizer.json", "BertPreTokenizer", "ByteLevel");
  EXPECT_THAT(LoadError(), HasSubstr("/pre_tokenizer/type"));
  Replace("tokenizer.json", "ByteLevel", "BertPreTokenizer");
  Replace("tokenizer.json", "\"[SEP]\":3", "\"[XEP]\":3");
  EXPECT_THAT(LoadError(), HasSubstr("[SEP] is missing"));
}

TEST_F(EmbeddingTest, ATextIsTheSameBitsInAnyCompany) {
  const std::vector<std::string> texts{"one", "a longer text than that, by far", "", "three 3"};
  for (const kernels::Isa isa : kernels::SupportedIsas()) {
    const auto encoder = TextEncoder::Load(folder_, {isa, kernels::Numerics::kBatchInvariant, 1});
    ASSERT_TRUE(encoder.ok()) << Message(encoder.status());
    const auto together = (*encoder)->Encode(texts);
    for (size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ((*encoder)->Encode(std::span(texts).subspan(i, 1))[0].vector, together[i].vector);
    }
  }
}

TEST_F(EmbeddingTest, TextThatDoesNotFitIsCutAndSaysSo) {
  const auto encoder = TextEncoder::Load(folder_, {});
  ASSERT_TRUE(encoder.ok());
  std::string text;
  for (int i = 0; i < 62; ++i) text += "a ";
  const auto fits = (*encoder)->Encode(std::vector<std::string>{text, text + "b", "\xff\xc0"});
  EXPECT_EQ(fits[0].tokens, 64);
  EXPECT_FALSE(fits[0].is_cut);
  EXPECT_EQ(fits[1].tokens, 64);
  EXPECT_TRUE(fits[1].is_cut);
  EXPECT_EQ(fits[1].vector, fits[0].vector);
  EXPECT_EQ(fits[2].tokens, 2);
}

TEST_F(EmbeddingTest, TheQueueAnswersEveryJobWithItsOwnTexts) {
  EXPECT_FALSE(EmbeddingQueue::Create({.folder = folder_ + "/nowhere"}).ok());
  auto queue = EmbeddingQueue::Create({.folder = folder_});
  ASSERT_TRUE(queue.ok()) << Message(queue.status());
  const auto encoder = TextEncoder::Load(folder_, {});
  ASSERT_TRUE(encoder.ok());
  EXPECT_EQ((*queue)->fingerprint(), (*encoder)->fingerprint());
  std::vector<std::vector<Embedding>> answers(40);
  std::latch answered(40);
  for (size_t i = 0; i < answers.size(); ++i) {
    const std::vector<std::string> texts(i % 5, fmt::format("text {}", i));
    ASSERT_TRUE((*queue)
                    ->Encode(texts,
                             [&, i](std::vector<Embedding> all) {
                               answers[i] = std::move(all);
                               answered.count_down();
                             })
                    .ok());
  }
  answered.wait();
  for (size_t i = 0; i < answers.size(); ++i) {
    ASSERT_EQ(answers[i].size(), i % 5);
    const auto alone = (*encoder)->Encode(std::vector<std::string>{fmt::format("text {}", i)});
    for (const Embedding& one : answers[i]) {
      for (size_t d = 0; d < one.vector.size(); ++d) {
        ASSERT_NEAR(one.vector[d], alone[0].vector[d], 1e-5);
      }
    }
  }
}

TEST_F(EmbeddingTest, UrgentTextsOvertakeALongJob) {
  auto queue = EmbeddingQueue::Create({.folder = folder_, .batch_texts_max = 2});
  ASSERT_TRUE(queue.ok());
  std::mutex mutex;
  std::vector<std::string> order;
  std::latch answered(4), may_go(1);
  const auto tell = [&](const char* name) {
    return [&, name](auto) {
      std::lock_guard lock(mutex);
      order.emplace_back(name);
      answered.count_down();
    };
  };
  // The first holds the queue's thread until all others wait.
  const auto holds = [&](auto all) {
    may_go.wait();
    tell("first")(std::move(all));
  };
  ASSERT_TRUE((*queue)->Encode({"first"}, holds).ok());
  const std::vector<std::string> many(40, "bulk");
  ASSERT_TRUE((*queue)->Encode(many, tell("bulk"), EmbeddingQueue::Kind::kBulk).ok());
  ASSERT_TRUE((*queue)->Encode({"a", "a"}, tell("a")).ok());
  ASSERT_TRUE((*queue)->Encode({"b", "b", "b"}, tell("b")).ok());
  may_go.count_down();
  answered.wait();
  EXPECT_EQ(order, (std::vector<std::string>{"first", "a", "b", "bulk"}));
}

TEST_F(EmbeddingTest, TheQueueRefusesWhatDoesNotFit) {
  auto queue = EmbeddingQueue::Create({.folder = folder_, .texts_waiting_max = 4});
  ASSERT_TRUE(queue.ok());
  const absl::Status status = (*queue)->Encode(std::vector<std::string>(5), [](auto) { FAIL(); });
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ((*queue)->refused(), 1u);
  std::latch answered(1);
  const std::vector<std::string> fits(4);
  EXPECT_TRUE((*queue)->Encode(fits, [&](auto) { answered.count_down(); }).ok());
  answered.wait();
}

}  // namespace
}  // namespace trivium::embedding

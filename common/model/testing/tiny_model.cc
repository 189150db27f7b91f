#include "common/model/testing/tiny_model.h"

#include <cmath>
#include <cstring>
#include <random>
#include <set>
#include <vector>

#include "common/model/byte_alphabet.h"
#include "common/model/testing/gguf_writer.h"
#include "kernels/random_weights.h"

namespace trivium::model {
namespace {

using kernels::WeightType;

constexpr int kControlTokens = 3;
constexpr int kLeastVocab = 260;
constexpr int kMostVocab = kControlTokens + 256 + 26 * 26;
constexpr char kTemplate[] =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are tiny.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

template <typename T>
void Append(std::string& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

class RandomTensors {
 public:
  explicit RandomTensors(uint64_t seed) : generator_(seed) {}

  std::string Norm(int size) {
    std::string out;
    for (int i = 0; i < size; ++i) Append(out, 1.0f + 0.1f * Normal());
    return out;
  }

  std::string Matrix(WeightType type, int64_t rows, int64_t cols, float sigma) {
    std::string out;
    for (int64_t i = 0; i < rows * cols; i += kernels::BlockElems(type)) {
      AppendBlock(type, sigma, out);
    }
    return out;
  }

 private:
  float Normal() { return normal_(generator_); }

  void AppendBlock(WeightType type, float sigma, std::string& out) {
    // Scales that differ from block to block, so that a kernel mixing them up is seen.
    float spread = 0.75f + 0.5f * static_cast<float>(generator_() & 255) / 255.0f;
    if (kernels::BlockElems(type) == 1) spread = Normal();
    uint8_t block[kernels::kMostBlockBytes];
    kernels::FillRandomBlock(generator_, type, sigma * spread, block);
    out.append(block, block + kernels::BlockBytes(type));
  }

  std::mt19937_64 generator_;
  std::normal_distribution<float> normal_;
};

std::string BytePiece(uint8_t byte) {
  std::string out;
  AppendByteSymbol(byte, out);
  return out;
}

// Control tokens, the 256 bytes, then as many merges of two letters or words as there is room for.
void AddTokenizer(const TinyModelOptions& options, GgufWriter& writer) {
  std::vector<std::string> tokens = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  std::vector<int32_t> types(kControlTokens, 3);
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(BytePiece(static_cast<uint8_t>(byte)));
  std::vector<std::string> merges;
  std::set<std::string> seen;
  auto add = [&](const std::string& left, const std::string& right) {
    if (static_cast<int>(tokens.size()) >= options.vocab) return;
    if (!seen.insert(left + right).second) return;
    merges.push_back(left + " " + right);
    tokens.push_back(left + right);
  };
  const std::string space = BytePiece(' ');
  add(space, "t");
  add(space, "a");
  add("h", "e");
  add("i", "n");
  add(space + "t", "he");
  add("in", "g");
  add(space, space);
  for (char left = 'a'; left <= 'z'; ++left) {
    for (char right = 'a'; right <= 'z'; ++right) add({left}, {right});
  }
  types.resize(tokens.size(), 1);
  writer.AddString("tokenizer.ggml.model", "gpt2");
  writer.AddString("tokenizer.ggml.pre", "smollm");
  writer.AddStrings("tokenizer.ggml.tokens", tokens);
  writer.AddInt32s("tokenizer.ggml.token_type", types);
  writer.AddStrings("tokenizer.ggml.merges", merges);
  writer.AddUint32("tokenizer.ggml.bos_token_id", 1);
  writer.AddUint32("tokenizer.ggml.eos_token_id", 2);
  writer.AddBool("tokenizer.ggml.add_bos_token", false);
  writer.AddString("tokenizer.chat_template", kTemplate);
}

void AddConfig(const TinyModelOptions& o, GgufWriter& writer) {
  auto number = [&](const char* key, int value) {
    writer.AddUint32(std::string("llama.") + key, static_cast<uint32_t>(value));
  };
  writer.AddString("general.architecture", "llama");
  writer.AddString("general.name", "tiny");
  number("block_count", o.layers);
  number("context_length", o.context);
  number("embedding_length", o.hidden);
  number("feed_forward_length", o.ffn);
  number("attention.head_count", o.heads);
  number("attention.head_count_kv", o.kv_heads);
  number("attention.key_length", o.head_dim);
  number("attention.value_length", o.head_dim);
  number("rope.dimension_count", o.head_dim);
  number("vocab_size", o.vocab);
  writer.AddFloat("llama.rope.freq_base", 10000.0f);
  writer.AddFloat("llama.attention.layer_norm_rms_epsilon", 1e-5f);
}

// Extends a context of an eighth of the model's.
void AddRopeScaling(const TinyModelOptions& o, GgufWriter& writer) {
  const auto add_factors = [&](const char* name, float step) {
    std::string factors;
    for (int i = 0; i < o.head_dim / 2; ++i) Append(factors, 1.0f + step * static_cast<float>(i));
    writer.AddTensor(name, {o.head_dim / 2}, WeightType::kF32, factors);
  };
  if (o.rope_scaling == "llama3") return add_factors("rope_freqs.weight", 1.0f);
  writer.AddString("llama.rope.scaling.type", o.rope_scaling);
  writer.AddUint32("llama.rope.scaling.original_context_length",
                   static_cast<uint32_t>(o.context / 8));
  if (o.rope_scaling == "longrope") {
    add_factors("rope_factors_long.weight", 2.0f);
    add_factors("rope_factors_short.weight", 0.5f);
  } else {
    writer.AddFloat("llama.rope.scaling.factor", 8.0f);
  }
}

void AddWeights(const TinyModelOptions& o, GgufWriter& writer) {
  RandomTensors random(o.seed);
  auto matrix = [&](const std::string& name, WeightType type, int rows, int cols, float sigma) {
    const std::string data = random.Matrix(type, rows, cols, sigma);
    if (!o.as_float) return writer.AddTensor(name, {cols, rows}, type, data);
    std::vector<float> values(static_cast<size_t>(int64_t{rows} * cols));
    // Rows are whole blocks: all of them read like one.
    kernels::DequantizeRow(type, data.data(), int64_t{rows} * cols, values.data());
    const auto* bytes = reinterpret_cast<const char*>(values.data());
    writer.AddTensor(name, {cols, rows}, WeightType::kF32, {bytes, values.size() * sizeof(float)});
  };
  auto linear = [&](const std::string& name, int rows, int cols) {
    matrix(name, o.linear_type, rows, cols, 1.0f / std::sqrt(static_cast<float>(cols)));
  };
  auto norm = [&](const std::string& name) {
    writer.AddTensor(name, {o.hidden}, WeightType::kF32, random.Norm(o.hidden));
  };
  matrix("token_embd.weight", o.embedding_type, o.vocab, o.hidden, 1.0f);
  for (int i = 0; i < o.layers; ++i) {
    const std::string layer = fmt::format("blk.{}.", i);
    norm(layer + "attn_norm.weight");
    linear(layer + "attn_q.weight", o.heads * o.head_dim, o.hidden);
    linear(layer + "attn_k.weight", o.kv_heads * o.head_dim, o.hidden);
    linear(layer + "attn_v.weight", o.kv_heads * o.head_dim, o.hidden);
    linear(layer + "attn_output.weight", o.hidden, o.heads * o.head_dim);
    norm(layer + "ffn_norm.weight");
    linear(layer + "ffn_gate.weight", o.ffn, o.hidden);
    linear(layer + "ffn_up.weight", o.ffn, o.hidden);
    linear(layer + "ffn_down.weight", o.hidden, o.ffn);
  }
  norm("output_norm.weight");
  if (!o.tied_embedding) {
    // Logits with a standard deviation of 4: greedy choices with margins like a trained model's.
    matrix("output.weight", o.embedding_type, o.vocab, o.hidden,
           4.0f / std::sqrt(static_cast<float>(o.hidden)));
  }
}

}  // namespace

absl::Status WriteTinyModel(const std::string& path, const TinyModelOptions& options) {
  if (options.vocab < kLeastVocab || options.vocab > kMostVocab) {
    return InvalidArgument("vocab {} is not from {} to {}", options.vocab, kLeastVocab, kMostVocab);
  }
  for (int cols : {options.hidden, options.ffn, options.heads * options.head_dim}) {
    if (cols <= 0 || cols % kernels::BlockElems(options.linear_type) != 0 ||
        options.hidden % kernels::BlockElems(options.embedding_type) != 0) {
      return InvalidArgument("rows of {} elements are not whole blocks", cols);
    }
  }
  GgufWriter writer;
  AddConfig(options, writer);
  AddTokenizer(options, writer);
  AddWeights(options, writer);
  if (!options.rope_scaling.empty()) AddRopeScaling(options, writer);
  if (options.parts == 1) return writer.WriteFile(path);
  int number = 0;
  for (const GgufWriter& part : writer.Split(options.parts)) {
    RETURN_IF_ERROR(
        part.WriteFile(fmt::format("{}-{:05}-of-{:05}.gguf", path, ++number, options.parts)));
  }
  return absl::OkStatus();
}

}  // namespace trivium::model

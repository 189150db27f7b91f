#include "common/model/testing/tiny_model.h"

#include <cmath>
#include <cstring>
#include <random>
#include <set>
#include <tuple>
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

  std::string Vector(int size, float mean, float sigma) {
    std::string out;
    for (int i = 0; i < size; ++i) Append(out, mean + sigma * Normal());
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

void AddExpertConfig(const TinyModelOptions& o, GgufWriter& writer) {
  const auto number = [&](const char* key, int value) {
    writer.AddUint32(fmt::format("{}.{}", o.architecture, key), static_cast<uint32_t>(value));
  };
  number("expert_count", o.experts);
  number("expert_used_count", o.experts_used);
  if (o.architecture != "llama") number("expert_feed_forward_length", o.ffn);
  if (o.shared_ffn > 0) number("expert_shared_feed_forward_length", o.shared_ffn);
}

void AddConfig(const TinyModelOptions& o, GgufWriter& writer) {
  const auto key = [&](const char* name) { return fmt::format("{}.{}", o.architecture, name); };
  auto number = [&](const char* name, int value) {
    writer.AddUint32(key(name), static_cast<uint32_t>(value));
  };
  writer.AddString("general.architecture", o.architecture);
  writer.AddString("general.name", o.name);
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
  if (o.window > 0) number("attention.sliding_window", o.window);
  writer.AddFloat(key("rope.freq_base"), 10000.0f);
  writer.AddFloat(key("attention.layer_norm_rms_epsilon"), 1e-5f);
  if (o.softcap > 0) {
    writer.AddFloat(key("attn_logit_softcapping"), o.softcap);
    writer.AddFloat(key("final_logit_softcapping"), 2 * o.softcap);
  }
  if (o.experts > 0) AddExpertConfig(o, writer);
  for (const auto& [name, value] : o.extra_numbers) {
    writer.AddUint32(name, static_cast<uint32_t>(value));
  }
}

// Extends a context of an eighth of the model's.
void AddRopeScaling(const TinyModelOptions& o, GgufWriter& writer) {
  const auto add_factors = [&](const char* name, float step) {
    std::string factors;
    for (int i = 0; i < o.head_dim / 2; ++i) Append(factors, 1.0f + step * static_cast<float>(i));
    writer.AddTensor(name, {o.head_dim / 2}, WeightType::kF32, factors);
  };
  if (o.rope_scaling == "llama3") return add_factors("rope_freqs.weight", 1.0f);
  writer.AddString(o.architecture + ".rope.scaling.type", o.rope_scaling);
  writer.AddUint32(o.architecture + ".rope.scaling.original_context_length",
                   static_cast<uint32_t>(o.context / 8));
  if (o.rope_scaling == "longrope") {
    add_factors("rope_factors_long.weight", 2.0f);
    add_factors("rope_factors_short.weight", 0.5f);
  } else {
    writer.AddFloat(o.architecture + ".rope.scaling.factor", 8.0f);
  }
}

// The tensors of a model, in the order in which a fixed seed draws them.
class TensorWriter {
 public:
  TensorWriter(const TinyModelOptions& options, GgufWriter& writer)
      : o_(options), writer_(writer), random_(options.seed) {}

  void AddAll();

 private:
  bool Is(std::string_view start) const { return o_.architecture.starts_with(start); }

  void Matrices(const std::string& name, WeightType type, const std::vector<int64_t>& shape,
                float sigma);
  void Linear(const std::string& name, int rows, int cols) {
    Matrices(name, o_.linear_type, {cols, rows}, 1.0f / std::sqrt(static_cast<float>(cols)));
  }
  void Vector(const std::string& name, int size, float mean, float sigma) {
    writer_.AddTensor(name, {size}, WeightType::kF32, random_.Vector(size, mean, sigma));
  }
  void Norm(const std::string& name, int size) { Vector(name, size, 1.0f, 0.1f); }

  void AddAttention(const std::string& layer);
  void AddFfn(const std::string& layer, const std::string& suffix, int inner);
  void AddExperts(const std::string& layer);

  const TinyModelOptions& o_;
  GgufWriter& writer_;
  RandomTensors random_;
};

// `shape`: fastest dimension first.
void TensorWriter::Matrices(const std::string& name, WeightType type,
                            const std::vector<int64_t>& shape, float sigma) {
  int64_t elems = 1;
  for (int64_t dimension : shape) elems *= dimension;
  const std::string data = random_.Matrix(type, elems / shape[0], shape[0], sigma);
  if (!o_.as_float) return writer_.AddTensor(name, shape, type, data);
  std::vector<float> values(static_cast<size_t>(elems));
  // Rows are whole blocks: all of them read like one.
  kernels::DequantizeRow(type, data.data(), elems, values.data());
  const auto* bytes = reinterpret_cast<const char*>(values.data());
  writer_.AddTensor(name, shape, WeightType::kF32, {bytes, values.size() * sizeof(float)});
}

void TensorWriter::AddAttention(const std::string& layer) {
  Norm(layer + "attn_norm.weight", o_.hidden);
  Linear(layer + "attn_q.weight", o_.heads * o_.head_dim, o_.hidden);
  Linear(layer + "attn_k.weight", o_.kv_heads * o_.head_dim, o_.hidden);
  Linear(layer + "attn_v.weight", o_.kv_heads * o_.head_dim, o_.hidden);
  Linear(layer + "attn_output.weight", o_.hidden, o_.heads * o_.head_dim);
  if (Is("qwen2")) {
    Vector(layer + "attn_q.bias", o_.heads * o_.head_dim, 0.0f, 0.5f);
    Vector(layer + "attn_k.bias", o_.kv_heads * o_.head_dim, 0.0f, 0.5f);
    Vector(layer + "attn_v.bias", o_.kv_heads * o_.head_dim, 0.0f, 0.5f);
  }
  if (Is("qwen3") || Is("gemma3")) {
    Norm(layer + "attn_q_norm.weight", o_.head_dim);
    Norm(layer + "attn_k_norm.weight", o_.head_dim);
  }
  Norm(layer + "ffn_norm.weight", o_.hidden);
  if (Is("gemma3")) {
    Norm(layer + "post_attention_norm.weight", o_.hidden);
    Norm(layer + "post_ffw_norm.weight", o_.hidden);
  }
}

void TensorWriter::AddFfn(const std::string& layer, const std::string& suffix, int inner) {
  Linear(layer + "ffn_gate" + suffix + ".weight", inner, o_.hidden);
  Linear(layer + "ffn_up" + suffix + ".weight", inner, o_.hidden);
  Linear(layer + "ffn_down" + suffix + ".weight", o_.hidden, inner);
}

void TensorWriter::AddExperts(const std::string& layer) {
  // Scores that differ enough for rounding not to change the choice.
  Matrices(layer + "ffn_gate_inp.weight", WeightType::kF32, {o_.hidden, o_.experts},
           2.0f / std::sqrt(static_cast<float>(o_.hidden)));
  for (const auto& [part, rows, cols] : {std::tuple{"gate", o_.ffn, o_.hidden},
                                         {"up", o_.ffn, o_.hidden},
                                         {"down", o_.hidden, o_.ffn}}) {
    Matrices(fmt::format("{}ffn_{}_exps.weight", layer, part), o_.linear_type,
             {cols, rows, o_.experts}, 1.0f / std::sqrt(static_cast<float>(cols)));
  }
  if (o_.shared_ffn == 0) return;
  Vector(layer + "ffn_gate_inp_shexp.weight", o_.hidden, 0.0f, 0.3f);
  AddFfn(layer, "_shexp", o_.shared_ffn);
}

void TensorWriter::AddAll() {
  Matrices("token_embd.weight", o_.embedding_type, {o_.hidden, o_.vocab}, 1.0f);
  for (int i = 0; i < o_.layers; ++i) {
    const std::string layer = fmt::format("blk.{}.", i);
    AddAttention(layer);
    if (o_.experts > 0) {
      AddExperts(layer);
    } else {
      AddFfn(layer, "", o_.ffn);
    }
  }
  Norm("output_norm.weight", o_.hidden);
  if (!o_.tied_embedding) {
    // Logits with a standard deviation of 4: greedy choices with margins like a trained model's.
    Matrices("output.weight", o_.embedding_type, {o_.hidden, o_.vocab},
             4.0f / std::sqrt(static_cast<float>(o_.hidden)));
  }
}

}  // namespace

TinyModelOptions TinyModelOf(const std::string& family) {
  if (family == "mixtral") return {.experts = 8};
  TinyModelOptions options{.architecture = family};
  if (family == "gemma3") {
    options.layers = 7;
    options.window = 20;
    options.softcap = 5.0f;
    options.head_dim = 32;
  }
  if (family.ends_with("moe")) {
    options.ffn = 64;
    options.experts = 8;
    options.experts_used = 3;
  }
  if (family == "qwen2moe") options.shared_ffn = 96;
  return options;
}

absl::Status WriteTinyModel(const std::string& path, const TinyModelOptions& options) {
  if (options.vocab < kLeastVocab || options.vocab > kMostVocab) {
    return InvalidArgument("vocab {} is not from {} to {}", options.vocab, kLeastVocab, kMostVocab);
  }
  for (int cols : {options.hidden, options.ffn, options.heads * options.head_dim,
                   options.shared_ffn > 0 ? options.shared_ffn : options.ffn}) {
    if (cols <= 0 || cols % kernels::BlockElems(options.linear_type) != 0 ||
        options.hidden % kernels::BlockElems(options.embedding_type) != 0) {
      return InvalidArgument("rows of {} elements are not whole blocks", cols);
    }
  }
  GgufWriter writer;
  AddConfig(options, writer);
  AddTokenizer(options, writer);
  TensorWriter(options, writer).AddAll();
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

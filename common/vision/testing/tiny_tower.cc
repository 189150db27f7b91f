#include "common/vision/testing/tiny_tower.h"

#include <random>

#include "common/model/testing/gguf_writer.h"

namespace trivium::vision {
namespace {

struct TensorShape {
  std::string name;
  std::vector<int64_t> shape;
};

std::vector<TensorShape> Shapes(const TinyTowerOptions& o) {
  std::vector<TensorShape> all;
  const auto linear = [&](const std::string& name, int64_t inputs, int64_t outputs) {
    all.push_back({name + ".weight", {inputs, outputs}});
    all.push_back({name + ".bias", {outputs}});
  };
  const auto norm = [&](const std::string& name) {
    all.push_back({name + ".weight", {o.hidden}});
    all.push_back({name + ".bias", {o.hidden}});
  };
  const int64_t side = o.image / o.patch;
  all.push_back({"v.patch_embd.weight", {o.patch, o.patch, 3, o.hidden}});
  all.push_back({"v.patch_embd.bias", {o.hidden}});
  all.push_back({"v.position_embd.weight", {o.hidden, side * side}});
  norm("v.post_ln");
  for (int32_t i = 0; i < o.layers; ++i) {
    const std::string layer = fmt::format("v.blk.{}.", i);
    norm(layer + "ln1");
    norm(layer + "ln2");
    for (const char* name : {"attn_q", "attn_k", "attn_v", "attn_out"}) {
      linear(layer + name, o.hidden, o.hidden);
    }
    linear(layer + "ffn_up", o.hidden, o.ffn);
    linear(layer + "ffn_down", o.ffn, o.hidden);
  }
  all.push_back({"mm.model.fc.weight", {int64_t{o.hidden} * o.merge * o.merge, o.out_hidden}});
  if (!o.extra.empty()) all.push_back({o.extra, {o.hidden}});
  return all;
}

std::string RandomFloats(std::mt19937& random, const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  std::string bytes;
  for (int64_t i = 0; i < count; ++i) {
    const float value = static_cast<float>(static_cast<int>(random() % 2001) - 1000) * 3e-4f;
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  return bytes;
}

void AddOptions(model::GgufWriter& file, const TinyTowerOptions& o) {
  const auto put = [&](std::string_view key, int32_t value) {
    file.AddUint32(fmt::format("clip.vision.{}", key), static_cast<uint32_t>(value));
  };
  file.AddString("general.architecture", "clip");
  file.AddString("clip.projector_type", o.kind);
  file.AddBool("clip.use_gelu", true);
  put("image_size", o.image);
  put("patch_size", o.patch);
  put("embedding_length", o.hidden);
  put("feed_forward_length", o.ffn);
  put("block_count", o.layers);
  put("attention.head_count", o.heads);
  put("projector.scale_factor", o.merge);
  put("preproc_image_size", o.longest_edge);
  file.AddFloat("clip.vision.attention.layer_norm_epsilon", 1e-6f);
  file.AddFloats("clip.vision.image_mean", {0.5f, 0.5f, 0.5f});
  file.AddFloats("clip.vision.image_std", {0.5f, 0.5f, 0.5f});
}

}  // namespace

std::vector<std::string> TinyTowerTensors(const TinyTowerOptions& options) {
  std::vector<std::string> names;
  for (const TensorShape& tensor : Shapes(options)) names.push_back(tensor.name);
  return names;
}

absl::Status WriteTinyTower(const std::string& path, const TinyTowerOptions& options) {
  model::GgufWriter file;
  AddOptions(file, options);
  std::mt19937 random(options.seed);
  for (const TensorShape& tensor : Shapes(options)) {
    if (tensor.name == options.without) continue;
    file.AddTensor(tensor.name, tensor.shape, kernels::WeightType::kF32,
                   RandomFloats(random, tensor.shape));
  }
  return file.WriteFile(path);
}

}  // namespace trivium::vision

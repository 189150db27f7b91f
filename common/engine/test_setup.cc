#include "common/engine/test_setup.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <string>

namespace trivium::engine {

std::shared_ptr<const model::Model> LoadTinyModel(const model::TinyModelOptions& options) {
  const char* folder = std::getenv("TMPDIR");
  const std::string path =
      fmt::format("{}/tiny-{}.gguf", folder == nullptr ? "/tmp" : folder, getpid());
  const absl::Status written = model::WriteTinyModel(path, options);
  TRIVIUM_CHECK(written.ok(), "{}", Message(written));
  auto loaded = model::Model::Load(path);
  std::remove(path.c_str());
  TRIVIUM_CHECK(loaded.ok(), "{}", Message(loaded.status()));
  return *loaded;
}

std::shared_ptr<const model::Model> TinyModel(kernels::WeightType linear_type) {
  static std::map<kernels::WeightType, std::shared_ptr<const model::Model>> models;
  auto& model = models[linear_type];
  if (model != nullptr) return model;
  model::TinyModelOptions options{.linear_type = linear_type};
  if (linear_type != kernels::WeightType::kF32) {
    options.embedding_type = kernels::WeightType::kQ8_0;
    options.tied_embedding = true;
  }
  return model = LoadTinyModel(options);
}

TestEngine MakeTestEngine(const kernels::OpsOptions& options, int32_t blocks,
                          const OpsWrapper& wrap, kernels::WeightType linear_type) {
  return MakeTestEngine(options, TinyModel(linear_type), blocks, wrap);
}

TestEngine MakeTestEngine(const kernels::OpsOptions& options,
                          std::shared_ptr<const model::Model> model, int32_t blocks,
                          const OpsWrapper& wrap) {
  auto ops = kernels::MakeOps(options);
  TRIVIUM_CHECK(ops != nullptr, "this machine lacks {}", kernels::IsaName(options.isa));
  if (wrap) ops = wrap(std::move(ops));
  auto storage = kv::KvStorage::Create(KvLayoutOf(model->config), model->config.layers, blocks);
  TRIVIUM_CHECK(storage.ok(), "{}", Message(storage.status()));
  TestEngine result;
  result.storage = std::move(*storage);
  result.engine = std::make_unique<Engine>(std::move(model), std::move(ops), result.storage);
  return result;
}

std::vector<int32_t> RandomIds(std::mt19937& random, size_t count, int32_t vocab) {
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab));
  return ids;
}

std::vector<Prompt> RandomPrompts(std::mt19937& random, const TestEngine& test, size_t count,
                                  size_t most_tokens) {
  std::vector<int32_t> blocks(static_cast<size_t>(test.storage->blocks()));
  std::iota(blocks.begin(), blocks.end(), 0);
  std::shuffle(blocks.begin(), blocks.end(), random);
  const auto block_tokens = static_cast<size_t>(test.storage->layout().block_tokens);
  std::vector<Prompt> prompts(count);
  for (Prompt& prompt : prompts) {
    prompt.ids = RandomIds(random, random() % most_tokens + 1, test.config().vocab);
    const size_t needed = (prompt.ids.size() + block_tokens - 1) / block_tokens;
    TRIVIUM_CHECK(blocks.size() >= needed, "too few blocks for the test");
    prompt.table.assign(blocks.end() - static_cast<std::ptrdiff_t>(needed), blocks.end());
    blocks.resize(blocks.size() - needed);
  }
  return prompts;
}

Logits RunWhole(Engine& engine, const Prompt& prompt) { return RunCut(engine, prompt, {}); }

Logits RunCut(Engine& engine, const Prompt& prompt, const std::vector<size_t>& cuts) {
  size_t begin = 0;
  for (size_t cut : cuts) {
    const SequenceRange range = prompt.Range(begin, cut - begin, LogitsWanted::kNone);
    TRIVIUM_CHECK(engine.Step({&range, 1}).logits.empty(), "logits that nobody wants");
    begin = cut;
  }
  const SequenceRange range = prompt.Range(begin, prompt.ids.size() - begin, LogitsWanted::kLast);
  const StepResult result = engine.Step({&range, 1});
  return {result.logits.begin(), result.logits.end()};
}

std::vector<size_t> RandomCuts(std::mt19937& random, size_t tokens, int round) {
  std::vector<size_t> cuts;
  const uint32_t longest = round % 4 == 0 ? 1 : random() % 24 + 1;
  for (size_t at = random() % longest + 1; at < tokens; at += random() % longest + 1) {
    cuts.push_back(at);
  }
  return cuts;
}

std::vector<uint16_t> KvBits(const kv::KvStorage& storage, const Prompt& prompt, int first_layer,
                             int last_layer) {
  const kernels::KvLayout& layout = storage.layout();
  const auto block_tokens = static_cast<size_t>(layout.block_tokens);
  std::vector<uint16_t> bits;
  for (int layer = first_layer; layer <= last_layer; ++layer) {
    for (int64_t half = 0; half < 2; ++half) {
      for (size_t t = 0; t < prompt.ids.size(); ++t) {
        const uint16_t* row =
            storage.page(layer, BlockId{prompt.table[t / block_tokens]}) +
            (half * layout.block_tokens + static_cast<int64_t>(t % block_tokens)) *
                layout.RowWords();
        bits.insert(bits.end(), row, row + layout.RowWords());
      }
    }
  }
  return bits;
}

}  // namespace trivium::engine

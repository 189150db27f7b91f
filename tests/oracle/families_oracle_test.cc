// Tiny random models of each family against the float32 oracle's logits of them, on every
// instruction set that this machine has and in both numerics modes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/engine/engine.h"
#include "common/kv/kv_storage.h"
#include "common/model/model.h"
#include "kernels/ops.h"
#include "tests/oracle/oracle_data.h"

namespace trivium::oracle {
namespace {

using engine::SequenceRange;
using kernels::Isa;
using kernels::Numerics;

// The engine's keys and values are float16, the oracle's float32. AMX multiplies in bfloat16.
constexpr double kMostDistance = 4e-3;
constexpr double kMostDistanceAmx = 6e-2;
// Of a token that another expert answered for.
constexpr double kMostDistanceOtherExpert = 0.5;

double Distance(std::span<const float> got, std::span<const float> expected) {
  double difference = 0, length = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(double{got[i]} - expected[i], 2);
    length += std::pow(double{expected[i]}, 2);
  }
  return std::sqrt(difference / length);
}

class FamiliesOracle : public testing::TestWithParam<std::tuple<Isa, Numerics>> {
 protected:
  // The logits of every token.
  static std::vector<float> Run(const std::shared_ptr<const model::Model>& model,
                                std::span<const int32_t> ids) {
    const auto [isa, numerics] = GetParam();
    auto storage =
        kv::KvStorage::Create(engine::KvLayoutOf(model->config), model->config.layers, 8);
    TRIVIUM_CHECK(storage.ok(), "{}", Message(storage.status()));
    engine::Engine engine(model, kernels::MakeOps({.isa = isa, .numerics = numerics, .threads = 2}),
                          std::move(*storage));
    const std::vector<int32_t> table = {5, 0, 3, 7};
    const SequenceRange range{ids, 0, table, engine::LogitsWanted::kAll};
    const engine::StepResult result = engine.Step({&range, 1});
    return {result.logits.begin(), result.logits.end()};
  }
};

TEST_P(FamiliesOracle, AgreeWithFloat32) {
  const auto families = ReadFamilyData();
  EXPECT_EQ(families.size(), 6u);
  for (const FamilyLogits& family : families) {
    auto model = model::Model::Load(DataPath(family.file));
    ASSERT_TRUE(model.ok()) << Message(model.status());
    const auto logits = Run(*model, family.ids);
    const auto vocab = static_cast<size_t>((*model)->config.vocab);
    std::vector<double> distances;
    for (size_t row = 0; row < family.logits.size(); ++row) {
      const size_t token = (row + 1) * family.every - 1;
      const auto got = std::span(logits).subspan(token * vocab, vocab);
      ASSERT_EQ(family.logits[row].size(), vocab);
      distances.push_back(Distance(got, family.logits[row]));
      ASSERT_TRUE(std::isfinite(distances.back()));
    }
    ASSERT_GE(distances.size(), 3u);
    // Where activations are bfloat16, a token between two experts may go to the other one.
    const bool may_choose =
        GetParam() == std::tuple(Isa::kAmx, Numerics::kFast) && (*model)->config.experts.count > 0;
    std::sort(distances.begin(), distances.end());
    const double worst = distances[distances.size() - (may_choose ? 3 : 1)];
    std::printf("%s: %zu positions, distance at most %.6f, checked %.6f\n", family.file.c_str(),
                family.logits.size(), distances.back(), worst);
    EXPECT_LE(worst, std::get<0>(GetParam()) == Isa::kAmx ? kMostDistanceAmx : kMostDistance)
        << family.file;
    EXPECT_LE(distances.back(), kMostDistanceOtherExpert) << family.file;
  }
}

INSTANTIATE_TEST_SUITE_P(Every, FamiliesOracle,
                         testing::Combine(testing::ValuesIn(kernels::SupportedIsas()),
                                          testing::Values(Numerics::kFast,
                                                          Numerics::kBatchInvariant)),
                         [](const auto& path) {
                           return fmt::format(
                               "{}_{}", kernels::IsaName(std::get<0>(path.param)),
                               std::get<1>(path.param) == Numerics::kFast ? "fast" : "invariant");
                         });

}  // namespace
}  // namespace trivium::oracle

// The rotation that a file asks for, against the definitions of the papers and of the public Python
// implementations, written out in double precision.
#include "common/model/rope.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <numbers>

#include "common/model/testing/gguf_writer.h"

namespace trivium::model {
namespace {

using ::testing::HasSubstr;

constexpr int kDim = 128;
constexpr int kPairs = kDim / 2;
constexpr RopeContext kContext{
    .architecture = "llama", .head_dim = kDim, .context = 65536, .default_base = 10000};

std::string Floats(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

absl::StatusOr<Rope> Read(const std::function<void(GgufWriter&)>& write) {
  GgufWriter writer;
  write(writer);
  const std::string path = testing::TempDir() + "rope_test_" + std::to_string(getpid()) + ".gguf";
  EXPECT_TRUE(writer.WriteFile(path).ok());
  auto file = GgufFile::Open(path);
  std::filesystem::remove(path);
  return ReadRope(**file, kContext);
}

double Plain(int pair, double base = 10000) { return 1 / std::pow(base, pair / (kDim / 2.0)); }

void ExpectFrequencies(const Rope& rope, const std::function<double(int)>& wanted,
                       double tolerance = 1e-13) {
  ASSERT_EQ(rope.frequencies.size(), static_cast<size_t>(kPairs));
  for (int i = 0; i < kPairs; ++i) {
    EXPECT_NEAR(rope.frequencies[static_cast<size_t>(i)], wanted(i), wanted(i) * tolerance) << i;
  }
}

TEST(Rope, WithoutScaling) {
  for (const char* kind : {"", "none"}) {
    const auto rope = Read([&](GgufWriter& w) {
      if (*kind != 0) w.AddString("llama.rope.scaling.type", kind);
      w.AddFloat("llama.rope.freq_base", 500000);
    });
    ASSERT_TRUE(rope.ok()) << Message(rope.status());
    ExpectFrequencies(*rope, [](int i) { return Plain(i, 500000); });
    EXPECT_EQ(rope->scale, 1);
  }
}

TEST(Rope, RotatesThePairsThatTheFileNames) {
  const auto rope =
      Read([](GgufWriter& w) { w.AddUint32("llama.rope.dimension_count", 32); }).value();
  ASSERT_EQ(rope.frequencies.size(), 16u);
  EXPECT_NEAR(rope.frequencies[8], 0.01, 1e-15);
}

TEST(Rope, Linear) {
  const std::function<void(GgufWriter&)> ways[] = {
      [](GgufWriter& w) {
        w.AddString("llama.rope.scaling.type", "linear");
        w.AddFloat("llama.rope.scaling.factor", 4);
      },
      [](GgufWriter& w) { w.AddFloat("llama.rope.scaling.factor", 4); },
      [](GgufWriter& w) { w.AddFloat("llama.rope.scale_linear", 4); }};
  for (const auto& way : ways) {
    const auto rope = Read(way);
    ASSERT_TRUE(rope.ok()) << Message(rope.status());
    ExpectFrequencies(*rope, [](int i) { return Plain(i) / 4; });
    EXPECT_EQ(rope->scale, 1);
  }
}

struct Yarn {
  double base = 10000, factor = 16, original = 4096, fast = 32, slow = 1;

  // NTK-by-parts of the paper's section 3.2: by the wavelength, not by the pair's index.
  double Turns(int pair) const { return original * Plain(pair, base) / (2 * std::numbers::pi); }
  // The public implementations round the pairs at which the ramp begins and ends.
  double Frequency(int pair) const {
    const auto pair_at = [&](double turns) {
      return kDim * std::log(original / (turns * 2 * std::numbers::pi)) / (2 * std::log(base));
    };
    const double begin = std::fmax(0, std::floor(pair_at(fast)));
    const double end = std::fmin(kDim - 1, std::ceil(pair_at(slow)));
    const double inside = std::fmin(1, std::fmax(0, (pair - begin) / (end - begin)));
    const double extrapolated = Plain(pair, base);
    return extrapolated / factor * inside + extrapolated * (1 - inside);
  }
  void Write(GgufWriter& w) const {
    w.AddString("llama.rope.scaling.type", "yarn");
    w.AddFloat("llama.rope.freq_base", static_cast<float>(base));
    w.AddFloat("llama.rope.scaling.factor", static_cast<float>(factor));
    w.AddUint32("llama.rope.scaling.original_context_length", static_cast<uint32_t>(original));
    if (fast != 32) w.AddFloat("llama.rope.scaling.yarn_beta_fast", static_cast<float>(fast));
    if (slow != 1) w.AddFloat("llama.rope.scaling.yarn_beta_slow", static_cast<float>(slow));
  }
};

TEST(Rope, Yarn) {
  for (const Yarn& yarn : {Yarn{}, Yarn{.base = 1e6, .factor = 4, .original = 32768},
                           Yarn{.factor = 40, .original = 2048, .fast = 64, .slow = 2},
                           Yarn{.factor = 1}, Yarn{.base = 500, .factor = 2, .original = 65536}}) {
    const auto rope = Read([&](GgufWriter& w) { yarn.Write(w); });
    ASSERT_TRUE(rope.ok()) << Message(rope.status());
    ExpectFrequencies(
        *rope, [&](int i) { return yarn.Frequency(i); }, 1e-12);
    EXPECT_NEAR(rope->scale, 0.1 * std::log(yarn.factor) + 1, 1e-12);
    for (int i = 0; i < kPairs; ++i) {
      const double ratio = rope->frequencies[static_cast<size_t>(i)] / Plain(i, yarn.base);
      if (yarn.Turns(i) > yarn.fast * 1.2) {
        EXPECT_NEAR(ratio, 1, 1e-12) << i;
      }
      if (yarn.Turns(i) < yarn.slow / 1.5) {
        EXPECT_NEAR(ratio, 1 / yarn.factor, 1e-12) << i;
      }
    }
  }
}

TEST(Rope, YarnTakesTheFilesAttentionFactor) {
  const auto rope = Read([](GgufWriter& w) {
    Yarn{}.Write(w);
    w.AddFloat("llama.rope.scaling.attn_factor", 0.5f);
  });
  EXPECT_NEAR(rope->scale, 0.5 * (0.1 * std::log(16) + 1), 1e-12);
}

// Llama 3.1's rule, from which converters make the tensor: long wavelengths are divided by 8, short
// ones kept, those between mixed.
double Llama3Frequency(int pair) {
  constexpr double kFactor = 8, kLow = 1, kHigh = 4, kOriginal = 8192;
  const double frequency = Plain(pair, 500000);
  const double wavelength = 2 * std::numbers::pi / frequency;
  if (wavelength < kOriginal / kHigh) return frequency;
  if (wavelength > kOriginal / kLow) return frequency / kFactor;
  const double smooth = (kOriginal / wavelength - kLow) / (kHigh - kLow);
  return (1 - smooth) * frequency / kFactor + smooth * frequency;
}

TEST(Rope, FactorsOfLlama3) {
  std::vector<float> factors;
  for (int i = 0; i < kPairs; ++i) {
    factors.push_back(static_cast<float>(Plain(i, 500000) / Llama3Frequency(i)));
  }
  const auto rope = Read([&](GgufWriter& w) {
    w.AddFloat("llama.rope.freq_base", 500000);
    w.AddTensor("rope_freqs.weight", {kPairs}, kernels::WeightType::kF32, Floats(factors));
  });
  ASSERT_TRUE(rope.ok()) << Message(rope.status());
  ExpectFrequencies(*rope, Llama3Frequency, 1e-7);
  EXPECT_EQ(rope->scale, 1);
}

void AddLongRope(GgufWriter& w, uint32_t original) {
  std::vector<float> longer, shorter;
  for (int i = 0; i < kPairs; ++i) {
    longer.push_back(1 + static_cast<float>(i));
    shorter.push_back(1 + static_cast<float>(i) / 64);
  }
  w.AddString("llama.rope.scaling.type", "longrope");
  w.AddUint32("llama.rope.scaling.original_context_length", original);
  w.AddTensor("rope_factors_long.weight", {kPairs}, kernels::WeightType::kF32, Floats(longer));
  w.AddTensor("rope_factors_short.weight", {kPairs}, kernels::WeightType::kF32, Floats(shorter));
}

TEST(Rope, LongRope) {
  const auto longer = Read([](GgufWriter& w) { AddLongRope(w, 4096); }).value();
  ExpectFrequencies(longer, [](int i) { return Plain(i) / (1 + i); });
  EXPECT_NEAR(longer.scale, std::sqrt(1 + std::log(16) / std::log(4096)), 1e-12);
  const auto shorter = Read([](GgufWriter& w) { AddLongRope(w, 65536); }).value();
  ExpectFrequencies(shorter, [](int i) { return Plain(i) / (1 + i / 64.0); });
  EXPECT_EQ(shorter.scale, 1);
  const auto stated = Read([](GgufWriter& w) {
    AddLongRope(w, 4096);
    w.AddFloat("llama.rope.scaling.attn_factor", 1.25f);
  });
  EXPECT_EQ(stated->scale, 1.25);
}

TEST(Rope, RefusesByName) {
  struct Case {
    std::string text;
    absl::StatusCode code;
    std::function<void(GgufWriter&)> write;
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;
  const auto unimplemented = absl::StatusCode::kUnimplemented;
  const auto number = [](const char* key, float value) {
    return [=](GgufWriter& w) {
      Yarn{}.Write(w);
      w.AddFloat(key, value);
    };
  };
  const auto factors = [](const char* name, std::vector<float> values) {
    return [=](GgufWriter& w) {
      const auto size = static_cast<int64_t>(values.size());
      w.AddTensor(name, {size}, kernels::WeightType::kF32, Floats(values));
    };
  };
  const std::vector<float> ones(kPairs, 1.0f);
  std::vector<float> spoilt = ones;
  spoilt[63] = NAN;
  const std::vector<Case> cases = {
      {"\"dynamic\" is not supported", unimplemented,
       [](GgufWriter& w) { w.AddString("llama.rope.scaling.type", "dynamic"); }},
      {"rope.scaling.factor", absl::StatusCode::kNotFound,
       [](GgufWriter& w) { w.AddString("llama.rope.scaling.type", "yarn"); }},
      {"rope.scaling.factor is 0", invalid,
       [](GgufWriter& w) { w.AddFloat("llama.rope.scaling.factor", 0); }},
      {"rope.scaling.factor is 0.5, below 1", invalid,
       [](GgufWriter& w) { Yarn{.factor = 0.5}.Write(w); }},
      {"original_context_length is 1", invalid,
       [](GgufWriter& w) { Yarn{.original = 1}.Write(w); }},
      {"impossible angles", invalid,
       [](GgufWriter& w) {
         w.AddFloat("llama.rope.freq_base", 1e-30f);
         w.AddFloat("llama.rope.scaling.factor", 1e-30f);
       }},
      {"attn_factor is nan", invalid, number("llama.rope.scaling.attn_factor", NAN)},
      {"yarn_beta_fast is -1", invalid, number("llama.rope.scaling.yarn_beta_fast", -1)},
      {"yarn_log_multiplier", unimplemented, number("llama.rope.scaling.yarn_log_multiplier", 1)},
      {"attn_factor with none", unimplemented,
       [](GgufWriter& w) { w.AddFloat("llama.rope.scaling.attn_factor", 2); }},
      {"element 63 is nan", invalid, factors("rope_freqs.weight", spoilt)},
      {"F32 of [64]", invalid, factors("rope_freqs.weight", {1, 1})},
      {"rope_factors_long.weight has no place", unimplemented,
       factors("rope_factors_long.weight", ones)},
      {"rope_factors_long.weight is missing", invalid,
       [](GgufWriter& w) {
         w.AddString("llama.rope.scaling.type", "longrope");
         w.AddUint32("llama.rope.scaling.original_context_length", 4096);
       }},
      {"rope_freqs.weight has no place", unimplemented,
       [&](GgufWriter& w) { AddLongRope(w, 4096), factors("rope_freqs.weight", ones)(w); }},
  };
  for (const Case& bad : cases) {
    const auto rope = Read(bad.write);
    ASSERT_FALSE(rope.ok()) << bad.text;
    EXPECT_EQ(rope.status().code(), bad.code) << Message(rope.status());
    EXPECT_THAT(Message(rope.status()), HasSubstr(bad.text));
  }
}

}  // namespace
}  // namespace trivium::model

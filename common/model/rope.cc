#include "common/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace trivium::model {
namespace {

constexpr int64_t kMostContext = 1 << 30;
constexpr double kBetaFast = 32;
constexpr double kBetaSlow = 1;
constexpr std::string_view kFrequencyFactors = kRopeTensors[0];
constexpr std::string_view kRefused[] = {"rope.scaling.alpha", "rope.scaling.yarn_attn_factor",
                                         "rope.scaling.yarn_ext_factor",
                                         "rope.scaling.yarn_log_multiplier"};

class RopeReader {
 public:
  RopeReader(const GgufFile& file, const RopeContext& context) : file_(file), context_(context) {}

  absl::StatusOr<Rope> Read();

 private:
  std::string Key(std::string_view name) const {
    return fmt::format("{}.{}", context_.architecture, name);
  }
  bool Has(std::string_view name) const { return file_.Has(Key(name)); }

  absl::StatusOr<double> Positive(std::string_view name) const;
  absl::StatusOr<double> PositiveOr(std::string_view name, double otherwise) const;
  absl::StatusOr<int32_t> Dim() const;
  absl::StatusOr<double> OriginalContext() const;
  absl::StatusOr<std::string_view> Kind() const;
  absl::StatusOr<double> Factor() const;
  absl::Status DivideBy(std::string_view tensor);
  absl::Status Scale(std::string_view kind);
  absl::Status ScaleYarn();
  absl::Status ScaleLongRope();

  const GgufFile& file_;
  const RopeContext& context_;
  double base_ = 0;
  Rope rope_;
};

absl::StatusOr<double> RopeReader::Positive(std::string_view name) const {
  const std::string key = Key(name);
  ASSIGN_OR_RETURN(double value, file_.Float(key));
  if (!(value > 0) || !std::isfinite(static_cast<float>(value))) {
    return InvalidArgument("{} is {}, not a positive number", key, value);
  }
  return value;
}

absl::StatusOr<double> RopeReader::PositiveOr(std::string_view name, double otherwise) const {
  return Has(name) ? Positive(name) : otherwise;
}

absl::StatusOr<int32_t> RopeReader::Dim() const {
  constexpr char kName[] = "rope.dimension_count";
  int64_t dim = context_.head_dim;
  if (Has(kName)) {
    ASSIGN_OR_RETURN(dim, file_.Int(Key(kName)));
  }
  if (dim < 2 || dim % 2 != 0 || dim > context_.head_dim) {
    return InvalidArgument("{} is {}, not an even number from 2 to the head size {}", Key(kName),
                           dim, context_.head_dim);
  }
  return static_cast<int32_t>(dim);
}

absl::StatusOr<double> RopeReader::OriginalContext() const {
  constexpr char kName[] = "rope.scaling.original_context_length";
  if (!Has(kName)) return context_.context;
  ASSIGN_OR_RETURN(int64_t original, file_.Int(Key(kName)));
  if (original < 2 || original > kMostContext) {
    return InvalidArgument("{} is {}, not from 2 to {}", Key(kName), original, kMostContext);
  }
  return static_cast<double>(original);
}

// Files from before there were kinds have a factor only, which is linear.
absl::StatusOr<std::string_view> RopeReader::Kind() const {
  constexpr char kName[] = "rope.scaling.type";
  if (Has(kName)) return file_.String(Key(kName));
  return Has("rope.scaling.factor") || Has("rope.scale_linear") ? "linear" : "none";
}

absl::StatusOr<double> RopeReader::Factor() const {
  const bool is_old = !Has("rope.scaling.factor") && Has("rope.scale_linear");
  return Positive(is_old ? "rope.scale_linear" : "rope.scaling.factor");
}

absl::Status RopeReader::DivideBy(std::string_view name) {
  absl::StatusOr<GgufTensor> tensor = file_.Tensor(name);
  if (!tensor.ok()) return InvalidArgument("tensor {} is missing", name);
  const auto pairs = static_cast<int64_t>(rope_.frequencies.size());
  if (tensor->shape != std::vector<int64_t>{pairs} || tensor->type != kernels::WeightType::kF32) {
    return InvalidArgument("tensor {} is {} of shape [{}], not F32 of [{}]", name,
                           kernels::WeightTypeName(tensor->type), fmt::join(tensor->shape, ", "),
                           pairs);
  }
  const auto* factors = static_cast<const float*>(tensor->data);
  for (size_t i = 0; i < rope_.frequencies.size(); ++i) {
    if (!(factors[i] > 0) || !std::isfinite(factors[i])) {
      return InvalidArgument("tensor {}: element {} is {}, not a positive number", name, i,
                             factors[i]);
    }
    rope_.frequencies[i] /= double{factors[i]};
  }
  return absl::OkStatus();
}

absl::Status RopeReader::ScaleYarn() {
  ASSIGN_OR_RETURN(const double factor, Factor());
  ASSIGN_OR_RETURN(const double original, OriginalContext());
  ASSIGN_OR_RETURN(const double fast, PositiveOr("rope.scaling.yarn_beta_fast", kBetaFast));
  ASSIGN_OR_RETURN(const double slow, PositiveOr("rope.scaling.yarn_beta_slow", kBetaSlow));
  ASSIGN_OR_RETURN(const double attention, PositiveOr("rope.scaling.attn_factor", 1));
  if (factor < 1) return InvalidArgument("{} is {}, below 1", Key("rope.scaling.factor"), factor);
  const auto dim = static_cast<double>(2 * rope_.frequencies.size());
  // The pair that turns `turns` times within the original context.
  const auto pair_of = [&](double turns) {
    return dim * std::log(original / (turns * 2 * std::numbers::pi)) / (2 * std::log(base_));
  };
  const double low = std::max(std::floor(pair_of(fast)), 0.0);
  const double high = std::min(std::ceil(pair_of(slow)), dim - 1);
  for (size_t i = 0; i < rope_.frequencies.size(); ++i) {
    const double ramp = (static_cast<double>(i) - low) / std::max(high - low, 0.001);
    const double interpolated = std::clamp(ramp, 0.0, 1.0);
    rope_.frequencies[i] *= interpolated / factor + (1 - interpolated);
  }
  rope_.scale = attention * (1 + 0.1 * std::log(factor));
  return absl::OkStatus();
}

absl::Status RopeReader::ScaleLongRope() {
  if (Has("rope.scaling.factor")) {
    return Unimplemented("{} with longrope is not supported", Key("rope.scaling.factor"));
  }
  ASSIGN_OR_RETURN(const double original, OriginalContext());
  const bool is_longer = context_.context > original;
  const double growth =
      is_longer ? std::sqrt(1 + std::log(context_.context / original) / std::log(original)) : 1;
  ASSIGN_OR_RETURN(rope_.scale, PositiveOr("rope.scaling.attn_factor", growth));
  return DivideBy(is_longer ? "rope_factors_long.weight" : "rope_factors_short.weight");
}

absl::Status RopeReader::Scale(std::string_view kind) {
  for (std::string_view name : kRopeTensors) {
    if (file_.Tensor(name).ok() && (kind == "longrope") == (name == kFrequencyFactors)) {
      return Unimplemented("tensor {} has no place with {} \"{}\"", name, Key("rope.scaling.type"),
                           kind);
    }
  }
  if (kind == "yarn") return ScaleYarn();
  if (kind == "longrope") return ScaleLongRope();
  if (Has("rope.scaling.attn_factor")) {
    return Unimplemented("{} with {} is not supported", Key("rope.scaling.attn_factor"), kind);
  }
  if (kind == "none") return absl::OkStatus();
  if (kind != "linear") {
    return Unimplemented("{} \"{}\" is not supported", Key("rope.scaling.type"), kind);
  }
  ASSIGN_OR_RETURN(const double factor, Factor());
  for (double& frequency : rope_.frequencies) frequency /= factor;
  return absl::OkStatus();
}

absl::StatusOr<Rope> RopeReader::Read() {
  for (std::string_view name : kRefused) {
    if (Has(name)) return Unimplemented("{} is not supported", Key(name));
  }
  ASSIGN_OR_RETURN(const int32_t dim, Dim());
  ASSIGN_OR_RETURN(base_, PositiveOr("rope.freq_base", context_.default_base));
  rope_ = UnscaledRope(base_, static_cast<size_t>(dim));
  if (file_.Tensor(kFrequencyFactors).ok()) RETURN_IF_ERROR(DivideBy(kFrequencyFactors));
  ASSIGN_OR_RETURN(const std::string_view kind, Kind());
  RETURN_IF_ERROR(Scale(kind));
  const auto is_possible = [](double x) { return x > 0 && std::isfinite(static_cast<float>(x)); };
  if (!std::ranges::all_of(rope_.frequencies, is_possible) || !is_possible(rope_.scale)) {
    return InvalidArgument("the settings {} give impossible angles", Key("rope.*"));
  }
  return std::move(rope_);
}

}  // namespace

Rope UnscaledRope(double base, size_t dim) {
  Rope rope;
  for (size_t i = 0; i < dim / 2; ++i) {
    rope.frequencies.push_back(
        std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(dim)));
  }
  return rope;
}

absl::StatusOr<Rope> ReadRope(const GgufFile& file, const RopeContext& context) {
  return RopeReader(file, context).Read();
}

}  // namespace trivium::model

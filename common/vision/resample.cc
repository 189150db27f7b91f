#include "common/vision/resample.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "common/base/status.h"

namespace trivium::vision {
namespace {

constexpr int kFractionBits = 22;

double Sinc(double x) {
  if (x == 0) return 1;
  x *= std::numbers::pi;
  return std::sin(x) / x;
}

double Lanczos(double x) { return x >= -3 && x < 3 ? Sinc(x) * Sinc(x / 3) : 0; }

double Bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

// For each output the inputs that it is made of.
struct Taps {
  struct Range {
    int32_t first = 0, count = 0;
  };
  std::vector<Range> ranges;
  int64_t width = 0;             // coefficients kept for an output
  std::vector<int32_t> weights;  // [outputs, width]
};

// The weights of one output, as fractions that add up to 1.
void WeighInputs(Filter filter, double centre, double stretch, const Taps::Range& range,
                 std::vector<double>& weights) {
  double sum = 0;
  weights.resize(static_cast<size_t>(range.count));
  for (int32_t i = 0; i < range.count; ++i) {
    const double x = (i + range.first - centre + 0.5) * (1.0 / stretch);
    const double weight = filter == Filter::kLanczos ? Lanczos(x) : Bicubic(x);
    weights[static_cast<size_t>(i)] = weight;
    sum += weight;
  }
  if (sum == 0) return;
  for (double& weight : weights) weight /= sum;
}

Taps MakeTaps(Filter filter, int32_t inputs, int32_t outputs) {
  const double scale = static_cast<double>(inputs) / outputs, stretch = std::max(scale, 1.0);
  const double support = (filter == Filter::kLanczos ? 3.0 : 2.0) * stretch;
  Taps taps;
  taps.ranges.resize(static_cast<size_t>(outputs));
  taps.width = static_cast<int64_t>(std::ceil(support)) * 2 + 1;
  taps.weights.resize(static_cast<size_t>(taps.width * outputs));
  std::vector<double> weights;
  for (int32_t out = 0; out < outputs; ++out) {
    const double centre = (out + 0.5) * scale;
    Taps::Range& range = taps.ranges[static_cast<size_t>(out)];
    range.first = std::max(static_cast<int32_t>(centre - support + 0.5), 0);
    range.count = std::min(static_cast<int32_t>(centre + support + 0.5), inputs) - range.first;
    WeighInputs(filter, centre, stretch, range, weights);
    int32_t* fixed = &taps.weights[static_cast<size_t>(taps.width * out)];
    for (double weight : weights) {
      *fixed++ = static_cast<int32_t>(weight * (1 << kFractionBits) + (weight < 0 ? -0.5 : 0.5));
    }
  }
  return taps;
}

uint8_t Rounded(int32_t sum) {
  return static_cast<uint8_t>(std::clamp(sum >> kFractionBits, 0, 255));
}

constexpr int32_t kHalf = 1 << (kFractionBits - 1);

image::Image ResampleColumns(const image::Image& in, const Taps& taps) {
  const auto width = static_cast<int32_t>(taps.ranges.size());
  image::Image out{width, in.height, std::vector<uint8_t>(size_t{3} * width * in.height)};
  uint8_t* to = out.rgb.data();
  for (int32_t y = 0; y < in.height; ++y) {
    const uint8_t* row = in.rgb.data() + int64_t{3} * in.width * y;
    for (int32_t x = 0; x < width; ++x, to += 3) {
      const Taps::Range& range = taps.ranges[static_cast<size_t>(x)];
      const int32_t* weights = taps.weights.data() + taps.width * x;
      int32_t r = kHalf, g = kHalf, b = kHalf;
      const uint8_t* from = row + int64_t{3} * range.first;
      for (int32_t i = 0; i < range.count; ++i, from += 3) {
        r += from[0] * weights[i];
        g += from[1] * weights[i];
        b += from[2] * weights[i];
      }
      to[0] = Rounded(r);
      to[1] = Rounded(g);
      to[2] = Rounded(b);
    }
  }
  return out;
}

image::Image ResampleRows(const image::Image& in, const Taps& taps) {
  const auto height = static_cast<int32_t>(taps.ranges.size());
  const int64_t row_bytes = int64_t{3} * in.width;
  image::Image out{in.width, height, std::vector<uint8_t>(static_cast<size_t>(row_bytes * height))};
  std::vector<int32_t> sums(static_cast<size_t>(row_bytes));
  for (int32_t y = 0; y < height; ++y) {
    const Taps::Range& range = taps.ranges[static_cast<size_t>(y)];
    std::fill(sums.begin(), sums.end(), kHalf);
    for (int32_t i = 0; i < range.count; ++i) {
      const int32_t weight = taps.weights[static_cast<size_t>(taps.width * y + i)];
      const uint8_t* from = in.rgb.data() + row_bytes * (range.first + i);
      for (int64_t j = 0; j < row_bytes; ++j) sums[static_cast<size_t>(j)] += from[j] * weight;
    }
    uint8_t* to = out.rgb.data() + row_bytes * y;
    for (int64_t j = 0; j < row_bytes; ++j) to[j] = Rounded(sums[static_cast<size_t>(j)]);
  }
  return out;
}

}  // namespace

image::Image Resample(const image::Image& image, int32_t width, int32_t height, Filter filter) {
  TRIVIUM_CHECK(width >= 1 && height >= 1, "{} x {}", width, height);
  image::Image out =
      image.width == width ? image : ResampleColumns(image, MakeTaps(filter, image.width, width));
  if (image.height == height) return out;
  return ResampleRows(out, MakeTaps(filter, image.height, height));
}

}  // namespace trivium::vision

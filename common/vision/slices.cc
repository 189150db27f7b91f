#include "common/vision/slices.h"

#include <algorithm>
#include <cmath>

#include "common/vision/resample.h"

namespace trivium::vision {
namespace {

// Idefics3 never resizes beyond this, whatever its configuration asks for.
constexpr int32_t kLongestEdge = 4096;
// Qwen2-VL refuses pictures that are longer than this many times their width.
constexpr double kMostElongated = 200;

struct Size {
  int32_t width = 0, height = 0;
};

int32_t RoundUp(int32_t value, int32_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// The reference computes the other edge through the ratio, in float64, and cuts it off.
Size WithLongestEdge(Size size, int32_t edge) {
  const double ratio = static_cast<double>(size.width) / size.height;
  if (size.width >= size.height) return {edge, static_cast<int32_t>(edge / ratio)};
  return {static_cast<int32_t>(edge * ratio), edge};
}

Size AtLeastOne(Size size) { return {std::max(size.width, 1), std::max(size.height, 1)}; }

// Idefics3 / SmolVLM: the longer edge becomes longest_edge and the other one even, then neither is
// above 4096.
Size ResizedForTiles(const TowerConfig& config, Size size) {
  const bool wide = size.width >= size.height;
  Size resized = WithLongestEdge(size, config.longest_edge);
  int32_t& shorter = wide ? resized.height : resized.width;
  shorter += shorter % 2;
  resized = AtLeastOne(resized);
  if (std::max(resized.width, resized.height) > kLongestEdge) {
    resized = AtLeastOne(WithLongestEdge(resized, kLongestEdge));
  }
  return resized;
}

// Then both become multiples of the tile's side, the shorter through the ratio again.
Size RoundedToTiles(Size size, int32_t side) {
  const double ratio = static_cast<double>(size.width) / size.height;
  if (size.width >= size.height) {
    const int32_t width = RoundUp(size.width, side);
    return {width, RoundUp(static_cast<int32_t>(width / ratio), side)};
  }
  const int32_t height = RoundUp(size.height, side);
  return {RoundUp(static_cast<int32_t>(height * ratio), side), height};
}

PicturePlan PlanTiles(const TowerConfig& config, Size size) {
  const int32_t side = config.image_size;
  const Size grid = RoundedToTiles(ResizedForTiles(config, size), side);
  PicturePlan plan{.width = grid.width, .height = grid.height};
  plan.slice_width = plan.slice_height = side;
  if (grid.width > side || grid.height > side) {
    plan.rows = grid.height / side;
    plan.cols = grid.width / side;
  }
  return plan;
}

// CLIP: the shorter edge becomes the tower's side, the longer one follows, cut off.
PicturePlan PlanCentre(const TowerConfig& config, Size size) {
  const int32_t side = config.image_size;
  PicturePlan plan{.width = side, .height = side, .slice_width = side, .slice_height = side};
  const auto follow = [&](int32_t longer, int32_t shorter) {
    return static_cast<int32_t>(int64_t{side} * longer / shorter);
  };
  if (size.width >= size.height) {
    plan.width = follow(size.width, size.height);
  } else {
    plan.height = follow(size.height, size.width);
  }
  return plan;
}

// Qwen2-VL: both edges to the nearest multiple of a token's patches, then stretched where the area
// is out of bounds. Python rounds halves to even.
absl::StatusOr<PicturePlan> PlanWhole(const TowerConfig& config, Size size) {
  const double width = size.width, height = size.height;
  if (std::max(width, height) / std::min(width, height) > kMostElongated) {
    return InvalidArgument("a picture of {} x {} pixels; the limit is {} times as long as wide",
                           size.width, size.height, kMostElongated);
  }
  const int32_t factor = config.token_side();
  double w = std::nearbyint(width / factor) * factor, h = std::nearbyint(height / factor) * factor;
  if (h * w > static_cast<double>(config.pixels_max)) {
    const double shrink = std::sqrt(height * width / static_cast<double>(config.pixels_max));
    h = std::max<double>(factor, std::floor(height / shrink / factor) * factor);
    w = std::max<double>(factor, std::floor(width / shrink / factor) * factor);
  } else if (h * w < static_cast<double>(config.pixels_min)) {
    const double grow = std::sqrt(static_cast<double>(config.pixels_min) / (height * width));
    h = std::ceil(height * grow / factor) * factor;
    w = std::ceil(width * grow / factor) * factor;
  }
  PicturePlan plan{.width = static_cast<int32_t>(w), .height = static_cast<int32_t>(h)};
  plan.slice_width = plan.width;
  plan.slice_height = plan.height;
  return plan;
}

absl::StatusOr<PicturePlan> PlanSizes(const TowerConfig& config, Size size) {
  switch (config.slicing) {
    case Slicing::kTiles:
      return PlanTiles(config, size);
    case Slicing::kCentre:
      return PlanCentre(config, size);
    case Slicing::kWhole:
      return PlanWhole(config, size);
  }
  return Unimplemented("no such slicing");
}

image::Image Crop(const image::Image& in, int32_t left, int32_t top, int32_t width,
                  int32_t height) {
  image::Image out{width, height, {}};
  out.rgb.reserve(size_t{3} * width * height);
  for (int32_t y = top; y < top + height; ++y) {
    const auto row = in.rgb.begin() + 3 * (int64_t{y} * in.width + left);
    out.rgb.insert(out.rgb.end(), row, row + 3 * int64_t{width});
  }
  return out;
}

std::vector<image::Image> CutTiles(const TowerConfig& config, const PicturePlan& plan,
                                   const image::Image& image) {
  const Size first = ResizedForTiles(config, {image.width, image.height});
  const image::Image resized =
      Resample(Resample(image, first.width, first.height, Filter::kLanczos), plan.width,
               plan.height, Filter::kLanczos);
  const int32_t side = plan.slice_width;
  std::vector<image::Image> slices;
  for (int32_t row = 0; row < plan.rows; ++row) {
    for (int32_t col = 0; col < plan.cols; ++col) {
      slices.push_back(Crop(resized, col * side, row * side, side, side));
    }
  }
  slices.push_back(Resample(resized, side, side, Filter::kLanczos));
  return slices;
}

}  // namespace

absl::StatusOr<PicturePlan> PlanPicture(const TowerConfig& config, int32_t width, int32_t height) {
  TRIVIUM_CHECK(width >= 1 && height >= 1, "a picture of {} x {}", width, height);
  ASSIGN_OR_RETURN(PicturePlan plan, PlanSizes(config, {width, height}));
  if (int64_t{plan.width} * plan.height > kMaxPlanPixels) {
    return InvalidArgument("a picture of {} x {} pixels, to be resized to {} x {}; the limit is {}",
                           width, height, plan.width, plan.height, kMaxPlanPixels);
  }
  if (const int64_t rows = config.RowsOf(plan.slice_width, plan.slice_height);
      rows > kMaxSliceRows) {
    return InvalidArgument("a picture of {} x {} pixels, that gives {} patches; the limit is {}",
                           width, height, rows, kMaxSliceRows);
  }
  const int32_t side = config.token_side();
  plan.tokens_per_slice = plan.slice_width / side * (plan.slice_height / side);
  if (plan.tokens() > kMaxPictureTokens) {
    return InvalidArgument("a picture of {} x {} pixels, that gives {} tokens; the limit is {}",
                           width, height, plan.tokens(), kMaxPictureTokens);
  }
  return plan;
}

std::vector<image::Image> CutPicture(const TowerConfig& config, const PicturePlan& plan,
                                     const image::Image& image) {
  if (config.slicing == Slicing::kTiles) return CutTiles(config, plan, image);
  image::Image resized = Resample(image, plan.width, plan.height, Filter::kBicubic);
  std::vector<image::Image> slices;
  if (config.slicing == Slicing::kWhole) {
    slices.push_back(std::move(resized));
  } else {
    slices.push_back(Crop(resized, (plan.width - plan.slice_width) / 2,
                          (plan.height - plan.slice_height) / 2, plan.slice_width,
                          plan.slice_height));
  }
  return slices;
}

}  // namespace trivium::vision

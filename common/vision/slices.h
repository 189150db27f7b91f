// Pictures to slices, exactly as the reference preprocessors do it: what a plan says of sizes, the
// preprocessor does with pixels. Stateless; safe from any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "common/base/status.h"
#include "common/image/image.h"
#include "common/vision/tower_config.h"

namespace trivium::vision {

// Counts in the keys of caches: any change of a slice's pixels changes it.
inline constexpr int32_t kPreprocessingVersion = 1;

// How a picture is cut, from its size alone: what admission reckons with before anything is
// decoded.
struct PicturePlan {
  // The picture is resized to this first; for kTiles, a multiple of the tile's side.
  int32_t width = 0, height = 0;
  // The grid of tiles; 0 x 0 where the picture is not cut.
  int32_t rows = 0, cols = 0;
  int32_t slice_width = 0, slice_height = 0;
  int32_t tokens_per_slice = 0;

  // The tiles row by row, then the view of the whole picture.
  int32_t slices() const { return rows * cols + 1; }
  int64_t tokens() const { return int64_t{slices()} * tokens_per_slice; }
};

// INVALID_ARGUMENT for a picture so long and narrow that the reference refuses it, that would be
// resized to more than kMaxPlanPixels, or would give more than kMaxPictureTokens, or
// more than kMaxSliceRows patches in one slice.
absl::StatusOr<PicturePlan> PlanPicture(const TowerConfig& config, int32_t width, int32_t height);
inline constexpr int64_t kMaxPlanPixels = int64_t{1} << 25;
inline constexpr int64_t kMaxPictureTokens = int64_t{1} << 16;

// The slices of the plan for this picture, each slice_width x slice_height. Memory beside the
// result: up to 7 bytes for each pixel of plan.width x plan.height and 3 for each of
// plan.width x image.height.
std::vector<image::Image> CutPicture(const TowerConfig& config, const PicturePlan& plan,
                                     const image::Image& image);

}  // namespace trivium::vision

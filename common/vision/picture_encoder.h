// Slices to multimedia tokens: the tower's layers and its projector over a packed batch of slices.
//
// Thread-safety: one thread drives an encoder. Invariants: the tokens of a slice depend on that
// slice alone; under kernels::Numerics::kBatchInvariant they are the same bits in any company.
// Working memory grows with the largest pass seen, up to what kMaxSliceRows needs, and is reused.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/image/image.h"
#include "common/vision/slices.h"
#include "common/vision/tower.h"
#include "kernels/ops.h"

namespace trivium::vision {

class PictureEncoder {
 public:
  // A pass through the layers takes slices up to this many rows, or one larger slice: more at a
  // time is no faster.
  static constexpr int64_t kPassRows = 2048;

  // Packs the weights.
  PictureEncoder(std::shared_ptr<const Tower> tower, std::unique_ptr<kernels::Ops> ops);
  ~PictureEncoder();
  PictureEncoder(const PictureEncoder&) = delete;
  PictureEncoder& operator=(const PictureEncoder&) = delete;

  // Tokens that a slice of this size gives.
  int32_t TokensOf(const image::Image& slice) const;

  // out: float32 [sum of TokensOf, config.out_hidden], slice by slice. Slices come from CutPicture:
  // another size than the tower takes ends the process.
  void Encode(std::span<const image::Image> slices, float* out);

  const Tower& tower() const { return *tower_; }
  const kernels::Ops& ops() const { return *ops_; }

 private:
  struct Packed;
  struct Pass;

  void RunPass(std::span<const image::Image> slices, float* out);
  void CutPatches(std::span<const image::Image> slices);
  void AddPositions(const image::Image& slice, float* rows);
  void MakeRotations(std::span<const image::Image> slices);
  void Embed(std::span<const image::Image> slices);
  // Leaves `out` alone where the tower has no such norm.
  void Norm(const LayerNormWeights& norm, const float* x, float* out);
  void RunLayer(int layer);
  void Project(float* out);

  std::shared_ptr<const Tower> tower_;
  std::unique_ptr<kernels::Ops> ops_;
  std::unique_ptr<Packed> packed_;
  std::unique_ptr<Pass> pass_;
};

}  // namespace trivium::vision

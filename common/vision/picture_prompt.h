// The tokens that stand for pictures in a prompt, with the markers around them that the model was
// trained on, where its vocabulary has them. Immutable; safe from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/model/tokenizer.h"
#include "common/vision/slices.h"
#include "common/vision/tower_config.h"

namespace trivium::vision {

// Where the tokens of one slice go: `count` ids from `first` on are replaced by them.
struct SlicePlace {
  int32_t picture = 0, slice = 0;
  int32_t first = 0, count = 0;
};

struct ExpandedPrompt {
  std::vector<int32_t> ids;        // at places: the picture token, or 0 in a vocabulary without one
  std::vector<SlicePlace> places;  // by picture, then slice; `first` grows
};

class PicturePrompt {
 public:
  // The tokenizer must outlive it. A vocabulary without the kind's picture token gets none of its
  // markers: the slices' tokens then stand bare between the texts. UNIMPLEMENTED: the vocabulary
  // has the picture token but lacks a marker.
  static absl::StatusOr<PicturePrompt> Make(const TowerConfig& config,
                                            const model::Tokenizer& tokenizer);

  // Whether the vocabulary has the kind's picture token.
  bool has_markers() const { return picture_id_ >= 0; }

  // The text of one picture, markers and all, as the reference processor writes it; empty without
  // markers.
  std::string TextOf(const PicturePlan& plan) const;

  // The prompt pieces[0] picture pieces[1] … picture pieces[n], tokenised with `options`. Two
  // pieces more or less than pictures end the process. INVALID_ARGUMENT: a piece holds a picture
  // token of its own, or a marker is unknown (a grid of more rows or columns than the vocabulary
  // names).
  absl::StatusOr<ExpandedPrompt> Expand(std::span<const std::string> pieces,
                                        std::span<const PicturePlan> plans,
                                        model::Tokenizer::Options options) const;

 private:
  struct Markers;

  PicturePrompt(const Markers& markers, const model::Tokenizer& tokenizer, int32_t picture_id)
      : markers_(&markers), tokenizer_(&tokenizer), picture_id_(picture_id) {}

  absl::StatusOr<ExpandedPrompt> ExpandMarked(std::span<const std::string> pieces,
                                              std::span<const PicturePlan> plans,
                                              model::Tokenizer::Options options) const;
  absl::StatusOr<ExpandedPrompt> ExpandBare(std::span<const std::string> pieces,
                                            std::span<const PicturePlan> plans,
                                            model::Tokenizer::Options options) const;

  const Markers* markers_;
  const model::Tokenizer* tokenizer_;
  int32_t picture_id_;
};

}  // namespace trivium::vision

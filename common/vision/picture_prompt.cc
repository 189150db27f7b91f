#include "common/vision/picture_prompt.h"

#include <algorithm>
#include <string_view>

namespace trivium::vision {

// What a kind of model has around its pictures.
struct PicturePrompt::Markers {
  std::string_view kind;
  std::string_view picture;  // stands once for each token
  std::string_view before;   // a slice, or the picture where it is not cut
  std::string_view after;    // the picture
  std::string_view whole;    // in front of the view of the whole picture
  bool grid = false;         // tiles say their row and column, and end each row of theirs in \n
};

namespace {

std::string GridMarker(int32_t row, int32_t col) {
  return fmt::format("<row_{}_col_{}>", row + 1, col + 1);
}

// The id of a text that is one token; else -1.
int32_t SingleToken(const model::Tokenizer& tokenizer, std::string_view text) {
  const std::vector<int32_t> ids = tokenizer.Encode(text, {.parse_special = true});
  const bool single = ids.size() == 1 && tokenizer.Piece(ids[0], true) == text;
  return single ? ids[0] : -1;
}

void Repeat(std::string& out, std::string_view text, int32_t count) {
  for (int32_t i = 0; i < count; ++i) out += text;
}

// The places of all slices' tokens, whose starts are not yet known.
std::vector<SlicePlace> PlacesOf(std::span<const PicturePlan> plans) {
  std::vector<SlicePlace> places;
  for (size_t i = 0; i < plans.size(); ++i) {
    for (int32_t slice = 0; slice < plans[i].slices(); ++slice) {
      places.push_back({static_cast<int32_t>(i), slice, 0, plans[i].tokens_per_slice});
    }
  }
  return places;
}

// Finds where each place's picture tokens are. False where there are more or fewer of them.
bool FindPlaces(const std::vector<int32_t>& ids, int32_t picture_id,
                std::vector<SlicePlace>& places) {
  auto place = places.begin();
  for (size_t i = 0; i < ids.size();) {
    if (ids[i] != picture_id) {
      ++i;
      continue;
    }
    if (place == places.end()) return false;
    const size_t end = i + static_cast<size_t>(place->count);
    place->first = static_cast<int32_t>(i);
    for (; i < end; ++i) {
      if (i == ids.size() || ids[i] != picture_id) return false;
    }
    ++place;
  }
  return place == places.end();
}

}  // namespace

absl::StatusOr<PicturePrompt> PicturePrompt::Make(const TowerConfig& config,
                                                  const model::Tokenizer& tokenizer) {
  static constexpr Markers kMarkers[] = {
      {.kind = "idefics3",
       .picture = "<image>",
       .before = "<fake_token_around_image>",
       .after = "<fake_token_around_image>",
       .whole = "<global-img>",
       .grid = true},
      {.kind = "mlp", .picture = "<image>", .before = {}, .after = {}, .whole = {}},
      {.kind = "qwen2vl_merger",
       .picture = "<|image_pad|>",
       .before = "<|vision_start|>",
       .after = "<|vision_end|>",
       .whole = {}},
  };
  const auto* markers = std::find_if(std::begin(kMarkers), std::end(kMarkers),
                                     [&](const Markers& m) { return m.kind == config.kind; });
  TRIVIUM_CHECK(markers != std::end(kMarkers), "no markers for {}", config.kind);
  const int32_t picture_id = SingleToken(tokenizer, markers->picture);
  if (picture_id < 0) return PicturePrompt(*markers, tokenizer, -1);
  for (std::string_view marker : {markers->before, markers->after, markers->whole}) {
    if (marker.empty() || SingleToken(tokenizer, marker) >= 0) continue;
    return Unimplemented("the vocabulary has {} but no {}", markers->picture, marker);
  }
  return PicturePrompt(*markers, tokenizer, picture_id);
}

std::string PicturePrompt::TextOf(const PicturePlan& plan) const {
  if (!has_markers()) return "";
  std::string text;
  for (int32_t row = 0; row < plan.rows; ++row) {
    for (int32_t col = 0; col < plan.cols; ++col) {
      text += markers_->before;
      if (markers_->grid) text += GridMarker(row, col);
      Repeat(text, markers_->picture, plan.tokens_per_slice);
    }
    if (markers_->grid) text += '\n';
  }
  if (plan.rows > 0 && markers_->grid) text += '\n';
  text += markers_->before;
  text += markers_->whole;
  Repeat(text, markers_->picture, plan.tokens_per_slice);
  text += markers_->after;
  return text;
}

absl::StatusOr<ExpandedPrompt> PicturePrompt::Expand(std::span<const std::string> pieces,
                                                     std::span<const PicturePlan> plans,
                                                     model::Tokenizer::Options options) const {
  TRIVIUM_CHECK(pieces.size() == plans.size() + 1, "{} pieces around {} pictures", pieces.size(),
                plans.size());
  return has_markers() ? ExpandMarked(pieces, plans, options) : ExpandBare(pieces, plans, options);
}

absl::StatusOr<ExpandedPrompt> PicturePrompt::ExpandMarked(
    std::span<const std::string> pieces, std::span<const PicturePlan> plans,
    model::Tokenizer::Options options) const {
  options.parse_special = true;
  std::string text = pieces[0];
  for (size_t i = 0; i < plans.size(); ++i) {
    for (int32_t row = 0; markers_->grid && row < plans[i].rows; ++row) {
      const std::string last = GridMarker(row, plans[i].cols - 1);
      if (SingleToken(*tokenizer_, last) >= 0) continue;
      return InvalidArgument("a picture of {} x {} tiles: the vocabulary has no {}", plans[i].rows,
                             plans[i].cols, last);
    }
    text += TextOf(plans[i]) + pieces[i + 1];
  }
  ExpandedPrompt prompt{tokenizer_->Encode(text, options), PlacesOf(plans)};
  if (!FindPlaces(prompt.ids, picture_id_, prompt.places)) {
    return InvalidArgument("the text around the pictures holds {} of its own", markers_->picture);
  }
  return prompt;
}

absl::StatusOr<ExpandedPrompt> PicturePrompt::ExpandBare(std::span<const std::string> pieces,
                                                         std::span<const PicturePlan> plans,
                                                         model::Tokenizer::Options options) const {
  ExpandedPrompt prompt;
  prompt.places = PlacesOf(plans);
  auto place = prompt.places.begin();
  for (size_t i = 0; i < pieces.size(); ++i) {
    model::Tokenizer::Options here = options;
    here.add_bos = options.add_bos && i == 0;
    here.add_eos = options.add_eos && i + 1 == pieces.size();
    const std::vector<int32_t> ids = tokenizer_->Encode(pieces[i], here);
    prompt.ids.insert(prompt.ids.end(), ids.begin(), ids.end());
    for (; place != prompt.places.end() && place->picture == static_cast<int32_t>(i); ++place) {
      place->first = static_cast<int32_t>(prompt.ids.size());
      prompt.ids.insert(prompt.ids.end(), static_cast<size_t>(place->count), 0);
    }
  }
  return prompt;
}

}  // namespace trivium::vision

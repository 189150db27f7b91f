// What the router makes of the pictures of a request: checked by their headers, before anything is
// decoded, planned, and given their places in the prompt. No pixel is decoded in this process.
// Thread-safety: all methods, any thread.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/status.h"
#include "common/image/decode.h"
#include "common/model/model.h"
#include "common/vision/picture_prompt.h"
#include "services/router/dispatch/run_types.h"
#include "trivium/v1/config.pb.h"

namespace trivium::router {

class Pictures {
 public:
  // Null: the configuration names no tower. Reads the tower's settings; no weight is kept.
  static absl::StatusOr<std::unique_ptr<const Pictures>> Create(
      const v1::RouterPicturesConfig& config, const model::Model& model);

  const std::string& tower() const { return tower_; }
  // Names and digests of the pictures that the configuration calls public.
  const std::vector<std::pair<std::string, std::string>>& public_digests() const {
    return public_digests_;
  }

  struct Prompt {
    std::vector<int32_t> ids;
    std::vector<std::shared_ptr<RunPicture>> pictures;
    std::vector<RunSlice> slices;
  };
  // The prompt pieces[0] files[0] pieces[1] … files[n - 1] pieces[n]. INVALID_ARGUMENT names the
  // picture and the limit; RESOURCE_EXHAUSTED: the pictures of all requests take too much memory.
  absl::StatusOr<Prompt> Expand(std::span<const std::string> pieces,
                                std::span<const std::string* const> files,
                                model::Tokenizer::Options options) const;

 private:
  struct Budget;
  Pictures(const v1::RouterPicturesConfig& config, vision::TowerConfig tower_config,
           std::string tower, int32_t context);

  absl::StatusOr<vision::PicturePlan> Plan(const std::string& file) const;
  absl::StatusOr<std::shared_ptr<RunPicture>> Keep(const std::string& file) const;
  std::string DigestOf(std::string_view file) const;

  const v1::RouterPicturesConfig config_;
  const image::DecodeLimits limits_;
  const vision::TowerConfig tower_config_;
  const std::string tower_;
  const int32_t context_;
  std::optional<vision::PicturePrompt> prompt_;
  std::vector<std::pair<std::string, std::string>> public_digests_;
  std::shared_ptr<Budget> budget_;
};

}  // namespace trivium::router

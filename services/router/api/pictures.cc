#include "services/router/api/pictures.h"

#include <algorithm>
#include <fstream>
#include <iterator>

#include "common/model/digest.h"
#include "common/vision/tower.h"

namespace trivium::router {
namespace {

std::string SliceDigest(const std::string& picture, int32_t slice) {
  model::Digest digest;
  digest.Add("trivium slice");
  digest.Add(picture);
  digest.AddInt(slice);
  return digest.Finish();
}

absl::StatusOr<std::string> ReadWhole(const std::string& path, int64_t bytes_max) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return InvalidArgument("pictures.public_pictures: {}: cannot be read", path);
  std::string file(std::istreambuf_iterator<char>(in), {});
  if (std::ssize(file) <= bytes_max) return file;
  return InvalidArgument("pictures.public_pictures: {}: more than {} bytes", path, bytes_max);
}

}  // namespace

// Of the memory that the files of all requests may take.
struct Pictures::Budget {
  explicit Budget(int64_t bytes) : left(bytes) {}
  std::atomic<int64_t> left;

  // Null: there is none.
  static std::shared_ptr<const void> Take(const std::shared_ptr<Budget>& budget, int64_t bytes) {
    if (budget->left.fetch_sub(bytes) < bytes) {
      budget->left += bytes;
      return nullptr;
    }
    return std::shared_ptr<const void>(budget.get(),
                                       [budget, bytes](const void*) { budget->left += bytes; });
  }
};

Pictures::Pictures(const v1::RouterPicturesConfig& config, vision::TowerConfig tower_config,
                   std::string tower, int32_t context)
    : config_(config),
      limits_{
          .bytes = config.bytes_max(), .side = config.side_max(), .pixels = config.pixels_max()},
      tower_config_(std::move(tower_config)),
      tower_(std::move(tower)),
      context_(context),
      budget_(std::make_shared<Budget>(config.memory_bytes())) {}

absl::StatusOr<std::unique_ptr<const Pictures>> Pictures::Create(
    const v1::RouterPicturesConfig& config, const model::Model& model) {
  if (config.tower().empty()) return nullptr;
  absl::StatusOr<std::shared_ptr<const vision::Tower>> tower = vision::Tower::Load(config.tower());
  if (!tower.ok()) return InvalidArgument("pictures.tower: {}", Message(tower.status()));
  const vision::TowerConfig& settings = (*tower)->config;
  if (settings.out_hidden != model.config.hidden) {
    return InvalidArgument("pictures.tower: its tokens have {} values, the model's {}",
                           settings.out_hidden, model.config.hidden);
  }
  std::unique_ptr<Pictures> pictures(
      new Pictures(config, settings, (*tower)->fingerprint, model.config.context));
  ASSIGN_OR_RETURN(pictures->prompt_,
                   vision::PicturePrompt::Make(pictures->tower_config_, *model.tokenizer));
  for (const v1::PublicPictureConfig& one : config.public_pictures()) {
    ASSIGN_OR_RETURN(const std::string file, ReadWhole(one.file(), config.bytes_max()));
    if (absl::Status status = pictures->Plan(file).status(); !status.ok()) {
      return InvalidArgument("pictures.public_pictures: {}: {}", one.file(), Message(status));
    }
    pictures->public_digests_.emplace_back(one.id(), pictures->DigestOf(file));
  }
  return pictures;
}

absl::StatusOr<vision::PicturePlan> Pictures::Plan(const std::string& file) const {
  const std::span<const uint8_t> bytes(reinterpret_cast<const uint8_t*>(file.data()), file.size());
  ASSIGN_OR_RETURN(const image::ImageInfo info, image::Inspect(bytes, limits_));
  return vision::PlanPicture(tower_config_, info.width, info.height);
}

std::string Pictures::DigestOf(std::string_view file) const {
  model::Digest digest;
  digest.Add("trivium picture file");
  digest.Add(file);
  digest.Add(tower_);
  digest.AddInt(vision::kPreprocessingVersion);
  return digest.Finish();
}

absl::StatusOr<std::shared_ptr<RunPicture>> Pictures::Keep(const std::string& file) const {
  auto picture = std::make_shared<RunPicture>();
  picture->memory = Budget::Take(budget_, std::ssize(file));
  if (picture->memory == nullptr) {
    return ResourceExhausted("the pictures of all requests take {} bytes, the limit",
                             config_.memory_bytes());
  }
  picture->file = file;
  picture->digest = DigestOf(file);
  return picture;
}

absl::StatusOr<Pictures::Prompt> Pictures::Expand(std::span<const std::string> pieces,
                                                  std::span<const std::string* const> files,
                                                  model::Tokenizer::Options options) const {
  if (std::ssize(files) > config_.count_max()) {
    return InvalidArgument("chat.messages: {} pictures, at most {} are allowed", files.size(),
                           config_.count_max());
  }
  int64_t bytes = 0, tokens = 0;
  std::vector<vision::PicturePlan> plans;
  for (size_t i = 0; i < files.size(); ++i) {
    bytes += std::ssize(*files[i]);
    absl::StatusOr<vision::PicturePlan> plan = Plan(*files[i]);
    if (!plan.ok())
      return InvalidArgument("chat.messages: picture {}: {}", i, Message(plan.status()));
    tokens += plan->tokens();
    plans.push_back(*std::move(plan));
  }
  if (bytes > config_.total_bytes_max()) {
    return InvalidArgument("chat.messages: pictures of {} bytes, together at most {} are allowed",
                           bytes, config_.total_bytes_max());
  }
  if (tokens >= context_) {
    return InvalidArgument("chat.messages: pictures of {} tokens do not fit into the context of {}",
                           tokens, context_);
  }
  ASSIGN_OR_RETURN(vision::ExpandedPrompt expanded, prompt_->Expand(pieces, plans, options));
  Prompt prompt{.ids = std::move(expanded.ids), .pictures = {}, .slices = {}};
  for (const std::string* file : files) {
    ASSIGN_OR_RETURN(std::shared_ptr<RunPicture> picture, Keep(*file));
    prompt.pictures.push_back(std::move(picture));
  }
  for (const vision::SlicePlace& place : expanded.places) {
    RunSlice slice{.picture = place.picture,
                   .slice = place.slice,
                   .span = {.position = place.first, .tokens = place.count, .digest = {}}};
    const std::string digest =
        SliceDigest(prompt.pictures[static_cast<size_t>(place.picture)]->digest, place.slice);
    std::ranges::copy(digest, slice.span.digest.begin());
    prompt.slices.push_back(slice);
  }
  return prompt;
}

}  // namespace trivium::router

// From what a client sent to a request that can be run: every value checked before it is used, each
// error naming the field and what is allowed.
// Thread-safety: immutable after construction; any thread. Not for a gRPC thread: tokenising a long
// text takes a while.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/status.h"
#include "common/model/model.h"
#include "services/router/api/pictures.h"
#include "services/router/dispatch/run_types.h"
#include "trivium/v1/inference.pb.h"

namespace trivium::router {

class RequestValidator {
 public:
  // `pictures`: null where the cluster takes none; outlives this.
  RequestValidator(std::shared_ptr<const model::Model> model, int32_t default_max_tokens,
                   const Pictures* pictures = nullptr);

  // INVALID_ARGUMENT, NOT_FOUND (model), UNIMPLEMENTED (chat with a template that is not known),
  // UNAVAILABLE (pictures, and no stage for them), RESOURCE_EXHAUSTED (too many of them wait).
  // The deadline is left to the caller.
  absl::StatusOr<RunRequest> Prepare(const v1::GenerateRequest& request) const;
  absl::StatusOr<std::vector<int32_t>> Tokenize(const v1::TokenizeRequest& request) const;

  // NOT_FOUND unless `name` is one of the model's names, or empty.
  absl::Status CheckModel(const std::string& name) const;
  const std::string& model_id() const { return model_id_; }
  const model::Model& model() const { return *model_; }

 private:
  absl::StatusOr<std::vector<int32_t>> TokensOf(const std::string& text) const;
  absl::StatusOr<Pictures::Prompt> PromptOf(const v1::Messages& chat) const;
  absl::StatusOr<std::vector<int32_t>> TokensOf(const v1::TokenIds& ids) const;
  absl::Status CheckBytes(size_t bytes, std::string_view field) const;
  absl::Status CheckId(int32_t id, std::string_view field, int index) const;
  absl::Status CheckSampling(const v1::Sampling& sampling) const;
  v1::StageSampling Complete(const v1::Sampling& sampling, int32_t prompt_tokens) const;

  const std::shared_ptr<const model::Model> model_;
  const int32_t default_max_tokens_;
  const Pictures* const pictures_;
  std::string model_id_;
  std::vector<std::string> model_names_;
  size_t piece_bytes_max_ = 1;
};

// "SmolLM2 135M Instruct" -> "smollm2-135m-instruct".
std::string Slug(std::string_view name);

}  // namespace trivium::router

#include "services/router/api/openai/prompts.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "common/net/text.h"
#include "services/router/api/openai/data_uri.h"

namespace trivium::router::openai {
namespace {

constexpr size_t kPromptsMax = 64;

// "image_url": {"url": "data:…", "detail": …}
absl::StatusOr<std::string> Picture(Element value) {
  ASSIGN_OR_RETURN(const auto image, Object(value));
  for (const auto& [key, field] : image) {
    if (key != "url") continue;
    const absl::StatusOr<std::string> url = String(field);
    if (!url.ok()) return At(".url", url.status());
    absl::StatusOr<std::string> file = ReadDataUri(*url);
    if (!file.ok()) return At(".url", file.status());
    return file;
  }
  return InvalidArgument(".url: is required");
}

absl::Status AddPart(Element value, v1::Message* out) {
  ASSIGN_OR_RETURN(const auto part, Object(value));
  std::optional<std::string> text, picture;
  std::string type;
  for (const auto& [key, field] : part) {
    if (key == "image_url") {
      absl::StatusOr<std::string> file = Picture(field);
      if (!file.ok()) return At(".image_url", file.status());
      picture = *std::move(file);
      continue;
    }
    if (key != "type" && key != "text") continue;
    const absl::StatusOr<std::string> string = String(field);
    if (!string.ok()) return At(fmt::format(".{}", key), string.status());
    (key == "type" ? type : text.emplace()) = *string;
  }
  if (type == "image_url") {
    if (!picture.has_value()) return InvalidArgument(".image_url: is required");
    *out->add_parts()->mutable_picture() = *std::move(picture);
    return absl::OkStatus();
  }
  if (type != "text") {
    return InvalidArgument(".type: is \"{}\"; \"text\" and \"image_url\" are supported",
                           net::Escape(type, kShownMax));
  }
  if (!text.has_value()) return InvalidArgument(".text: is required");
  *out->add_parts()->mutable_text() = *std::move(text);
  return absl::OkStatus();
}

// Texts alone are one text.
absl::Status SetContent(Element value, v1::Message* out) {
  if (value.is_string()) {
    ASSIGN_OR_RETURN(*out->mutable_content(), String(value));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const auto parts, Array(value, "a string or an array of parts"));
  for (const Element part : parts) {
    const int index = out->parts_size();
    const absl::Status status = AddPart(part, out);
    if (!status.ok()) return At(fmt::format("[{}]", index), status);
  }
  const bool has_pictures = std::ranges::any_of(
      out->parts(), [](const v1::ContentPart& part) { return part.has_picture(); });
  if (has_pictures) return absl::OkStatus();
  for (const v1::ContentPart& part : out->parts()) out->mutable_content()->append(part.text());
  out->clear_parts();
  return absl::OkStatus();
}

absl::Status SetMessageField(std::string_view key, Element field, v1::Message* out) {
  if (key == "role") {
    ASSIGN_OR_RETURN(const std::string role, String(field));
    // The newer name of the same thing, which templates do not know.
    out->set_role(role == "developer" ? "system" : role);
  } else if (key == "content") {
    return SetContent(field, out);
  } else if (key == "tool_calls" || key == "function_call") {
    return InvalidArgument("calls of tools are not supported");
  }
  return absl::OkStatus();
}

absl::Status AddMessage(Element value, v1::Message* out) {
  ASSIGN_OR_RETURN(const auto message, Object(value));
  bool has_role = false, has_content = false;
  for (const auto& [key, field] : message) {
    if (field.is_null()) continue;
    has_role |= key == "role";
    has_content |= key == "content";
    const absl::Status status = SetMessageField(key, field, out);
    if (!status.ok()) return At(fmt::format(".{}", key), status);
  }
  if (!has_role) return InvalidArgument(".role: is required");
  if (!has_content) return InvalidArgument(".content: is required");
  return absl::OkStatus();
}

absl::Status SetIds(simdjson::dom::array items, v1::GenerateRequest* out) {
  v1::TokenIds* ids = out->mutable_token_ids();
  for (const Element item : items) {
    const absl::StatusOr<int32_t> id = Integer(item);
    if (!id.ok()) return At(fmt::format("[{}]", ids->ids_size()), id.status());
    ids->add_ids(*id);
  }
  return absl::OkStatus();
}

absl::Status SetOnePrompt(Element value, v1::GenerateRequest* out) {
  if (value.is_array()) return SetIds(simdjson::dom::array(value), out);
  if (!value.is_string()) return WrongType(value, "a string or an array of token ids");
  ASSIGN_OR_RETURN(*out->mutable_text(), String(value));
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadMessages(Element value, std::vector<v1::GenerateRequest>* out) {
  ASSIGN_OR_RETURN(const auto items, Array(value, "an array of messages"));
  out->assign(1, {});
  v1::Messages* messages = (*out)[0].mutable_chat();
  for (const Element item : items) {
    const absl::Status status = AddMessage(item, messages->add_messages());
    if (!status.ok()) return At(fmt::format("[{}]", messages->messages_size() - 1), status);
  }
  return absl::OkStatus();
}

absl::Status ReadPrompts(Element value, std::vector<v1::GenerateRequest>* out) {
  out->clear();
  const bool is_list = value.is_array();
  if (!is_list) return SetOnePrompt(value, &out->emplace_back());
  ASSIGN_OR_RETURN(const auto items, Array(value, ""));
  if (items.begin() == items.end()) return InvalidArgument("is empty");
  if ((*items.begin()).is_number()) return SetIds(items, &out->emplace_back());
  for (const Element item : items) {
    if (out->size() == kPromptsMax) {
      return InvalidArgument("at most {} prompts are allowed in one request", kPromptsMax);
    }
    const absl::Status status = SetOnePrompt(item, &out->emplace_back());
    if (!status.ok()) return At(fmt::format("[{}]", out->size() - 1), status);
  }
  return absl::OkStatus();
}

}  // namespace trivium::router::openai

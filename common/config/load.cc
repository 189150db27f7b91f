#include <fmt/ranges.h>
#include <google/protobuf/message.h>

#include <map>

#include "common/config/config.h"
#include "common/config/fields.h"
#include "common/config/yaml_tree.h"
#include "common/net/text.h"

namespace trivium::config {
namespace {

using google::protobuf::FieldDescriptor;

constexpr size_t kKeyBytesShown = 40;

// Fills messages from nodes of one file; depth is bounded by the tree's.
class Loader {
 public:
  explicit Loader(const std::string& name) : name_(name) {}

  absl::Status FillMessage(const YamlNode& node, const std::string& path,
                           google::protobuf::Message* message) const {
    if (node.kind == YamlNode::Kind::kNull) return absl::OkStatus();
    if (node.kind != YamlNode::Kind::kMap) {
      return Error(node, path, "must be a map of \"key: value\" lines");
    }
    std::map<std::string_view, int> seen;
    for (size_t i = 0; i + 1 < node.items.size(); i += 2) {
      const YamlNode& key = node.items[i];
      const FieldDescriptor* field = nullptr;
      RETURN_IF_ERROR(FindField(key, path, *message->GetDescriptor(), &field));
      const std::string field_path = path.empty() ? key.text : path + "." + key.text;
      if (const auto [first, fresh] = seen.emplace(key.text, key.line); !fresh) {
        return Error(key, field_path, fmt::format("repeated; first on line {}", first->second));
      }
      RETURN_IF_ERROR(FillField(node.items[i + 1], field_path, *field, message));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Error(const YamlNode& node, const std::string& path, const std::string& what) const {
    return InvalidArgument("{}:{}: {}{}", name_, node.line, path.empty() ? "" : path + ": ", what);
  }

  absl::Status FindField(const YamlNode& key, const std::string& path,
                         const google::protobuf::Descriptor& type,
                         const FieldDescriptor** field) const {
    if (key.kind == YamlNode::Kind::kScalar) *field = type.FindFieldByName(key.text);
    if (*field != nullptr) return absl::OkStatus();
    std::vector<std::string> known;
    for (int i = 0; i < type.field_count(); ++i) known.push_back(type.field(i)->name());
    return Error(key, path,
                 fmt::format("unknown key \"{}\"; allowed: {}",
                             net::Escape(key.text, kKeyBytesShown), fmt::join(known, ", ")));
  }

  absl::Status FillField(const YamlNode& node, const std::string& path,
                         const FieldDescriptor& field, google::protobuf::Message* message) const {
    if (node.kind == YamlNode::Kind::kNull) return absl::OkStatus();
    if (field.is_repeated()) return FillList(node, path, field, message);
    if (field.message_type() != nullptr) {
      return FillMessage(node, path, message->GetReflection()->MutableMessage(message, &field));
    }
    return FillScalar(node, path, field, message);
  }

  absl::Status FillScalar(const YamlNode& node, const std::string& path,
                          const FieldDescriptor& field, google::protobuf::Message* message) const {
    if (node.kind != YamlNode::Kind::kScalar) return Error(node, path, "must be a single value");
    const absl::Status status = SetFromText(message, field, node.text, node.quoted);
    return status.ok() ? status : Error(node, path, ::trivium::Message(status));
  }

  absl::Status FillList(const YamlNode& node, const std::string& path, const FieldDescriptor& field,
                        google::protobuf::Message* message) const {
    if (node.kind != YamlNode::Kind::kSequence) {
      return Error(node, path, "must be a list: one \"- …\" an item");
    }
    for (size_t i = 0; i < node.items.size(); ++i) {
      const std::string place = fmt::format("{}[{}]", path, i);
      RETURN_IF_ERROR(field.message_type() == nullptr
                          ? FillScalar(node.items[i], place, field, message)
                          : FillMessage(node.items[i], place,
                                        message->GetReflection()->AddMessage(message, &field)));
    }
    return absl::OkStatus();
  }

  const std::string& name_;
};

}  // namespace

absl::Status ParseYamlInto(const std::string& text, const std::string& name,
                           google::protobuf::Message* message) {
  ASSIGN_OR_RETURN(const YamlNode root, ParseYaml(text, name));
  return Loader(name).FillMessage(root, "", message);
}

absl::Status LoadYaml(const std::string& path, google::protobuf::Message* message) {
  if (path.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path));
  return ParseYamlInto(text, net::Escape(path, 300), message);
}

}  // namespace trivium::config

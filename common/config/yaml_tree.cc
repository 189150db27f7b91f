#include "common/config/yaml_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <sstream>

#include "common/net/text.h"

namespace trivium::config {
namespace {

constexpr size_t kFileBytesMax = 1 << 20;
constexpr size_t kDepthMax = 16;

// Thrown inside this file alone, to leave the parser's callbacks.
struct Refused {
  int line;
  std::string why;
};

int LineOf(const YAML::Mark& mark) { return std::max(mark.line, 0) + 1; }

// Builds the tree from the parser's events, so that what is refused never becomes a tree.
class TreeBuilder final : public YAML::EventHandler {
 public:
  YamlNode root;

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Add(mark, anchor, "?", {});
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    throw Refused{LineOf(mark), "YAML aliases are not allowed"};
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    YamlNode node;
    node.kind = YamlNode::Kind::kScalar;
    node.text = value;
    node.quoted = tag == "!";
    Add(mark, anchor, tag == "!" ? "?" : tag, std::move(node));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Open(mark, tag, anchor, YamlNode::Kind::kSequence);
  }
  void OnSequenceEnd() override { open_.pop_back(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Open(mark, tag, anchor, YamlNode::Kind::kMap);
  }
  void OnMapEnd() override { open_.pop_back(); }

 private:
  // The parents of an open node do not grow before it is closed, so the pointers in open_ hold.
  YamlNode* Add(const YAML::Mark& mark, YAML::anchor_t anchor, const std::string& tag,
                YamlNode node) {
    node.line = LineOf(mark);
    if (anchor != 0) throw Refused{node.line, "YAML anchors are not allowed"};
    if (!tag.empty() && tag != "?") throw Refused{node.line, "YAML tags are not allowed"};
    if (open_.empty()) {
      root = std::move(node);
      return &root;
    }
    open_.back()->items.push_back(std::move(node));
    return &open_.back()->items.back();
  }

  void Open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
            YamlNode::Kind kind) {
    if (open_.size() == kDepthMax) {
      throw Refused{LineOf(mark), fmt::format("nested deeper than {} levels", kDepthMax)};
    }
    YamlNode node;
    node.kind = kind;
    open_.push_back(Add(mark, anchor, tag, std::move(node)));
  }

  std::vector<YamlNode*> open_;
};

absl::Status CheckBytes(const std::string& text, const std::string& name) {
  if (text.size() > kFileBytesMax) return InvalidArgument("{}: larger than 1 MiB", name);
  std::string_view rest = text;
  for (int line = 1; !rest.empty();) {
    const size_t bytes = net::Utf8CharBytes(rest);
    if (bytes == 0) return InvalidArgument("{}:{}: not valid UTF-8", name, line);
    const auto byte = static_cast<unsigned char>(rest[0]);
    const bool space = byte == '\n' || byte == '\r' || byte == '\t';
    if ((byte < 0x20 && !space) || byte == 0x7f) {
      return InvalidArgument("{}:{}: control character 0x{:02x}", name, line, byte);
    }
    line += byte == '\n';
    rest.remove_prefix(bytes);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<YamlNode> ParseYaml(const std::string& text, const std::string& name) {
  RETURN_IF_ERROR(CheckBytes(text, name));
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    TreeBuilder tree;
    if (!parser.HandleNextDocument(tree)) return YamlNode();
    TreeBuilder second;
    if (parser.HandleNextDocument(second)) {
      return InvalidArgument("{}:{}: a second YAML document; one is allowed", name,
                             second.root.line);
    }
    return std::move(tree.root);
  } catch (const Refused& refused) {
    return InvalidArgument("{}:{}: {}", name, refused.line, refused.why);
  } catch (const YAML::Exception& error) {
    return InvalidArgument("{}:{}: not valid YAML: {}", name, LineOf(error.mark),
                           net::Escape(error.msg, 200));
  } catch (const std::exception& error) {
    return InvalidArgument("{}: not valid YAML: {}", name, net::Escape(error.what(), 200));
  }
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  const std::string shown = net::Escape(path, 300);
  FILE* file = std::fopen(path.c_str(), "re");
  if (file == nullptr)
    return InvalidArgument("{}: cannot be read: {}", shown, std::strerror(errno));
  std::string text(kFileBytesMax + 1, '\0');
  const size_t bytes = std::fread(text.data(), 1, text.size(), file);
  const int error = std::ferror(file) ? errno : 0;
  std::fclose(file);
  if (error != 0) return InvalidArgument("{}: cannot be read: {}", shown, std::strerror(error));
  if (bytes > kFileBytesMax) return InvalidArgument("{}: larger than 1 MiB", shown);
  text.resize(bytes);
  return text;
}

}  // namespace trivium::config

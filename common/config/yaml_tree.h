// A YAML file as a small tree with line numbers, of the part of YAML that configuration needs: one
// document of maps, sequences and scalars. Values; a tree belongs to one thread at a time.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "common/base/status.h"

namespace trivium::config {

struct YamlNode {
  enum class Kind { kNull, kScalar, kSequence, kMap };
  Kind kind = Kind::kNull;
  int line = 1;  // from 1
  std::string text;
  bool quoted = false;
  std::vector<YamlNode> items;  // of a sequence; of a map key, value, key, value…
};

// `name` stands in error messages ("NAME:LINE: …"). Refused: text over 1 MiB, bytes that are not
// UTF-8, NUL, more than 16 levels, anchors, aliases, tags, a second document. Empty text is a null
// node.
absl::StatusOr<YamlNode> ParseYaml(const std::string& text, const std::string& name);

// The whole file; at most 1 MiB is read.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path);

}  // namespace trivium::config

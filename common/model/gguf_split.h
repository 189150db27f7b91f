// A model whose tensors are spread over several files, as `split.*` keys and file names of the form
// NAME-00001-of-00003.gguf say. The names of the other parts follow from the name that was given,
// never from a file's content. Stateless; safe from any thread.
#pragma once

#include <cstdint>
#include <string>

#include "common/base/status.h"
#include "common/model/gguf.h"

namespace trivium::model {

// Which part of what a file is. A file without `split.*` keys is part 0 of 1.
struct SplitPlace {
  int64_t number = 0;   // counts from 0, as the key does; file names count from 1
  int64_t count = 1;    // parts, at most 1024
  int64_t tensors = 0;  // of all parts together; 0 when there is one part
  std::string prefix;   // the path before "-00001-of-00003.gguf"; empty when there is one part
};

// INVALID_ARGUMENT when the keys are impossible or the file's name does not agree with them.
absl::StatusOr<SplitPlace> ReadSplitPlace(const GgufFile& file, const std::string& path);

std::string PartPath(const SplitPlace& place, int64_t number);

}  // namespace trivium::model

// A file mapped read-only for its whole life. Immutable; safe from any thread. A file that another
// process shortens while it is mapped ends this process (SIGBUS): model files are replaced, not
// edited.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "common/base/status.h"

namespace trivium::model {

class MappedFile {
 public:
  // NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT (empty, or not a regular file).
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept : bytes_(other.bytes_) { other.bytes_ = {}; }
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile();

  std::span<const uint8_t> bytes() const { return bytes_; }
  // Gives up the memory that holds the file's pages here; whoever reads on gets them from the file
  // again.
  void DropPages() const;

 private:
  explicit MappedFile(std::span<const uint8_t> bytes) : bytes_(bytes) {}
  std::span<const uint8_t> bytes_;
};

}  // namespace trivium::model

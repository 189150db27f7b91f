#include "tests/fuzz/memory_file.h"

#include <algorithm>

#include "common/model/mapped_file.h"

namespace trivium::fuzz {
namespace {

std::span<const uint8_t> file_bytes;

}  // namespace

void SetFileBytes(std::span<const uint8_t> bytes) { file_bytes = bytes; }

}  // namespace trivium::fuzz

namespace trivium::model {

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  if (fuzz::file_bytes.empty()) return InvalidArgument("{} is empty", path);
  auto* copy = new uint8_t[fuzz::file_bytes.size()];
  std::copy(fuzz::file_bytes.begin(), fuzz::file_bytes.end(), copy);
  return MappedFile({copy, fuzz::file_bytes.size()});
}

void MappedFile::DropPages() const {}  // there is no file to read them from again

MappedFile::~MappedFile() { delete[] bytes_.data(); }

}  // namespace trivium::model

#include "common/model/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace trivium::model {
namespace {

absl::Status OpenError(const std::string& path, int error) {
  absl::StatusCode code = error == ENOENT || error == ENOTDIR ? absl::StatusCode::kNotFound
                          : error == EACCES                   ? absl::StatusCode::kPermissionDenied
                                                              : absl::StatusCode::kInvalidArgument;
  return MakeStatus(code, "cannot open {}: {}", path, std::strerror(error));
}

absl::StatusOr<std::span<const uint8_t>> Map(const std::string& path, int fd) {
  struct stat info {};
  if (fstat(fd, &info) != 0) return OpenError(path, errno);
  if (!S_ISREG(info.st_mode)) return InvalidArgument("{} is not a regular file", path);
  if (info.st_size == 0) return InvalidArgument("{} is empty", path);
  const auto size = static_cast<size_t>(info.st_size);
  void* address = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (address == MAP_FAILED) return OpenError(path, errno);
  return std::span(static_cast<const uint8_t*>(address), size);
}

}  // namespace

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  // O_NONBLOCK: opening a pipe must not wait for its writer.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return OpenError(path, errno);
  absl::StatusOr<std::span<const uint8_t>> bytes = Map(path, fd);
  close(fd);
  if (!bytes.ok()) return bytes.status();
  return MappedFile(*bytes);
}

void MappedFile::DropPages() const {
  madvise(const_cast<uint8_t*>(bytes_.data()), bytes_.size(), MADV_DONTNEED);
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) munmap(const_cast<uint8_t*>(bytes_.data()), bytes_.size());
}

}  // namespace trivium::model

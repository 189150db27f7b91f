#include "common/transfer/shm_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <random>

namespace trivium::transfer {
namespace {

namespace fs = std::filesystem;

constexpr char kRoot[] = "/dev/shm";
constexpr char kPrefix[] = "trivium-";
constexpr char kLock[] = "lock";
// Younger ones may just be in the making, before their lock is taken.
constexpr std::chrono::seconds kYoung{10};

// The descriptor that holds the lock; -1: somebody else does, or there is none.
int TakeLock(const fs::path& directory, int flags) {
  const int fd = open((directory / kLock).c_str(), flags | O_RDWR | O_CLOEXEC, 0600);
  if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
  if (fd >= 0) close(fd);
  return -1;
}

void RemoveThoseOfTheDead() {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(kRoot, error)) {
    if (entry.path().filename().string().rfind(kPrefix, 0) != 0) continue;
    const auto age = fs::file_time_type::clock::now() - fs::last_write_time(entry.path(), error);
    if (error || age < kYoung) continue;
    const int fd = TakeLock(entry.path(), 0);
    if (fd < 0) continue;
    fs::remove_all(entry.path(), error);
    close(fd);
  }
}

class Directory {
 public:
  Directory() {
    RemoveThoseOfTheDead();
    std::random_device device;
    const fs::path path =
        fs::path(kRoot) / fmt::format("{}{:08x}{:08x}", kPrefix, device(), device());
    std::error_code error;
    if (!fs::create_directory(path, error)) return;
    fs::permissions(path, fs::perms::owner_all, error);
    lock_ = TakeLock(path, O_CREAT);
    path_ = path.string();
  }
  ~Directory() {
    std::error_code error;
    if (path_ != kRoot) fs::remove_all(path_, error);
    if (lock_ >= 0) close(lock_);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_ = kRoot;
  int lock_ = -1;
};

}  // namespace

const std::string& ShmDirectory() {
  static const Directory directory;
  return directory.path();
}

}  // namespace trivium::transfer

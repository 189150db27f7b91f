#include "services/router/dispatch/random.h"

#include <sys/random.h>

#include <cstring>

#include "common/base/status.h"

namespace trivium::router {
namespace {

std::string RandomBytes(size_t size) {
  std::string bytes(size, '\0');
  const ssize_t got = getrandom(bytes.data(), size, 0);
  TRIVIUM_CHECK(got == static_cast<ssize_t>(size), "getrandom gave {} bytes of {}", got, size);
  return bytes;
}

}  // namespace

std::string DrawSecret() { return RandomBytes(16); }

uint64_t DrawSeed() {
  uint64_t seed = 0;
  std::memcpy(&seed, RandomBytes(sizeof(seed)).data(), sizeof(seed));
  return seed;
}

std::string DrawRequestId() {
  std::string id = "r-";
  for (const char byte : RandomBytes(16)) id += fmt::format("{:02x}", static_cast<uint8_t>(byte));
  return id;
}

}  // namespace trivium::router

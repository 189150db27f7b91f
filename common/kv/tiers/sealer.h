// Seals bytes that leave the process, so that whoever reads the medium learns nothing, and whoever
// changes it is found out: AES-256-GCM under a key that is derived anew for every seal.
//
// The derived key is BLAKE2b-256, keyed with the secret, of 16 random bytes, which stand in front
// of the sealed ones. So no number of seals uses up the secret (random nonces under one key would,
// after 2^32), and equal bytes never look alike.
//
// Thread-safety: all methods, any thread.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "common/base/status.h"

namespace trivium::kv {

class Sealer {
 public:
  static constexpr size_t kOverhead = 16 + 16;  // salt and tag

  // INVALID_ARGUMENT for a secret of less than 32 bytes.
  static absl::StatusOr<Sealer> Create(std::string_view secret);

  // `out` has kOverhead bytes more than `plain`. `context` is not stored, but must be the same when
  // it is opened: where the bytes belong. False when libcrypto fails.
  bool Seal(std::string_view context, std::span<const uint8_t> plain, std::span<uint8_t> out) const;
  // The reverse. False, and `plain` all zeros, unless every byte is as it was sealed.
  bool Open(std::string_view context, std::span<const uint8_t> sealed,
            std::span<uint8_t> plain) const;

 private:
  explicit Sealer(const std::array<uint8_t, 32>& key) : key_(key) {}
  std::array<uint8_t, 32> key_;
};

}  // namespace trivium::kv

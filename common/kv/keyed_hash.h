// Keyed BLAKE2b-256, one object for one purpose, so that no hash of one purpose ever equals one of
// another, whatever goes in.
//
// Thread-safety: an object belongs to one thread; making one costs about two hashes, so hot paths
// keep one a thread.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

struct evp_mac_ctx_st;

namespace trivium::kv {

class KeyedHash {
 public:
  // `purpose`: exactly 16 characters, BLAKE2b's personalisation.
  explicit KeyedHash(std::string_view purpose);
  ~KeyedHash();
  KeyedHash(const KeyedHash&) = delete;
  KeyedHash& operator=(const KeyedHash&) = delete;

  // `key`: 1 … 64 bytes.
  std::array<uint8_t, 32> operator()(std::string_view key, std::string_view message);

 private:
  evp_mac_ctx_st* const context_;
};

}  // namespace trivium::kv

#include "common/kv/keyed_hash.h"

#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/params.h>

#include "common/base/status.h"

namespace trivium::kv {
namespace {

// Fetching an algorithm takes libcrypto longer than hashing a hundred blocks, so it is done once.
EVP_MAC* Blake2b() {
  static EVP_MAC* const mac = EVP_MAC_fetch(nullptr, "BLAKE2BMAC", nullptr);
  TRIVIUM_CHECK(mac != nullptr, "libcrypto has no BLAKE2BMAC");
  return mac;
}

const unsigned char* BytesOf(std::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

}  // namespace

KeyedHash::KeyedHash(std::string_view purpose) : context_(EVP_MAC_CTX_new(Blake2b())) {
  TRIVIUM_CHECK(context_ != nullptr, "out of memory");
  TRIVIUM_CHECK(purpose.size() == 16, "a purpose of {} characters", purpose.size());
  size_t size = 32;
  const OSSL_PARAM params[] = {
      OSSL_PARAM_construct_size_t(OSSL_MAC_PARAM_SIZE, &size),
      OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_CUSTOM, const_cast<char*>(purpose.data()),
                                        purpose.size()),
      OSSL_PARAM_construct_end()};
  TRIVIUM_CHECK(EVP_MAC_CTX_set_params(context_, params) == 1, "libcrypto refused BLAKE2BMAC");
}

KeyedHash::~KeyedHash() { EVP_MAC_CTX_free(context_); }

std::array<uint8_t, 32> KeyedHash::operator()(std::string_view key, std::string_view message) {
  std::array<uint8_t, 32> out;
  size_t size = 0;
  const bool ok = EVP_MAC_init(context_, BytesOf(key), key.size(), nullptr) == 1 &&
                  EVP_MAC_update(context_, BytesOf(message), message.size()) == 1 &&
                  EVP_MAC_final(context_, out.data(), &size, out.size()) == 1 && size == out.size();
  TRIVIUM_CHECK(ok, "libcrypto failed to hash");
  return out;
}

}  // namespace trivium::kv

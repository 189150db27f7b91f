#include "common/model/digest.h"

#include <openssl/evp.h>

#include <array>

#include "common/base/status.h"

namespace trivium::model {

struct Digest::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

Digest::Digest() : state_(std::make_unique<State>()) {
  TRIVIUM_CHECK(state_->context != nullptr, "out of memory");
  const int ok = EVP_DigestInit_ex(state_->context, EVP_blake2b512(), nullptr);
  TRIVIUM_CHECK(ok == 1, "libcrypto has no BLAKE2b-512");
}

Digest::~Digest() = default;

void Digest::Add(std::string_view bytes) {
  const uint64_t size = bytes.size();
  const int ok = EVP_DigestUpdate(state_->context, &size, sizeof(size)) == 1 &&
                 EVP_DigestUpdate(state_->context, bytes.data(), bytes.size()) == 1;
  TRIVIUM_CHECK(ok, "libcrypto failed to hash");
}

void Digest::AddInt(int64_t value) { Add({reinterpret_cast<const char*>(&value), sizeof(value)}); }

std::string Digest::Finish() {
  std::array<unsigned char, 64> full{};
  const int ok = EVP_DigestFinal_ex(state_->context, full.data(), nullptr);
  TRIVIUM_CHECK(ok == 1, "libcrypto failed to hash");
  return {reinterpret_cast<const char*>(full.data()), full.size() / 2};
}

std::string Hex(std::string_view bytes) {
  std::string out;
  for (char c : bytes) out += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return out;
}

}  // namespace trivium::model

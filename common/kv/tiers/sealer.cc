#include "common/kv/tiers/sealer.h"

#include <openssl/evp.h>
#include <openssl/rand.h>

#include <algorithm>
#include <climits>
#include <cstring>

#include "common/kv/keyed_hash.h"

namespace trivium::kv {
namespace {

constexpr size_t kSalt = 16, kTag = 16;
constexpr char kForSeal[] = "trivium.kvseal  ";
// Every key seals once, so the nonce may be the same.
constexpr std::array<uint8_t, 12> kNonce{};

struct Cipher {
  EVP_CIPHER_CTX* const context = EVP_CIPHER_CTX_new();
  Cipher() { TRIVIUM_CHECK(context != nullptr, "out of memory"); }
  ~Cipher() { EVP_CIPHER_CTX_free(context); }
  Cipher(const Cipher&) = delete;
  Cipher& operator=(const Cipher&) = delete;

  // `in` to `out`, which is as long. `seal`: or open.
  bool Run(bool seal, const std::array<uint8_t, 32>& key, std::string_view about,
           std::span<const uint8_t> in, uint8_t* out, uint8_t* tag) {
    int length = 0;
    if (in.size() > INT_MAX || about.size() > INT_MAX) return false;
    bool ok = EVP_CipherInit_ex(context, EVP_aes_256_gcm(), nullptr, key.data(), kNonce.data(),
                                seal ? 1 : 0) == 1;
    if (!seal) ok = ok && EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, kTag, tag) == 1;
    ok = ok &&
         EVP_CipherUpdate(context, nullptr, &length,
                          reinterpret_cast<const unsigned char*>(about.data()),
                          static_cast<int>(about.size())) == 1 &&
         EVP_CipherUpdate(context, out, &length, in.data(), static_cast<int>(in.size())) == 1 &&
         EVP_CipherFinal_ex(context, out + length, &length) == 1;
    if (seal) ok = ok && EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, kTag, tag) == 1;
    return ok;
  }
};

std::array<uint8_t, 32> KeyOf(const std::array<uint8_t, 32>& secret,
                              std::span<const uint8_t> salt) {
  thread_local KeyedHash hash(kForSeal);
  return hash({reinterpret_cast<const char*>(secret.data()), secret.size()},
              {reinterpret_cast<const char*>(salt.data()), salt.size()});
}

}  // namespace

absl::StatusOr<Sealer> Sealer::Create(std::string_view secret) {
  if (secret.size() < 32) {
    return InvalidArgument("a secret of {} bytes, at least 32 are needed", secret.size());
  }
  return Sealer(KeyedHash(kForSeal)("trivium", secret));
}

bool Sealer::Seal(std::string_view context, std::span<const uint8_t> plain,
                  std::span<uint8_t> out) const {
  TRIVIUM_CHECK(out.size() == plain.size() + kOverhead, "{} bytes sealed into {}", plain.size(),
                out.size());
  if (RAND_bytes(out.data(), kSalt) != 1) return false;
  return Cipher().Run(true, KeyOf(key_, out.first(kSalt)), context, plain, out.data() + kSalt,
                      out.data() + out.size() - kTag);
}

bool Sealer::Open(std::string_view context, std::span<const uint8_t> sealed,
                  std::span<uint8_t> plain) const {
  TRIVIUM_CHECK(sealed.size() == plain.size() + kOverhead, "{} bytes opened into {}", sealed.size(),
                plain.size());
  std::array<uint8_t, kTag> tag;
  std::memcpy(tag.data(), sealed.data() + sealed.size() - kTag, kTag);
  const bool ok = Cipher().Run(false, KeyOf(key_, sealed.first(kSalt)), context,
                               sealed.subspan(kSalt, plain.size()), plain.data(), tag.data());
  if (!ok) std::fill(plain.begin(), plain.end(), uint8_t{0});
  return ok;
}

}  // namespace trivium::kv

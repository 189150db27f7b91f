// The name under which a picture's multimedia tokens are cached, and which goes into the keys of
// KV blocks that were computed from them. Stateless; safe from any thread.
#pragma once

#include <string>
#include <string_view>

#include "common/image/image.h"
#include "common/vision/tower.h"

namespace trivium::vision {

// 32 bytes of BLAKE2b over size and pixels: the same picture in another file format, or under
// another name, has the same digest.
std::string PixelDigest(const image::Image& image);

// 32 bytes over the digest of the pixels, the tower's fingerprint, the version of preprocessing and
// the numerics class of the worker ("batch_invariant/avx2"): equal keys, equal bits of every token.
// It is no secret: a cache that tenants share keys it again, by the tenant's domain.
std::string PictureKey(std::string_view pixel_digest, const Tower& tower,
                       std::string_view numerics_class);

}  // namespace trivium::vision

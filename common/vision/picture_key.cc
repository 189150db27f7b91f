#include "common/vision/picture_key.h"

#include "common/model/digest.h"
#include "common/vision/slices.h"

namespace trivium::vision {

std::string PixelDigest(const image::Image& image) {
  model::Digest digest;
  digest.Add("trivium picture");
  digest.AddInt(image.width);
  digest.AddInt(image.height);
  digest.Add({reinterpret_cast<const char*>(image.rgb.data()), image.rgb.size()});
  return digest.Finish();
}

std::string PictureKey(std::string_view pixel_digest, const Tower& tower,
                       std::string_view numerics_class) {
  model::Digest digest;
  digest.Add("trivium multimedia tokens");
  digest.Add(pixel_digest);
  digest.Add(tower.fingerprint);
  digest.AddInt(kPreprocessingVersion);
  digest.Add(numerics_class);
  return digest.Finish();
}

}  // namespace trivium::vision

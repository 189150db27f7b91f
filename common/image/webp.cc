// WebP through libwebp and its demultiplexer.
#include <webp/decode.h>
#include <webp/demux.h>

#include <memory>

#include "common/image/codec.h"

namespace trivium::image {
namespace {

struct DeleteDemuxer {
  void operator()(WebPDemuxer* demuxer) const { WebPDemuxDelete(demuxer); }
};
using Demuxer = std::unique_ptr<WebPDemuxer, DeleteDemuxer>;

Demuxer MakeDemuxer(std::span<const uint8_t> bytes) {
  const WebPData data{bytes.data(), bytes.size()};
  return Demuxer(WebPDemux(&data));
}

int32_t OrientationOf(const WebPDemuxer* demuxer) {
  WebPChunkIterator chunk;
  if (WebPDemuxGetChunk(demuxer, "EXIF", 1, &chunk) == 0) return 1;
  std::span<const uint8_t> exif(chunk.chunk.bytes, chunk.chunk.size);
  // Some writers leave JPEG's own prefix in front.
  constexpr uint8_t kPrefix[] = {'E', 'x', 'i', 'f', 0, 0};
  if (exif.size() >= 6 && std::equal(kPrefix, kPrefix + 6, exif.begin())) exif = exif.subspan(6);
  const int32_t orientation = ExifOrientation(exif);
  WebPDemuxReleaseChunkIterator(&chunk);
  return orientation;
}

// The bitstream of the only, or first, frame. It must hold no other picture than the header said.
absl::StatusOr<std::span<const uint8_t>> FirstFrame(const WebPDemuxer* demuxer,
                                                    const Header& header) {
  WebPIterator frame;
  if (WebPDemuxGetFrame(demuxer, 1, &frame) == 0) return InvalidArgument("a WebP without a frame");
  const std::span<const uint8_t> bytes(frame.fragment.bytes, frame.fragment.size);
  const bool whole = frame.complete != 0;
  const bool fits = frame.x_offset == 0 && frame.y_offset == 0 && frame.width == header.width &&
                    frame.height == header.height;
  WebPDemuxReleaseIterator(&frame);
  if (!whole) return InvalidArgument("a truncated WebP");
  if (!fits) return InvalidArgument("a WebP whose first frame is not as large as the picture");
  return bytes;
}

}  // namespace

absl::StatusOr<Header> ReadWebpHeader(std::span<const uint8_t> bytes) {
  const Demuxer demuxer = MakeDemuxer(bytes);
  if (demuxer == nullptr) return InvalidArgument("a damaged or truncated WebP");
  const auto get = [&](WebPFormatFeature feature) {
    return static_cast<int32_t>(WebPDemuxGetI(demuxer.get(), feature));
  };
  return Header{.width = get(WEBP_FF_CANVAS_WIDTH),
                .height = get(WEBP_FF_CANVAS_HEIGHT),
                .frames = get(WEBP_FF_FRAME_COUNT),
                .orientation = OrientationOf(demuxer.get())};
}

absl::StatusOr<Image> DecodeWebp(std::span<const uint8_t> bytes, const Header& header) {
  const Demuxer demuxer = MakeDemuxer(bytes);
  if (demuxer == nullptr) return InvalidArgument("a damaged or truncated WebP");
  ASSIGN_OR_RETURN(const auto frame, FirstFrame(demuxer.get(), header));
  WebPBitstreamFeatures features;
  if (WebPGetFeatures(frame.data(), frame.size(), &features) != VP8_STATUS_OK ||
      features.width != header.width || features.height != header.height) {
    return InvalidArgument("a WebP whose picture is not as large as its header says");
  }
  const int64_t count = int64_t{header.width} * header.height;
  Image image{header.width, header.height, std::vector<uint8_t>(static_cast<size_t>(count * 3))};
  const int stride = header.width * (features.has_alpha != 0 ? 4 : 3);
  bool decoded = false;
  if (features.has_alpha != 0) {
    std::vector<uint8_t> rgba(static_cast<size_t>(count * 4));
    decoded =
        WebPDecodeRGBAInto(frame.data(), frame.size(), rgba.data(), rgba.size(), stride) != nullptr;
    if (decoded) BlendOverWhite(rgba.data(), count, image.rgb.data());
  } else {
    decoded = WebPDecodeRGBInto(frame.data(), frame.size(), image.rgb.data(), image.rgb.size(),
                                stride) != nullptr;
  }
  if (!decoded) return InvalidArgument("a damaged or truncated WebP");
  return image;
}

}  // namespace trivium::image

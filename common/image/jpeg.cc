// JPEG through libjpeg-turbo.
//
// The library reports an error by leaving through a jump, so no object with a destructor is made
// between the place where it comes back and the calls into it.
#include <csetjmp>
#include <cstdio>

// After cstdio, which it needs.
#include <jerror.h>
#include <jpeglib.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "common/image/codec.h"

namespace trivium::image {
namespace {

constexpr int kExifMarker = JPEG_APP0 + 1;
constexpr uint8_t kExifPrefix[] = {'E', 'x', 'i', 'f', 0, 0};

struct ErrorState {
  jpeg_error_mgr manager;  // first: the library's pointer to it is one to this
  jmp_buf leave;
  int scans = 0;
  bool too_many_scans = false;
  char message[JMSG_LENGTH_MAX] = "";
};

ErrorState* StateOf(j_common_ptr info) { return reinterpret_cast<ErrorState*>(info->err); }

[[noreturn]] void Leave(j_common_ptr info) {
  ErrorState* state = StateOf(info);
  info->err->format_message(info, state->message);
  std::longjmp(state->leave, 1);
}

// A level below 0 is a warning: the library would go on and make something up. Some are harmless.
void OnMessage(j_common_ptr info, int level) {
  if (level >= 0) return;
  switch (info->err->msg_code) {
    case JWRN_ADOBE_XFORM:
    case JWRN_EXTRANEOUS_DATA:
    case JWRN_JFIF_MAJOR:
    case JWRN_TOO_MUCH_DATA:
      return;
    default:
      Leave(info);
  }
}

void OnProgress(j_common_ptr info) {
  ErrorState* state = StateOf(info);
  if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number <= state->scans) return;
  state->too_many_scans = true;
  std::longjmp(state->leave, 1);
}

// A decompressor over some bytes. Every call into the library stands in a function that sets
// errors().leave first.
class Decompressor {
 public:
  explicit Decompressor(int scans) {
    info_.err = jpeg_std_error(&errors_.manager);
    errors_.manager.error_exit = Leave;
    errors_.manager.emit_message = OnMessage;
    errors_.scans = scans;
  }
  // Does nothing before jpeg_create_decompress.
  ~Decompressor() { jpeg_destroy_decompress(&info_); }
  Decompressor(const Decompressor&) = delete;
  Decompressor& operator=(const Decompressor&) = delete;

  bool ReadHeader(std::span<const uint8_t> bytes) {
    if (setjmp(errors_.leave) != 0) return false;
    jpeg_create_decompress(&info_);
    jpeg_save_markers(&info_, kExifMarker, 0xffff);
    jpeg_mem_src(&info_, bytes.data(), bytes.size());
    return jpeg_read_header(&info_, TRUE) == JPEG_HEADER_OK;
  }

  bool Start() {
    if (setjmp(errors_.leave) != 0) return false;
    progress_.progress_monitor = OnProgress;
    info_.progress = &progress_;
    const bool ink = info_.jpeg_color_space == JCS_CMYK || info_.jpeg_color_space == JCS_YCCK;
    info_.out_color_space = ink ? JCS_CMYK : JCS_RGB;
    return jpeg_start_decompress(&info_) == TRUE;
  }

  bool ReadRow(uint8_t* row) {
    if (setjmp(errors_.leave) != 0) return false;
    return jpeg_read_scanlines(&info_, &row, 1) == 1;
  }

  // Reads to the end of the last scan.
  bool Finish() {
    if (setjmp(errors_.leave) != 0) return false;
    return jpeg_finish_decompress(&info_) == TRUE;
  }

  absl::Status Error() const {
    if (errors_.too_many_scans) {
      return InvalidArgument("a progressive JPEG; the limit is {} scans", errors_.scans);
    }
    return InvalidArgument("a damaged or truncated JPEG: {}", std::string(errors_.message));
  }
  const jpeg_decompress_struct& info() const { return info_; }

 private:
  jpeg_decompress_struct info_ = {};
  jpeg_progress_mgr progress_ = {};
  ErrorState errors_ = {};
};

int32_t OrientationOf(const jpeg_decompress_struct& info) {
  for (const jpeg_marker_struct* m = info.marker_list; m != nullptr; m = m->next) {
    const std::span<const uint8_t> data(m->data, m->data_length);
    if (m->marker != kExifMarker || data.size() < sizeof(kExifPrefix)) continue;
    if (std::memcmp(data.data(), kExifPrefix, sizeof(kExifPrefix)) != 0) continue;
    return ExifOrientation(data.subspan(sizeof(kExifPrefix)));
  }
  return 1;
}

// Without a profile: each ink takes its share of what black leaves. Files with Adobe's marker hold
// how much light the inks let through, others how much they take.
void InkToRgb(const uint8_t* ink, int32_t count, bool inverted, uint8_t* rgb) {
  for (int32_t i = 0; i < count; ++i, ink += 4, rgb += 3) {
    const int light = inverted ? ink[3] : 255 - ink[3];
    for (int c = 0; c < 3; ++c) {
      const int taken = inverted ? 255 - ink[c] : ink[c];
      rgb[c] = static_cast<uint8_t>(light - (taken * light + 127) / 255);
    }
  }
}

absl::Status ReadRows(Decompressor& jpeg, Image& image) {
  const bool ink = jpeg.info().out_color_space == JCS_CMYK;
  const bool inverted = jpeg.info().saw_Adobe_marker == TRUE;
  std::vector<uint8_t> row(static_cast<size_t>(image.width) * (ink ? 4 : 0));
  for (int32_t y = 0; y < image.height; ++y) {
    uint8_t* out = image.rgb.data() + int64_t{y} * image.width * 3;
    if (!jpeg.ReadRow(ink ? row.data() : out)) return jpeg.Error();
    if (ink) InkToRgb(row.data(), image.width, inverted, out);
  }
  return jpeg.Finish() ? absl::OkStatus() : jpeg.Error();
}

}  // namespace

absl::StatusOr<Header> ReadJpegHeader(std::span<const uint8_t> bytes) {
  Decompressor jpeg(1);
  if (!jpeg.ReadHeader(bytes)) return jpeg.Error();
  return Header{.width = static_cast<int32_t>(jpeg.info().image_width),
                .height = static_cast<int32_t>(jpeg.info().image_height),
                .orientation = OrientationOf(jpeg.info())};
}

absl::StatusOr<Image> DecodeJpeg(std::span<const uint8_t> bytes, const Header& header,
                                 const DecodeLimits& limits) {
  Decompressor jpeg(limits.scans);
  if (!jpeg.ReadHeader(bytes) || !jpeg.Start()) return jpeg.Error();
  // The library reads the header again; it is the same.
  TRIVIUM_CHECK(static_cast<int32_t>(jpeg.info().output_width) == header.width &&
                    static_cast<int32_t>(jpeg.info().output_height) == header.height,
                "a JPEG that changed its size");
  Image image{header.width, header.height,
              std::vector<uint8_t>(static_cast<size_t>(header.width) * header.height * 3)};
  RETURN_IF_ERROR(ReadRows(jpeg, image));
  return image;
}

}  // namespace trivium::image

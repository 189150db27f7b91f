// PNG through libpng. Of the chunks beside the picture, only palette, transparency and EXIF are
// read: texts and profiles are skipped, so that none can grow when it is inflated.
//
// The library reports an error by leaving through a jump, so no object with a destructor is made
// between the place where it comes back and the calls into it.
#include <png.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <vector>

#include "common/image/codec.h"

namespace trivium::image {
namespace {

constexpr size_t kSignatureBytes = 8;
constexpr size_t kChunkOverhead = 12;  // length, name, checksum
constexpr int64_t kMostHeaderChunks = 4096;

uint32_t BigEndian(const uint8_t* p) {
  return uint32_t{p[0]} << 24 | uint32_t{p[1]} << 16 | uint32_t{p[2]} << 8 | p[3];
}

// The chunks in front of the picture's data, one after another.
struct Chunk {
  std::string_view name;
  std::span<const uint8_t> data;
};

// False at the end of what can be read.
bool NextChunk(std::span<const uint8_t> bytes, size_t& at, Chunk& chunk) {
  if (bytes.size() - at < kChunkOverhead) return false;
  const uint64_t size = BigEndian(bytes.data() + at);
  if (size > bytes.size() - at - kChunkOverhead) return false;
  chunk.name = {reinterpret_cast<const char*>(bytes.data() + at + 4), 4};
  chunk.data = bytes.subspan(at + 8, size);
  at += size + kChunkOverhead;
  return true;
}

struct Input {
  std::span<const uint8_t> bytes;
  size_t at = 0;
};

void ReadBytes(png_structp png, png_bytep out, size_t size) {
  auto* input = static_cast<Input*>(png_get_io_ptr(png));
  if (size > input->bytes.size() - input->at) png_error(png, "truncated");
  std::memcpy(out, input->bytes.data() + input->at, size);
  input->at += size;
}

// A decoder that gives rows of RGBA with 8 bits a channel. Every call into the library stands in a
// function that sets the place to come back to.
class Reader {
 public:
  Reader(std::span<const uint8_t> bytes, const Header& header) : input_{bytes}, header_(header) {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, OnError, OnWarning);
    info_ = png_ == nullptr ? nullptr : png_create_info_struct(png_);
    TRIVIUM_CHECK(info_ != nullptr, "out of memory");
  }
  ~Reader() { png_destroy_read_struct(&png_, &info_, nullptr); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  bool Start() {
    if (setjmp(png_jmpbuf(png_)) != 0) return false;
    png_set_read_fn(png_, &input_, ReadBytes);
    png_set_user_limits(png_, static_cast<png_uint_32>(header_.width),
                        static_cast<png_uint_32>(header_.height));
    SkipRemarks();
    png_read_info(png_, info_);
    Transform();
    passes_ = png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    return png_get_rowbytes(png_, info_) == size_t{4} * static_cast<size_t>(header_.width);
  }

  // One row of the current pass; with several passes, `row` holds what the earlier ones gave.
  bool ReadRow(uint8_t* row) {
    if (setjmp(png_jmpbuf(png_)) != 0) return false;
    png_read_row(png_, row, nullptr);
    return true;
  }

  // Checks what is behind the picture.
  bool Finish() {
    if (setjmp(png_jmpbuf(png_)) != 0) return false;
    png_read_end(png_, nullptr);
    return true;
  }

  int passes() const { return passes_; }
  absl::Status Error() const { return InvalidArgument("a damaged or truncated PNG: {}", message_); }

 private:
  [[noreturn]] static void OnError(png_structp png, png_const_charp message) {
    auto* self = static_cast<Reader*>(png_get_error_ptr(png));
    std::strncpy(self->message_, message, sizeof(self->message_) - 1);
    png_longjmp(png, 1);
  }
  static void OnWarning(png_structp, png_const_charp) {}

  void SkipRemarks() {
    static constexpr png_byte kSkipped[] =
        "bKGD\0cHRM\0eXIf\0gAMA\0hIST\0iCCP\0iTXt\0oFFs\0pCAL\0pHYs\0sBIT\0sCAL\0sPLT\0sRGB\0"
        "tEXt\0tIME\0zTXt";
    png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, nullptr, 0);
    png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, kSkipped, sizeof(kSkipped) / 5);
  }

  void Transform() {
    png_set_strip_16(png_);
    png_set_expand(png_);
    png_set_gray_to_rgb(png_);
    png_set_add_alpha(png_, 0xff, PNG_FILLER_AFTER);
  }

  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  Input input_;
  const Header header_;
  int passes_ = 1;
  char message_[128] = "";
};

absl::Status ReadPlain(Reader& png, Image& image) {
  std::vector<uint8_t> row(size_t{4} * static_cast<size_t>(image.width));
  for (int32_t y = 0; y < image.height; ++y) {
    if (!png.ReadRow(row.data())) return png.Error();
    BlendOverWhite(row.data(), image.width, image.rgb.data() + int64_t{y} * image.width * 3);
  }
  return absl::OkStatus();
}

absl::Status ReadInterlaced(Reader& png, Image& image) {
  const int64_t row_bytes = int64_t{4} * image.width;
  std::vector<uint8_t> rgba(static_cast<size_t>(row_bytes * image.height));
  for (int pass = 0; pass < png.passes(); ++pass) {
    for (int32_t y = 0; y < image.height; ++y) {
      if (!png.ReadRow(rgba.data() + y * row_bytes)) return png.Error();
    }
  }
  BlendOverWhite(rgba.data(), int64_t{image.width} * image.height, image.rgb.data());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Header> ReadPngHeader(std::span<const uint8_t> bytes) {
  size_t at = std::min(bytes.size(), kSignatureBytes);
  Chunk chunk;
  if (!NextChunk(bytes, at, chunk) || chunk.name != "IHDR" || chunk.data.size() != 13) {
    return InvalidArgument("a damaged or truncated PNG: no header");
  }
  const uint32_t width = BigEndian(chunk.data.data()), height = BigEndian(chunk.data.data() + 4);
  Header header{.width = static_cast<int32_t>(std::min<uint32_t>(width, INT32_MAX)),
                .height = static_cast<int32_t>(std::min<uint32_t>(height, INT32_MAX))};
  for (int64_t i = 0; NextChunk(bytes, at, chunk) && chunk.name != "IDAT"; ++i) {
    if (i == kMostHeaderChunks) return InvalidArgument("a PNG with {} chunks in its header", i);
    if (chunk.name == "eXIf") header.orientation = ExifOrientation(chunk.data);
    // An animation says so before the picture that is shown where nobody can play it.
    if (chunk.name == "acTL" && chunk.data.size() == 8) {
      header.frames =
          static_cast<int32_t>(std::clamp<uint32_t>(BigEndian(chunk.data.data()), 1, INT32_MAX));
    }
  }
  return header;
}

absl::StatusOr<Image> DecodePng(std::span<const uint8_t> bytes, const Header& header) {
  Reader png(bytes, header);
  if (!png.Start()) return png.Error();
  Image image{header.width, header.height,
              std::vector<uint8_t>(static_cast<size_t>(header.width) * header.height * 3)};
  RETURN_IF_ERROR(png.passes() == 1 ? ReadPlain(png, image) : ReadInterlaced(png, image));
  if (!png.Finish()) return png.Error();
  return image;
}

}  // namespace trivium::image

"""Writes the pictures of image_test, with what Pillow makes of them, and the seeds of tests/fuzz.

    python3 -m venv venv && venv/bin/pip install pillow==12.3.0 numpy==2.4.6
    venv/bin/python make_pictures.py

pictures.bin: "TRVI", uint32 version 1, uint32 count; for each picture string name, string file, uint8 whether it is
to be decoded. If so, uint8 tolerance of a sample, int32 width, int32 height, uint8[height, width, 3]; if not, string:
what the error must say. A string is a uint32 size and bytes; all is little-endian. Pillow decodes, turns as EXIF says,
blends over white, converts CMYK; of 16-bit samples the expected picture has the upper byte.
"""

import io
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

HERE = pathlib.Path(__file__).parent
FUZZ = HERE.parents[2] / "tests/fuzz/corpus"
BYTES_MAX = 8192  # tests/nightly cuts longer inputs off
W, H = 37, 22


def base():
    y, x = np.mgrid[0:H, 0:W]
    rgb = np.stack([x * 6, y * 11, 255 - x * 3 - y * 4], axis=-1).astype(np.uint8)
    rgb[4:12, 20:30] = [250, 30, 60]
    rgb[13:20, 3:12] = [10, 220, 40]
    return rgb


def alpha():
    y, x = np.mgrid[0:H, 0:W]
    return ((x * 7 + y * 5) % 256).astype(np.uint8)


def save(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def with_orientation(image, number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def over_white(image):
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255)), rgba).convert("RGB")


def seen(data):
    return np.asarray(over_white(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, depth, colour, rows, interlace=0, more=()):
    """`rows`: the bytes of all rows, each with its filter in front."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunk(n, d) for n, d in more) +
            chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b""))


def rows_of(samples):
    return b"".join(b"\0" + row.tobytes() for row in samples)


def interlaced(samples):
    """Adam7: seven pictures of every so many rows and columns."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    return b"".join(rows_of(samples[y::dy, x::dx]) for y, x, dy, dx in passes if samples[y::dy, x::dx].size)


def many_scans(scans):
    """A grey progressive JPEG of one block, refined bit after bit and band after band: all by the book."""
    segment = lambda marker, data: struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data
    table = lambda kind: segment(0xC4, bytes([kind] + [1] + [0] * 15 + [0]))  # one symbol, 0, of one bit
    out = b"\xff\xd8" + segment(0xDB, bytes([0] + [1] * 64))
    out += segment(0xC2, struct.pack(">BHHBBBB", 8, 8, 8, 1, 1, 0x11, 0)) + table(0x00) + table(0x10)
    bits = [(k, high) for k in range(64) for high in range(13, -1, -1)]
    for k, low in bits[:scans]:
        out += segment(0xDA, bytes([1, 1, 0, k, k, (0 if low == 13 else low + 1) << 4 | low])) + b"\x7f"
    return out + b"\xff\xd9"


def jpegs():
    rgb, image = base(), Image.fromarray(base())
    yield "baseline", save(image, "JPEG", quality=90), 2
    yield "grey", save(image.convert("L"), "JPEG", quality=85), 2
    yield "progressive", save(image, "JPEG", quality=90, progressive=True, subsampling=0), 2
    yield "restarts", save(image, "JPEG", quality=70, restart_marker_blocks=2), 2
    ink = Image.fromarray(np.dstack([rgb, alpha() // 2]), "CMYK")
    yield "cmyk", save(ink, "JPEG", quality=95), 3
    small = image.crop((0, 0, 16, 8))
    for number in range(1, 9):
        yield f"turned_{number}", save(small, "JPEG", quality=95, exif=with_orientation(small, number)), 2
    # A marker of EXIF that is no EXIF, and a directory that says it goes on for ever.
    for name, tiff in [("exif_empty", b""), ("exif_endless", b"II*\0\x08\0\0\0\xff\xff")]:
        yield name, save(small, "JPEG", exif=b"Exif\0\0" + tiff), 2


def pngs():
    rgb, image, a = base(), Image.fromarray(base()), alpha()
    deep = (rgb.astype(np.uint16) << 8 | 0x7F).astype(">u2")
    yield "rgb", save(image, "PNG"), None
    yield "grey", save(image.convert("L"), "PNG"), None
    yield "one_bit", save(image.convert("1"), "PNG"), None
    yield "grey_alpha", save(Image.fromarray(np.dstack([rgb[..., 0], a]), "LA"), "PNG"), None
    yield "rgba", save(Image.fromarray(np.dstack([rgb, a]), "RGBA"), "PNG"), None
    yield "palette", save(image.quantize(16), "PNG"), None
    paper = image.quantize(16)
    yield "palette_alpha", save(paper, "PNG", transparency=bytes(range(0, 256, 16))), None
    yield "rgb_key", save(image, "PNG", transparency=(250, 30, 60)), None
    yield "rgb16", png(W, H, 16, 2, rows_of(deep)), rgb
    yield "grey16", png(W, H, 16, 0, rows_of(deep[..., 0])), np.repeat(rgb[..., :1], 3, axis=2)
    yield "interlaced", png(W, H, 8, 2, interlaced(rgb), 1), rgb
    yield "interlaced_alpha", png(W, H, 8, 6, interlaced(np.dstack([rgb, a])), 1), \
        np.asarray(over_white(Image.fromarray(np.dstack([rgb, a]), "RGBA")))
    yield "turned", save(image, "PNG", exif=with_orientation(image, 6)), None
    bomb = zlib.compress(bytes(4 << 20), 9)[:5000]
    for name in (b"zTXt", b"iCCP"):
        yield f"{name.decode()}_bomb", png(W, H, 8, 2, rows_of(rgb), 0, [(name, b"k\0\0" + bomb)]), rgb
    yield "gamma", png(W, H, 8, 2, rows_of(rgb), 0, [(b"gAMA", struct.pack(">I", 100000))]), rgb
    yield "narrow", png(2000, 1, 8, 0, b"\0" + bytes(range(250)) * 8), \
        np.repeat(np.tile(np.arange(250, dtype=np.uint8), 8)[None, :, None], 3, axis=2)


def webps():
    rgb, image, a = base(), Image.fromarray(base()), alpha()
    both = Image.fromarray(np.dstack([rgb, a]), "RGBA")
    yield "lossless", save(image, "WEBP", lossless=True), 0
    yield "lossy", save(image, "WEBP", quality=80), 2
    yield "lossless_alpha", save(both, "WEBP", lossless=True, exact=True), 1
    yield "lossy_alpha", save(both, "WEBP", quality=80), 3
    yield "turned", save(image, "WEBP", lossless=True, exif=with_orientation(image, 8)), 0


def moving(kind):
    frames = [Image.fromarray(np.roll(base(), 5 * i, axis=1)) for i in range(3)]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    return save(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)


def refused():
    image = Image.fromarray(base())
    good = {kind: save(image, kind) for kind in ("JPEG", "PNG", "WEBP")}
    for kind, data in good.items():
        yield f"{kind.lower()}_truncated", data[:len(data) * 3 // 4], "truncated"
        yield f"{kind.lower()}_no_more_than_a_name", data[:16], ""
    no_picture = good["JPEG"][:20] + b"\xff\xd9"
    yield "jpeg_without_picture", no_picture, "damaged"
    progressive = save(image, "JPEG", progressive=True)
    yield "jpeg_progressive_truncated", progressive[:len(progressive) // 2], "truncated"
    at = good["JPEG"].index(b"\xff\xc0")
    yield "jpeg_0x0", good["JPEG"][:at + 5] + bytes(4) + good["JPEG"][at + 9:], ""
    yield "jpeg_wide", save(Image.new("L", (60000, 1)), "JPEG"), "limit is 16384 pixels a side"
    yield "jpeg_large", good["JPEG"][:at + 5] + struct.pack(">HH", 9000, 9000) + good["JPEG"][at + 9:], "pixels in all"
    yield "jpeg_many_scans", many_scans(65), "limit is 64 scans"
    yield "png_0x0", png(0, 0, 8, 2, b""), "0 x 0"
    yield "png_wide", png(60000, 1, 8, 0, b"\0" + bytes(60000)), "limit is 16384 pixels a side"
    yield "png_bomb", png(15000, 15000, 1, 0, bytes(1 << 20)), "pixels in all"
    yield "png_huge", png(0x7FFFFFFF, 0x7FFFFFFF, 16, 6, b""), "pixels a side"
    yield "png_short_of_rows", png(W, H, 8, 2, rows_of(base()[:9])), "damaged"
    yield "png_wrong_checksum", good["PNG"][:-20] + b"\0" + good["PNG"][-19:], "damaged"
    yield "png_animated", moving("PNG"), "limit is 1 frames"
    yield "webp_animated", moving("WEBP"), "limit is 1 frames"
    size = 1 << 24
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + struct.pack("<I", size - 1)[:3] * 2
    lossless = good["WEBP"][12:]
    data = b"WEBP" + body + lossless
    yield "webp_bomb", b"RIFF" + struct.pack("<I", len(data)) + data, ""
    yield "gif", save(image, "GIF"), "not a picture"
    yield "nothing", b"", "not a picture"


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<I", len(data)) + data


def accepted():
    for name, data, tolerance in jpegs():
        yield f"jpeg_{name}", data, tolerance, seen(data)
    yield "jpeg_64_scans", many_scans(64), 0, np.full((8, 8, 3), 128, np.uint8)
    for name, data, expected in pngs():
        yield f"png_{name}", data, 1 if "alpha" in name else 0, seen(data) if expected is None else expected
    for name, data, tolerance in webps():
        yield f"webp_{name}", data, tolerance, seen(data)


def seed(name, data):
    """Files whose name begins with a format are seeds of its target, where they are small enough."""
    folder = FUZZ / name.split("_")[0]
    if folder.name in ("jpeg", "png", "webp") and 0 < len(data) <= BYTES_MAX:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name.split("_", 1)[1]).write_bytes(data)


def main():
    out, count = b"", 0
    for name, data, tolerance, pixels in accepted():
        height, width, _ = pixels.shape
        out += text(name) + text(data) + struct.pack("<BBii", 1, tolerance, width, height) + pixels.tobytes()
        seed(name, data)
        count += 1
    for name, data, message in refused():
        out += text(name) + text(data) + struct.pack("<B", 0) + text(message)
        seed(name, data)
        count += 1
    (HERE / "pictures.bin").write_bytes(b"TRVI" + struct.pack("<II", 1, count) + out)


if __name__ == "__main__":
    main()

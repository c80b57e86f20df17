"""A corpus of odd image files, each with the pixels a person would expect or the reason why it cannot be read.

    python tests/data/odd_images.py FOLDER

The expected pixels are computed from the arrays that the files were made of, by the formats' own definitions, never by
the code under test. ``tolerance`` is the largest mean absolute difference in levels of 0..255; the largest difference
of a single value may be ten times that (lossy formats), and is 0 where the tolerance is 0.
"""

import io
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image, ImageCms

from tests.data.raw_formats import exif, icc_profile, png, png_chunk, png_few_bits, png_header, tiff

HEIGHT, WIDTH = 24, 40
LOSSY = 2.0  # mean levels; JPEG at quality 95 and WebP at 90 on the smooth picture below


@dataclass(frozen=True)
class OddImage:
    """One file: its bytes and either the colour pixels (H, W, 3) to expect or a part of the reason for refusal."""

    name: str
    data: bytes
    expected: np.ndarray | None = None
    tolerance: float = 0.0
    reason: str = ""


def picture() -> np.ndarray:
    """A smooth, asymmetric colour picture, uint8 (24, 40, 3)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    channels = [40 + 4 * x, 30 + 7 * y, 220 - 2 * x - 4 * y]
    return np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)


def grey_picture() -> np.ndarray:
    """A smooth grey picture, uint8 (24, 40)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return (10 + 5 * x + y).astype(np.uint8)


def in_colour(grey: np.ndarray) -> np.ndarray:
    """Three equal channels."""
    return np.repeat(grey[..., None], 3, axis=2)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Porter and Duff's "over" on white, rounded."""
    share = alpha[..., None].astype(np.float64) / 255
    return np.rint(colour * share + 255 * (1 - share)).astype(np.uint8)


def srgb_from_linear(values: np.ndarray) -> np.ndarray:
    """The sRGB transfer function (IEC 61966-2-1) on 0..255."""
    light = values / 255
    return np.rint(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055))


def stored_for(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores so that a viewer that follows the orientation shows ``upright`` (CIPA DC-008)."""
    if orientation in (5, 6, 7, 8):
        # these swap rows and columns; 6 is shown after turning clockwise, so it is stored turned anticlockwise
        return {
            5: upright.swapaxes(0, 1),
            6: np.rot90(upright, 1),
            7: np.rot90(upright, 2).swapaxes(0, 1),
            8: np.rot90(upright, -1),
        }[orientation]
    return {2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]}.get(orientation, upright)


def saved(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    """The bytes that Pillow writes."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(np.ascontiguousarray(image))
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_key(file: bytes, level: int) -> bytes:
    """A grey PNG file with a clear level."""
    at = file.index(b"IDAT") - 4
    return file[:at] + png_chunk(b"tRNS", struct.pack(">H", level)) + file[at:]


def heic(pixels: np.ndarray) -> bytes:
    """The bytes that pillow-heif writes."""
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(file, quality=95)
    return file.getvalue()


def odd_images() -> list[OddImage]:
    """The whole corpus."""
    return [
        *_png_files(),
        *_jpeg_files(),
        *_webp_and_gif_files(),
        *_bmp_and_tiff_files(),
        *_unreadable_files(),
        *_damaged_files(),
    ]


def _png_files() -> list[OddImage]:
    colour, grey = picture(), grey_picture()
    alpha = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
    bilevel = grey > 110
    palette = Image.fromarray(colour).quantize(16)
    shown = np.asarray(palette.convert("RGB"))
    clear = np.asarray(palette) == 3
    deep = grey.astype(np.uint16) * 257
    deep_colour = colour.astype(np.uint16) * 257 + 5
    keyed = colour.copy()
    keyed[:4, :4] = (1, 2, 3)
    key_shown = keyed.copy()
    key_shown[:4, :4] = 255
    grey_key_shown = np.where(grey == 10, 255, grey).astype(np.uint8)
    return [
        OddImage("png_bilevel.png", saved(Image.fromarray(bilevel), "PNG"), in_colour(bilevel * np.uint8(255))),
        OddImage("png_grey.png", saved(grey, "PNG"), in_colour(grey)),
        OddImage("png_grey_2_bits.png", png_few_bits(grey >> 6, 2), in_colour((grey >> 6) * np.uint8(85))),
        OddImage("png_grey_4_bits.png", png_few_bits(grey >> 4, 4), in_colour((grey >> 4) * np.uint8(17))),
        OddImage("png_grey_alpha.png", png(np.dstack([grey, alpha])), over_white(in_colour(grey), alpha), 0.6),
        OddImage("png_grey_key.png", png(grey[..., None], png_chunk(b"tRNS", b"\0\x0a")), in_colour(grey_key_shown)),
        *(
            OddImage(f"png_grey_{bits}_bits_key.png", with_key(png_few_bits(grey >> (8 - bits), bits), 1),
                     in_colour(np.where(grey >> (8 - bits) == 1, 255, (grey >> (8 - bits)) * step).astype(np.uint8)))
            for bits, step in ((1, 255), (2, 85), (4, 17))
        ),
        OddImage("png_16_grey_key.png", png(deep[..., None], png_chunk(b"tRNS", struct.pack(">H", 20 * 257))),
                 in_colour(np.where(grey == 20, 255, grey).astype(np.uint8))),
        OddImage("png_icc_called_srgb.png", saved(Image.fromarray(colour), "PNG",
                 icc_profile=icc_profile("RGB ", gamma=1, name=b"Linear sRGB")), srgb_from_linear(colour), 1.0),
        OddImage("png_palette.png", saved(palette, "PNG"), shown),
        OddImage("png_palette_clear.png", saved(palette, "PNG", transparency=3),
                 np.where(clear[..., None], 255, shown)),
        OddImage("png_colour.png", saved(colour, "PNG"), colour),
        OddImage("png_colour_alpha.png", png(np.dstack([colour, alpha])), over_white(colour, alpha), 0.6),
        OddImage("png_colour_hidden.png", png(np.dstack([colour, 0 * alpha])), np.full_like(colour, 255)),
        OddImage("png_colour_key.png", png(keyed, png_chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))), key_shown),
        OddImage("png_16_grey.png", png(deep[..., None]), in_colour(grey)),
        OddImage("png_16_grey_dark.png", png(deep[..., None] // 16), in_colour(np.rint(deep // 16 / 257)), 0.6),
        OddImage("png_16_colour.png", png(deep_colour), colour, 1.0),
        OddImage("png_16_colour_alpha.png", png(np.dstack([deep_colour, alpha.astype(np.uint16) * 257])),
                 over_white(colour, alpha), 1.0),
        OddImage("png_16_grey_alpha.png", png(np.dstack([deep, alpha.astype(np.uint16) * 257])),
                 over_white(in_colour(grey), alpha), 1.0),
        OddImage("png_interlaced.png", png(colour, interlaced=True), colour),
        OddImage("png_icc_linear.png", saved(Image.fromarray(colour), "PNG", icc_profile=icc_profile("RGB ", gamma=1)),
                 srgb_from_linear(colour), 1.0),
        OddImage("png_icc_swapped.png", saved(Image.fromarray(colour), "PNG",
                 icc_profile=icc_profile("RGB ", gamma=1, swap_red_green=True)),
                 srgb_from_linear(colour[..., [1, 0, 2]]), 1.0),
        OddImage("png_icc_grey.png", saved(Image.fromarray(grey), "PNG", icc_profile=icc_profile("GRAY", gamma=1)),
                 in_colour(srgb_from_linear(grey)), 1.0),
        OddImage("png_icc_wrong_kind.png", saved(Image.fromarray(colour), "PNG",
                 icc_profile=icc_profile("GRAY", gamma=1)), colour),
        OddImage("png_icc_damaged.png", saved(Image.fromarray(colour), "PNG", icc_profile=b"no profile at all"),
                 colour),
        OddImage("png_icc_alpha.png", saved(Image.fromarray(np.dstack([colour, 0 * alpha + 255])), "PNG",
                 icc_profile=icc_profile("RGB ", gamma=1)), srgb_from_linear(colour), 1.0),
        OddImage("png_turned.png", saved(Image.fromarray(stored_for(colour, 6)), "PNG", exif=exif(6)), colour),
        OddImage("png_animated.png", saved(Image.fromarray(colour), "PNG", save_all=True,
                 append_images=[Image.fromarray(255 - colour)]), colour),
        OddImage("one_pixel.png", saved(colour[:1, :1], "PNG"), colour[:1, :1]),
        OddImage("one_row.png", saved(colour[:1], "PNG"), colour[:1]),
        OddImage("10000_by_10.png", saved(np.tile(colour[:10], (1, 250, 1)), "PNG"), np.tile(colour[:10], (1, 250, 1))),
        OddImage("png_named.jpg", saved(colour, "PNG"), colour),
        OddImage("UPPER CASE, with ünïcode and spaces.PNG", saved(colour, "PNG"), colour),
    ]  # fmt: skip


def _jpeg_files() -> list[OddImage]:
    colour, grey = picture(), grey_picture()
    upright = Image.fromarray(colour)
    plain = saved(colour, "JPEG", quality=95, subsampling=0)
    ink = np.dstack([colour, 0 * grey + 40])
    unprinted = (255 - ink.astype(np.float64)) / 255
    printed = np.rint(255 * unprinted[..., :3] * unprinted[..., 3:])
    progressive = saved(colour, "JPEG", quality=95, subsampling=0, progressive=True)
    linear = icc_profile("RGB ", gamma=1)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    def jpeg(name: str, data: bytes, expected: np.ndarray = colour) -> OddImage:
        return OddImage(name, data, expected, LOSSY)

    turned = [
        jpeg(f"jpeg_orientation_{number}.jpg",
             saved(stored_for(colour, number), "JPEG", quality=95, subsampling=0, exif=exif(number)))
        for number in range(1, 9)
    ]  # fmt: skip
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 9) + b"a comment"
    return [
        *turned,
        jpeg("jpeg_orientation_0.jpg", saved(colour, "JPEG", quality=95, subsampling=0, exif=exif(0))),
        jpeg("jpeg_orientation_9.jpg", saved(colour, "JPEG", quality=95, subsampling=0, exif=exif(9))),
        jpeg("jpeg_exif_damaged.jpg", saved(colour, "JPEG", quality=95, subsampling=0, exif=b"Exif\0\0II*\0\xff\xff")),
        jpeg("jpeg_grey.jpg", saved(grey, "JPEG", quality=95), in_colour(grey)),
        jpeg("jpeg_grey_turned.jpg", saved(stored_for(grey, 8), "JPEG", quality=95, exif=exif(8)), in_colour(grey)),
        jpeg("jpeg_colour.jpeg", plain),
        jpeg("jpeg_halved_colour.jpg", saved(colour, "JPEG", quality=95, subsampling=2)),
        jpeg("jpeg_progressive.jpg", progressive),
        jpeg("jpeg_stored_as_rgb.jpg", saved(upright, "JPEG", quality=95, keep_rgb=True)),
        jpeg("jpeg_cmyk.jpg", saved(Image.fromarray(ink, "CMYK"), "JPEG", quality=95, subsampling=0), printed),
        jpeg("jpeg_restarts.jpg", saved(colour, "JPEG", quality=95, subsampling=0, restart_marker_blocks=1)),
        jpeg("jpeg_comment_and_fill.jpg", plain[:2] + comment + b"\xff" + plain[2:]),
        jpeg("jpeg_icc_srgb.jpg", saved(colour, "JPEG", quality=95, subsampling=0, icc_profile=srgb)),
        jpeg("jpeg_icc_linear.jpg", saved(colour, "JPEG", quality=98, subsampling=0, icc_profile=linear),
             srgb_from_linear(colour)),
        jpeg("jpeg_icc_grey.jpg", saved(grey, "JPEG", quality=98, icc_profile=icc_profile("GRAY", gamma=1)),
             in_colour(srgb_from_linear(grey))),
        jpeg("jpeg_icc_damaged.jpg", saved(colour, "JPEG", quality=95, subsampling=0, icc_profile=b"x" * 200)),
        jpeg("jpeg_newer_jfif.jpg", plain[:11] + b"\3" + plain[12:]),
        jpeg("jpeg_filled_up.jpg", plain[:-2] + bytes(12) + plain[-2:]),
        jpeg("jpeg_bytes_between_segments.jpg", plain[:20] + b"a few bytes" + plain[20:]),
        jpeg("jpeg_then_more_bytes.jpg", plain + b"a trailer, as some phones append one"),
        jpeg("jpeg_two_pictures.jpg", saved(upright, "MPO", quality=95, subsampling=0, save_all=True,
             append_images=[Image.fromarray(255 - colour)])),
        jpeg("jpeg_one_pixel.jpg", saved(colour[:1, :1], "JPEG", quality=95), colour[:1, :1]),
        jpeg("jpeg_named.png", plain),
        jpeg("jpeg_10000_by_10.jpg", saved(np.tile(colour[:10, :8], (1, 1250, 1)), "JPEG", quality=98, subsampling=0),
             np.tile(colour[:10, :8], (1, 1250, 1))),
    ]  # fmt: skip


def _webp_and_gif_files() -> list[OddImage]:
    colour = picture()
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[:, 20:] = 255
    half = over_white(colour, alpha)
    palette = Image.fromarray(colour).quantize(16)
    shown = np.asarray(palette.convert("RGB"))
    other = Image.fromarray(255 - colour)
    clear = np.where((np.asarray(palette) == 3)[..., None], 255, shown)
    return [
        OddImage("webp_lossy.webp", saved(colour, "WebP", quality=90), colour, LOSSY),
        OddImage("webp_lossless.webp", saved(colour, "WebP", lossless=True), colour),
        OddImage("webp_alpha.webp", saved(np.dstack([colour, alpha]), "WebP", lossless=True), half),
        OddImage("webp_animated.webp", saved(Image.fromarray(colour), "WebP", lossless=True, save_all=True,
                 append_images=[other]), colour),
        OddImage("webp_turned.webp", saved(stored_for(colour, 8), "WebP", lossless=True, exif=exif(8)), colour),
        OddImage("webp_icc.webp", saved(Image.fromarray(colour), "WebP", lossless=True,
                 icc_profile=icc_profile("RGB ", gamma=1)), srgb_from_linear(colour), 1.0),
        OddImage("avif.avif", saved(colour, "AVIF", quality=95), colour, LOSSY),
        OddImage("avif_turned.avif", saved(stored_for(colour, 6), "AVIF", quality=95, exif=exif(6)), colour, LOSSY),
        OddImage("heic.heic", heic(colour), colour, 3.0),
        OddImage("gif.gif", saved(palette, "GIF"), shown),
        OddImage("gif_clear.gif", saved(palette, "GIF", transparency=3), clear),
        OddImage("gif_animated.gif", saved(palette, "GIF", save_all=True, append_images=[other.quantize(16)]), shown),
    ]  # fmt: skip


def _bmp_and_tiff_files() -> list[OddImage]:
    colour, grey = picture(), grey_picture()
    upright = Image.fromarray(colour)
    bilevel = grey > 110
    palette = upright.quantize(16)
    deep = grey.astype(np.uint16) * 257
    unit = (grey / 255).astype(np.float32)
    low, high = float(grey.min()), float(grey.max())
    stretched = in_colour(np.floor((grey - low) * (255 / (high - low)) + 0.5))
    holes = unit.copy()
    holes[0, 0] = np.nan
    hole_shown = in_colour(grey.copy())
    hole_shown[0, 0] = int(grey.min())
    holes[0, 1], hole_shown[0, 1] = grey.min() / 255, grey.min()
    alpha = np.full_like(grey, 255)
    alpha[:5] = 0
    bottom_up = saved(colour, "BMP")
    top_down = bytearray(saved(colour[::-1], "BMP"))
    top_down[22:26] = struct.pack("<i", -HEIGHT)
    ink = np.dstack([colour, 0 * grey + 40])
    unprinted = (255 - ink.astype(np.float64)) / 255
    printed = np.rint(255 * unprinted[..., :3] * unprinted[..., 3:])
    return [
        OddImage("bmp_colour.bmp", bottom_up, colour),
        OddImage("bmp_top_down.bmp", bytes(top_down), colour),
        OddImage("bmp_grey.bmp", saved(grey, "BMP"), in_colour(grey)),
        OddImage("bmp_bilevel.bmp", saved(Image.fromarray(bilevel), "BMP"), in_colour(bilevel * np.uint8(255))),
        OddImage("bmp_palette.bmp", saved(palette, "BMP"), np.asarray(palette.convert("RGB"))),
        OddImage("tiff_grey.tif", saved(grey, "TIFF"), in_colour(grey)),
        OddImage("tiff_colour.tiff", saved(colour, "TIFF"), colour),
        OddImage("tiff_lzw.tif", saved(colour, "TIFF", compression="tiff_lzw"), colour),
        OddImage("tiff_bilevel_fax.tif", saved(Image.fromarray(bilevel), "TIFF", compression="group4"),
                 in_colour(bilevel * np.uint8(255))),
        OddImage("tiff_palette.tif", saved(palette, "TIFF"), np.asarray(palette.convert("RGB"))),
        OddImage("tiff_alpha.tif", saved(np.dstack([colour, alpha]), "TIFF"), over_white(colour, alpha)),
        OddImage("tiff_cmyk.tif", saved(Image.fromarray(ink, "CMYK"), "TIFF"), printed, 1.0),
        OddImage("tiff_ycbcr_jpeg.tif", saved(upright.convert("YCbCr"), "TIFF", compression="jpeg", quality=95),
                 colour, 3.0),
        OddImage("tiff_lab.tif", saved(ImageCms.applyTransform(upright, ImageCms.buildTransform(
                 ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")), "TIFF"), colour, 2.0),
        OddImage("tiff_16_little.tif", tiff(deep[..., None], photometric=1), in_colour(grey)),
        OddImage("tiff_16_big.tif", tiff(deep[..., None], photometric=1, byte_order=">"), in_colour(grey)),
        OddImage("tiff_16_colour.tif", tiff(colour.astype(np.uint16) * 257), colour),
        OddImage("tiff_16_colour_big.tif", tiff(colour.astype(np.uint16) * 257, byte_order=">"), colour),
        OddImage("tiff_turned.tif", tiff(np.ascontiguousarray(stored_for(colour, 6)), orientation=6), colour),
        OddImage("tiff_32_bytes.tif", saved(grey.astype(np.int32), "TIFF"), in_colour(grey)),
        OddImage("tiff_32_words.tif", saved(grey.astype(np.int32) * 257, "TIFF"), in_colour(grey)),
        OddImage("tiff_32_signed.tif", saved(grey.astype(np.int32) * 1000 - 50_000, "TIFF"), stretched),
        OddImage("tiff_float_unit.tif", saved(unit, "TIFF"), in_colour(grey)),
        OddImage("tiff_float_bytes.tif", saved(grey.astype(np.float32), "TIFF"), in_colour(grey)),
        OddImage("tiff_float_signed.tif", saved(grey.astype(np.float32) * 8 - 900, "TIFF"), stretched),
        OddImage("tiff_float_nan.tif", saved(holes, "TIFF"), hole_shown),
        OddImage("tiff_two_pages.tif", saved(upright, "TIFF", save_all=True,
                 append_images=[Image.fromarray(255 - colour)]), colour),
    ]  # fmt: skip


def _unreadable_files() -> list[OddImage]:
    colour = picture()
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    big = saved(noise, "JPEG", quality=90)
    flat_png = saved(noise, "PNG")
    bad_crc = bytearray(flat_png)
    bad_crc[len(bad_crc) // 2] ^= 0xFF
    bomb = bytearray(saved(colour, "JPEG"))
    frame = bomb.index(b"\xff\xc0") + 5
    bomb[frame : frame + 4] = struct.pack(">HH", 60_000, 60_000)
    bomb_tiff = bytearray(saved(colour, "TIFF"))
    no_rows = bytearray(saved(colour, "JPEG"))
    no_rows[frame : frame + 4] = struct.pack(">HH", 0, 40)
    cut = "cut short"
    return [
        OddImage("empty.jpg", b"", reason="empty"),
        OddImage("text.png", b"this is no image\n", reason="any known image format"),
        OddImage("web_page.jpg", b"\n<!DOCTYPE html><html>404</html>", reason="a web page"),
        OddImage("document.jpg", b"%PDF-1.7 ...", reason="a PDF document"),
        OddImage("archive.png", b"PK\x03\x04" + bytes(60), reason="a ZIP archive"),
        OddImage("phone_cut.jpg", b"\0\0\0\x18ftypheic" + bytes(60), reason=cut),
        OddImage("modern_cut.jpg", b"\0\0\0\x18ftypavif" + bytes(60), reason=cut),
        OddImage("pointer.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", reason="git lfs pull"),
        OddImage("next.png", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), reason="a JPEG XL image"),
        OddImage("next_bare.png", b"\xff\x0a" + bytes(range(1, 40)), reason="a JPEG XL image"),
        OddImage("wavelets.png", saved(colour, "JPEG2000"), reason="a JPEG 2000 image"),
        OddImage("wavelets_bare.png", saved(colour, "JPEG2000", no_jp2=True), reason="a JPEG 2000 image"),
        OddImage("portable.png", saved(colour, "PPM"), reason="a PPM, PGM or PBM image"),
        OddImage("targa.png", saved(colour, "TGA"), reason="a TGA image"),
        OddImage("targa_packed.png", saved(colour, "TGA", compression="tga_rle"), reason="a TGA image"),
        OddImage("targa_palette.png", saved(Image.fromarray(colour).quantize(16), "TGA"), reason="a TGA image"),
        OddImage("icon.png", saved(colour, "ICO"), reason="an icon file"),
        OddImage("layers.png", b"8BPS\0\1" + bytes(60), reason="a Photoshop document"),
        OddImage("film.jpg", b"\0\0\0\x18ftypmp42" + bytes(60), reason="a video"),
        OddImage("array.png", b"\x93NUMPY\1\0" + bytes(60), reason="damaged or cut short"),
        OddImage("raw.tif", saved(colour, "TIFF", tiffinfo={50706: b"\1\4\0\0"}), reason="a camera's raw file"),
        OddImage("zeros.jpg", bytes(5000), reason="nothing but zero bytes"),
        OddImage("jpeg_only_start.jpg", b"\xff\xd8\xff", reason=cut),
        OddImage("jpeg_no_end_marker.jpg", big[:-2], reason=cut),
        OddImage("jpeg_cut.jpg", big[: len(big) * 6 // 10], reason=cut),
        OddImage("jpeg_cut_in_header.jpg", big[:200], reason=cut),
        OddImage("jpeg_cut_progressive.jpg", saved(noise, "JPEG", progressive=True)[:6000], reason=cut),
        OddImage("jpeg_half_zeros.jpg", big[: len(big) // 2] + bytes(len(big) // 2), reason="zero bytes"),
        OddImage("jpeg_bomb.jpg", bytes(bomb), reason="60000 x 60000 pixels"),
        OddImage("jpeg_no_rows.jpg", bytes(no_rows), reason="its header gives no size"),
        OddImage("png_bomb.png", png_header(30_000, 30_000, 8, 2) + png_chunk(b"IDAT", b"x") + png_chunk(b"IEND", b""),
                 reason="30000 x 30000 pixels"),
        OddImage("png_cut.png", flat_png[: len(flat_png) // 2], reason=cut),
        OddImage("png_cut_in_header.png", flat_png[:20], reason=cut),
        OddImage("png_damaged.png", bytes(bad_crc), reason="damaged"),
        OddImage("png_no_columns.png", png_header(0, 5, 8, 2) + png_chunk(b"IEND", b""),
                 reason="its header gives no size"),
        OddImage("gif_cut.gif", saved(Image.fromarray(noise).quantize(200), "GIF")[:5000], reason=cut),
        OddImage("webp_cut.webp", saved(noise, "WebP", quality=90)[:3000], reason=cut),
        OddImage("bmp_cut.bmp", saved(noise, "BMP")[:9000], reason=cut),
        OddImage("tiff_cut.tif", saved(noise, "TIFF", compression="tiff_lzw")[:9000], reason=cut),
        OddImage("tiff_cut_plain.tif", bytes(bomb_tiff[: len(bomb_tiff) // 2]), reason=cut),
    ]  # fmt: skip


def _damaged_files() -> list[OddImage]:
    """Files whose decoders would go on after the damage, and show a picture that nobody took."""
    random = np.random.default_rng(0)
    noise, other = (random.integers(0, 256, (120, 160, 3), np.uint8) for _ in range(2))
    files = []
    for name, options in {
        "sequential": {"subsampling": 2},
        "restarts": {"restart_marker_blocks": 10},
        "progressive": {"progressive": True},
    }.items():
        whole, second = (saved(pixels, "JPEG", quality=90, **options) for pixels in (noise, other))
        size = len(whole)
        files += [
            OddImage(f"jpeg_{name}_{how}.jpg", data, reason="damaged or cut short")
            for how, data in {
                "cut_and_ended": whole[: size // 2] + b"\xff\xd9",
                "cut_late_and_ended": whole[: size - 40] + b"\xff\xd9",
                "zeros_inside": whole[: size // 2] + bytes(512) + whole[size // 2 + 512 :],
                "zeros_to_the_end": whole[: size // 2] + bytes(size // 2 - 2) + b"\xff\xd9",
                "hole": whole[: size // 2] + whole[size // 2 + 700 :],
                "crossed": whole[: size // 2] + second[size // 2 :],
                "text_mode": whole[:700] + whole[700:].replace(b"\n", b"\r\n"),
                "latin_1_as_utf_8": whole[:700] + whole[700:].decode("latin-1").encode(),
            }.items()
        ]
    scans = saved(noise, "JPEG", progressive=True).split(b"\xff\xda")
    files += [
        OddImage(f"jpeg_first_{count}_scans.jpg", b"\xff\xda".join(scans[: 1 + count]) + b"\xff\xd9",
                 reason="its last scans are missing")
        for count in (1, 3, len(scans) - 2)
    ]  # fmt: skip
    png_file = png(noise)
    pixel = png_file.index(b"IDAT") + 4000
    wrong = png_file[:pixel] + bytes([png_file[pixel] ^ 1]) + png_file[pixel + 1 :]
    key = png_chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))
    files += [
        OddImage("png_one_bit.png", wrong, reason="the checksum of a chunk IDAT is wrong"),
        OddImage("png_no_end.png", png_file[:-12], reason="its last chunk is missing"),
        OddImage("png_text_mode.png", png_file[:60] + png_file[60:].replace(b"\n", b"\r\n"), reason="damaged"),
        OddImage("png_key_changed.png", png(noise, key[:-1] + bytes([key[-1] ^ 1])), reason="damaged"),
    ]
    gif_file = saved(Image.fromarray(noise).quantize(200), "GIF")
    web_file = saved(noise, "WebP", lossless=True)
    return [
        *files,
        OddImage("gif_cut_and_ended.gif", gif_file[:9000] + b"\0;", reason="damaged"),
        OddImage("webp_lossless_cut.webp", web_file[: len(web_file) // 2], reason="damaged"),
    ]


def write_corpus(folder: Path) -> list[OddImage]:
    """Write every file of the corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    files = odd_images()
    for file in files:
        (folder / file.name).write_bytes(file.data)
    return files


if __name__ == "__main__":
    print(f"{len(write_corpus(Path(sys.argv[1])))} files in {sys.argv[1]}")

"""Decides which TIFF files Pillow decodes correctly; the rest are read with tifffile, or the error says what to install.

TIFF has more sample formats than Pillow has modes, and Pillow silently misreads some: separate planes, white stored as zero,
packed bits, byte orders. Tests compare the formats named here with tifffile; all others go to tifffile, which the extra
``tiff`` installs.
"""

import zlib
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import TiffImagePlugin

from finetune.data.array_image import ArrayImage, Samples
from finetune.data.image_file import UnreadableImage
from finetune.data.jpeg import DamagedJpegError, UnsupportedJpegError, decode_jpeg

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIPS, _ORIENTATION, _SAMPLES, _STRIP_BYTES, _PLANES, _COLOR_MAP = 273, 274, 277, 279, 284, 320
_TILES, _TILE_BYTES, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 324, 325, 338, 339
_SUBFILE_TYPE, _SUB_DIRECTORIES, _DNG_VERSION = 254, 330, 50706
# values of the photometric interpretation (TIFF 6.0, section 8)
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
# compressions with zlib's checksum: Adobe's number and the older one
_DEFLATE = (8, 32946)
_JPEG, _JPEG_TABLES = 7, 347
# bytes inflated at a time
_PIECE = 2**18
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_NAMES = {0: "white-is-zero grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}


def pillow_reads(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Tell whether Pillow reads the sample values of a file correctly."""
    tags = image.tag_v2
    samples, photometric = tags.get(_SAMPLES, 1), tags.get(_PHOTOMETRIC)
    depths, kinds = set(tags.get(_BITS, (1,))), set(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,)))
    if len(depths) != 1 or len(kinds) != 1 or (samples > 1 and tags.get(_PLANES, 1) != 1):
        return False
    bits, kind = int(depths.pop()), int(kinds.pop())
    if bits == 8 and kind == _UNSIGNED:
        return True
    if bits <= 4 and kind == _UNSIGNED:
        return bool(samples == 1)
    plain = tags.get(_COMPRESSION, 1) == 1 and tags.prefix == b"II"
    if samples == 1 and photometric == _BLACK_IS_ZERO:
        return (bits, kind) == (16, _UNSIGNED) or (plain and (bits, kind) in ((32, _SIGNED), (32, _FLOAT)))
    return bool((bits, kind, photometric, samples) == (16, _UNSIGNED, _RGB, 3))


def stored_channels(image: TiffImagePlugin.TiffImageFile) -> int:
    """Return the samples of each pixel of a file that Pillow reads, alpha among them; three of a palette's colours or others."""
    photometric = image.tag_v2.get(_PHOTOMETRIC)
    plain = photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK)
    return int(image.tag_v2.get(_SAMPLES, 1)) if plain else 3


def is_camera_raw(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Tell whether the first picture is a camera's preview of raw data elsewhere in the file (DNG, NEF, CR2)."""
    tags = image.tag_v2
    preview = bool(tags.get(_SUBFILE_TYPE, 0) & 1) and _SUB_DIRECTORIES in tags
    canon = isinstance(image.fp, BytesIO) and image.fp.getvalue()[8:10] == b"CR"
    return _DNG_VERSION in tags or preview or canon


def mend_palette(image: TiffImagePlugin.TiffImageFile) -> None:
    """Correct the colours of a loaded palette image whose map holds 8-bit values in place of 16-bit ones, as libtiff does."""
    colors = image.tag_v2.get(_COLOR_MAP)
    if image.mode in ("P", "PA") and colors and max(colors) < 256:
        image.putpalette(np.array(colors, np.uint8).reshape(3, -1).T.tobytes(), "RGB")


def check_tiff(image: TiffImagePlugin.TiffImageFile, data: memoryview) -> None:
    """Check that all strips or tiles of a compressed file lie inside it, and verify their checksums if they have any.

    libtiff stops at the last pixel of a deflated strip, before its checksum, and repairs JPEG as libjpeg does.

    Raises:
        ValueError: A strip or tile ends outside the file, or a checksum is wrong.
    """
    tags = image.tag_v2
    if tags.get(_COMPRESSION, 1) == 1:
        return
    starts, lengths = (
        tags.get(tag) or tags.get(other) or () for tag, other in ((_STRIPS, _TILES), (_STRIP_BYTES, _TILE_BYTES))
    )
    parts = list(zip(starts, lengths, strict=False))
    if any(start + length > len(data) for start, length in parts):
        raise ValueError("some of its pixels lie past the end of the file")
    compression, tables = tags.get(_COMPRESSION), tags.get(_JPEG_TABLES, b"")
    for start, length in parts:
        if compression in _DEFLATE:
            _check_deflated(data[start : start + length])
        elif compression == _JPEG:
            _check_jpeg(data[start : start + length], tables)


def _check_jpeg(data: memoryview, tables: bytes) -> None:
    """Decode one strip or tile as a separate file, with the tables of its file.

    Raises:
        ValueError: The decoder had to repair the data.
    """
    try:
        decode_jpeg(tables[:-2] + bytes(data[2:]) if tables else bytes(data), "GRAY")
    except UnsupportedJpegError:  # a form that occurs only in TIFF; libtiff decodes it
        return
    except DamagedJpegError as error:
        raise ValueError(f"libjpeg reports: {error}") from None


def _check_deflated(data: memoryview) -> None:
    """Inflate one strip in pieces, which verifies its checksum.

    Raises:
        ValueError: The data is damaged.
    """
    inflate = zlib.decompressobj()
    try:
        while len(data) and not inflate.eof:
            inflate.decompress(data, _PIECE)
            data = memoryview(inflate.unconsumed_tail)
    except zlib.error as error:
        raise ValueError(f"a strip is damaged: {error}") from None


def open_by_tifffile(data: bytes | bytearray, *, path: str) -> ArrayImage:
    """Read the header of a TIFF file with tifffile.

    Raises:
        UnreadableImage: tifffile is not installed, or the file holds something other than a grey or colour image, or bands.
    """
    try:
        import tifffile
    except ImportError:
        raise UnreadableImage(
            path,
            f"It is a TIFF of a kind ({_kind(data)}) that needs tifffile. Install it with: "
            "pip install 'stagewise-finetune[tiff]', or convert the file to PNG.",
        ) from None
    pages = tifffile.TiffFile(BytesIO(data)).pages
    page: Any = pages[0]
    # tifffile would fill these with zeros
    empty = sum(not (start and count) for start, count in zip(page.dataoffsets, page.databytecounts, strict=False))
    if empty:
        raise UnreadableImage(
            path,
            f"It is damaged or sparse: of {len(page.dataoffsets)} strips or tiles, {empty} without pixels (offset or byte "
            "count 0). Write it again with all pixels, for example with gdal_translate, or leave it out.",
        )
    space_of = {0: "grey", 1: "grey", 2: "rgb", 3: "rgb", 5: "cmyk"}
    photometric, extra = int(page.photometric), [int(value) for value in page.extrasamples]
    colours = {"grey": 1, "rgb": 3, "cmyk": 4}.get(space_of.get(photometric, ""), 0)
    stored = 1 if photometric == _PALETTE else colours
    depth, number = page.bitspersample, page.samplesperpixel
    sampled = page.imagedepth == 1 and page.sampleformat in (_UNSIGNED, _SIGNED, _FLOAT)
    bands = photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and len(extra) > 1
    if number == 3 and photometric == _BLACK_IS_ZERO and extra == [0, 0]:
        # GDAL and others write colours so; read as three channels of a NumPy array are
        photometric, bands, extra, colours, stored = _RGB, False, [], 3, 3
    if not (sampled and colours and number == stored + len(extra)):
        raise UnreadableImage(
            path,
            f"It is a TIFF of {number} x {depth} bits ({_NAMES.get(photometric, f'photometric {photometric}')}), which is no "
            "grey or colour image and no bands. Convert it to one, or use the channels that matter.",
        )
    opacity = {1: "premultiplied", 2: "straight"}.get(extra[0], "") if extra and photometric != _PALETTE else ""

    def stored_values() -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = _decoded(page, path)
        if number > 1 and page.planarconfig == 2:
            values = np.moveaxis(values, 0, -1)
        values = values.reshape(page.imagelength, page.imagewidth, number)
        return values.view(np.uint8) if values.dtype == np.bool_ else values

    def load_bands() -> Samples:
        values = stored_values()
        return Samples(
            values_HWS=values,
            space="bands",
            bits=0 if values.dtype.kind == "f" else depth,
            white_is_zero=photometric == _WHITE_IS_ZERO,
        )

    def load() -> Samples:
        values = stored_values()
        values, bits = values[..., : stored + bool(opacity)], depth
        if photometric == _PALETTE:
            table = page.colormap.T
            values, bits = table[values[..., 0]], 8 if table.max() < 256 else 16
        return Samples(
            values_HWS=values,
            space=space_of[photometric],  # type: ignore[arg-type] # a key, checked above
            bits=0 if values.dtype.kind == "f" else bits,
            white_is_zero=photometric == _WHITE_IS_ZERO,
            opacity=opacity,  # type: ignore[arg-type] # a value of the table above
        )

    profile = page.iccprofile
    return ArrayImage(
        width=page.imagewidth,
        height=page.imagelength,
        mode=_mode(page, 0 if bands else colours),
        format="TIFF",
        load=load_bands if bands else load,
        channels=3 if photometric == _PALETTE else number,
        load_bands=None if photometric == _PALETTE else load_bands,
        orientation=_orientation(page),
        is_animated=len(pages) > 1,
        info={"icc_profile": profile} if isinstance(profile, bytes) else {},
    )


def _decoded(page: Any, path: str) -> npt.NDArray[Any]:
    """Return the sample values of a page of tifffile.

    Raises:
        UnreadableImage: Its compression is unknown to tifffile, or needs imagecodecs.
    """
    try:
        values: npt.NDArray[Any] = page.asarray()
    except (ImportError, NotImplementedError, ValueError) as error:
        # tifffile tells by its words alone
        if isinstance(error, ImportError) or "requires the 'imagecodecs' package" in str(error):
            raise UnreadableImage(
                path,
                "It is a TIFF of a compression or packing that needs imagecodecs. Install it with: "
                "pip install 'stagewise-finetune[tiff]', or convert the file to PNG.",
            ) from None
        raise
    return values


def _mode(page: Any, colours: int) -> str:
    """Return the name of the mode; of no colours, of bands."""
    deep = page.bitspersample == 16 and page.dtype is not None and page.dtype.kind == "u"
    if colours == 0:
        small = page.dtype is not None and page.dtype.kind == "u" and page.bitspersample <= 8
        return f"bands{'' if small else ';16' if deep else ';32'}"
    if colours != 1:
        return f"RGB{';16' * deep}" if colours == 3 else "CMYK"
    if page.dtype is None or page.dtype.kind == "f":
        return "F"
    if page.bitspersample <= 8 and page.dtype.kind != "i":
        return "L"
    return "I;16" if page.dtype == np.uint16 else "I"


def _orientation(page: Any) -> int:
    tag = page.tags.get(_ORIENTATION)
    value = 1 if tag is None else tag.value
    return int(value) if value in range(1, 9) else 1


def _kind(data: bytes | bytearray) -> str:
    """Describe the sample format of a file by its tags."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(bytes(data[:8]))
        file = BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        bits, kind = tags.get(_BITS, (1,))[0], tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0]
        numbers = {_UNSIGNED: "", _SIGNED: "signed ", _FLOAT: "floating point "}.get(kind, "")
        planes = ", separate planes" if tags.get(_PLANES, 1) != 1 else ""
        colour = _NAMES.get(int(tags.get(_PHOTOMETRIC, -1)), "unknown colours")
        return f"{colour}, {tags.get(_SAMPLES, 1)} x {bits} {numbers}bits{planes}"
    except Exception:  # a damaged header
        return "unknown"

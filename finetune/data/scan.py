"""Scans the files of a data set: content hash, readability, size, mode and perceptual hash of each.

Each file is read once, then hashed and decoded (a large JPEG at an eighth) by several threads: the decoders and the
hash release the interpreter's lock. The facts are compact arrays, about 80 bytes per file, and are kept in the user's
cache (:mod:`finetune.data.scan_cache`), so a file is opened again only after its path, size, inode or one of its times changed.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import TiffImagePlugin

from finetune.data.array_image import ArrayImage
from finetune.data.color import is_srgb, luma
from finetune.data.decode import Opened, decode_grey, numbers_of, open_image, orientation_of, stored_channels
from finetune.data.deep_colour import deep_samples, is_deep_colour, mode_of
from finetune.data.image_file import MAX_PIXELS, UnreadableImage, content_hash, read_image_file, sniff
from finetune.data.path_table import PathTable
from finetune.data.perceptual_hash import looks
from finetune.data.progress import Progress

# a table of facts stores positions in these tuples
KINDS = ("", "JPEG", "PNG", "GIF", "WebP", "BMP", "TIFF", "AVIF", "HEIF", "DICOM", "NPY")
MODES = (
    *("", "1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"),
    *("I;16", "I;16B", "I;16L", "I;16N", "I", "F"),
    *("RGB;16", "RGBA;16", "LA;16"),  # of which Pillow keeps 8 bits
    *("bands", "bands;16", "bands;32"),  # channels that are no colours
)
# of the samples of images of more than 8 bits
SAMPLE_KINDS = ("", "integer", "float")

# modes of one channel, with or without alpha
_GREY = ("1", "L", "LA", "I", "F")

# `problem` is 0 where the file was read
FACT_TYPE = np.dtype(
    [
        ("content", np.uint64, (2,)),
        ("looks", np.uint64, (2,)),
        ("width", np.uint32),
        ("height", np.uint32),
        ("problem", np.uint32),
        ("kind", np.uint8),
        ("mode", np.uint8),
        # as they are stored, alpha among them
        ("channels", np.uint16),
        ("orientation", np.uint8),
        ("several", np.bool_),
        ("profile", np.bool_),
        ("darkest", np.uint8),
        ("brightest", np.uint8),
        # of images of more than 8 bits: kind of their sample values, and the smallest and largest value
        ("deep", np.uint8),
        ("low", np.float64),
        ("high", np.float64),
        # value that all but the brightest thousandth of the numbers do not exceed
        ("most", np.float64),
    ]
)

Table = npt.NDArray[np.void]

# shorter side, in pixels, that is enough for the perceptual hash
_LOOK_AT = 32
# files that a thread scans before it takes the next: handing over each small file alone cost as much as scanning it
_FILES_A_TASK = 32
_CHUNK = 1024
_MOST_CHANNELS = np.iinfo(np.uint16).max
# share of the brightest numbers, of floating point also of the darkest, that is left out: filters overshoot, sensors have hot
# pixels
_OUTLIERS = 0.001


@dataclass(frozen=True)
class Facts:
    """The results of a scan, one row per file.

    Args:
        table: Facts of each file, array of ``FACT_TYPE`` (N,).
        problems: Reasons why files cannot be read; ``table["problem"] - 1`` is a position in this tuple.
    """

    table: Table
    problems: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.table)

    @property
    def content(self) -> npt.NDArray[np.uint64]:
        """Return the content hashes, uint64 (N, 2)."""
        return np.ascontiguousarray(self.table["content"])

    def unreadable(self) -> list[tuple[int, str]]:
        """Return row and reason of every file that cannot be read."""
        rows = np.flatnonzero(self.table["problem"])
        return [(int(row), self.problems[self.table["problem"][row] - 1]) for row in rows]

    def mode_of(self, row: int) -> str:
        """Return format and mode of one file as text, such as ``JPEG CMYK``."""
        return f"{KINDS[self.table['kind'][row]]} {MODES[self.table['mode'][row]]}"

    def grey(self) -> npt.NDArray[np.bool_]:
        """Tell which files hold one channel, bool (N,)."""
        return np.isin(
            self.table["mode"], [number for number, mode in enumerate(MODES) if mode.partition(";")[0] in _GREY]
        )

    def bands(self) -> npt.NDArray[np.bool_]:
        """Tell which files hold channels that are no colours, bool (N,)."""
        return np.isin(self.table["mode"], [MODES.index(mode) for mode in ("bands", "bands;16", "bands;32")])

    def take(self, rows: npt.NDArray[np.int64]) -> "Facts":
        """Return the facts of some rows, in their order."""
        return Facts(self.table[rows], self.problems)


def upright_sizes(table: Table) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Return the widths and the heights of the upright pictures, in pixels."""
    turned = table["orientation"] >= 5
    width, height = table["width"], table["height"]
    return np.where(turned, height, width), np.where(turned, width, height)


def scan_files(
    root: str, paths: PathTable, rows: npt.NDArray[np.int64] | None = None, *, max_pixels: int = MAX_PIXELS
) -> Facts:
    """Scan files: open each and record its facts.

    Args:
        root: Folder that the paths start from.
        paths: Paths of the files.
        rows: Rows to scan; the facts have their order. None scans all.
        max_pixels: Largest number of pixels; larger images count as unreadable.
    """
    chosen = np.arange(len(paths)) if rows is None else rows

    def fill(table: Table, positions: range) -> list[str]:
        return [
            _fill(table[number : number + 1], os.path.join(root, paths[int(chosen[position])]), max_pixels)
            for number, position in enumerate(positions)
        ]

    return scan_by(fill, len(chosen))


def scan_by(fill: Callable[[Table, range], list[str]], count: int) -> Facts:
    """Gather facts with several threads.

    Args:
        fill: Writes the facts of some images, by their positions, into the rows of a table; returns of each the reason why it is
            unreadable, else empty.
        count: Number of images.
    """
    table = np.zeros(count, FACT_TYPE)
    problems: dict[str, int] = {}
    progress = Progress("checking images", total=count)

    def filled(positions: range) -> list[str]:
        return fill(table[positions.start : positions.stop], positions)

    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        for start in range(0, count, _CHUNK):
            positions = range(start, min(start + _CHUNK, count))
            tasks = [positions[first : first + _FILES_A_TASK] for first in range(0, len(positions), _FILES_A_TASK)]
            for position, reason in zip(positions, chain.from_iterable(pool.map(filled, tasks)), strict=True):
                if reason:
                    table["problem"][position] = problems.setdefault(reason, len(problems) + 1)
            progress.advance(len(positions))
    progress.close()
    return Facts(table, tuple(problems))


def facts_of_arrays(images: Sequence[npt.NDArray[np.uint8]]) -> Facts:
    """Compute the facts of images in memory, each (H, W) or (H, W, 3)."""
    table = np.zeros(len(images), FACT_TYPE)
    for row, image in zip(table, images, strict=True):
        grey = image if image.ndim == 2 else luma(image)
        row["content"] = content_hash(repr(image.shape).encode() + image.tobytes())
        row["height"], row["width"] = image.shape[:2]
        row["mode"] = MODES.index("L" if image.ndim == 2 else "RGB")
        row["channels"] = 1 if image.ndim == 2 else 3
        row["orientation"] = 1
        row["looks"], row["darkest"], row["brightest"] = looks(grey), grey.min(), grey.max()
    return Facts(table, ())


def _fill(row: Table, path: str, max_pixels: int) -> str:
    """Write one file's facts into a one-row view of the table; return the reason if it is unreadable, else empty."""
    try:
        data = read_image_file(path, max_pixels=max_pixels)
    except UnreadableImage as error:
        # files that cannot be opened have no content, so their hash is that of the path, which is unique
        row["content"] = content_hash(b"unreadable\0" + os.fsencode(path))
        return error.reason
    try:
        facts_of_bytes(data, row, path=path, max_pixels=max_pixels)
    except UnreadableImage as error:
        return error.reason
    return ""


def facts_of_bytes(data: bytearray, row: Table, *, path: str, max_pixels: int) -> None:
    """Write the facts of one file's bytes into a one-row view of a table.

    Raises:
        UnreadableImage: The bytes are not an image; the facts found so far are written all the same.
    """
    row["content"] = content_hash(data)
    row["kind"] = KINDS.index(sniff(data) or "")
    image = open_image(data, path=path)
    deep_colour = is_deep_colour(image)
    mode = f"{mode_of(image)};16" if deep_colour else image.mode
    row["mode"] = MODES.index(mode) if mode in MODES else 0
    row["channels"] = min(stored_channels(image), _MOST_CHANNELS)
    row["width"], row["height"] = _stored_size(image)
    # a PNG may state its orientation behind its pixels; Pillow turns a TIFF upright as it loads it, and takes the tag away
    stated_behind = image.format == "PNG"
    row["orientation"] = 1 if stated_behind else orientation_of(image)
    # of one channel of more than 8 bits, it is ignored
    followed = image.mode not in ("I", "F") and not image.mode.startswith("I;16")
    row["profile"] = followed and not is_srgb(image.info.get("icc_profile") or b"")
    grey = decode_grey(image, max_pixels=max_pixels, path=path, min_side=_LOOK_AT)
    row["looks"], row["darkest"], row["brightest"] = looks(grey), grey.min(), grey.max()
    if stated_behind:
        row["orientation"] = orientation_of(image)
    numbers = _colour_numbers(data, path) if deep_colour else numbers_of(image)
    if numbers is not None:
        row["deep"], row["low"], row["high"], row["most"] = _extent(numbers)
    row["several"] = _holds_several(image)


def _stored_size(image: Opened) -> tuple[int, int]:
    """Return width and height as they are stored; Pillow gives those of the upright picture for a TIFF."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(image.tag_v2[TiffImagePlugin.IMAGEWIDTH]), int(image.tag_v2[TiffImagePlugin.IMAGELENGTH])
    return image.width, image.height


def _colour_numbers(data: bytearray, path: str) -> npt.NDArray[Any]:
    """Return the numbers of a colour image of 16 bits that was decoded before, without opacity."""
    image = open_image(data, path=path)
    assert not isinstance(image, ArrayImage), "read by Pillow"
    samples = deep_samples(image, data)
    return samples.values_HWS[..., : samples.colours]


def _extent(numbers: npt.NDArray[Any]) -> tuple[int, float, float, float]:
    """Return the kind of an image's numbers, their smallest, their largest, and the largest without outliers.

    Of floating point, the smallest and the largest leave outliers out too.
    """
    if numbers.dtype.kind != "f":
        place = numbers.size - 1 - int(_OUTLIERS * (numbers.size - 1))
        most = np.partition(numbers, place, axis=None)[place]
        return SAMPLE_KINDS.index("integer"), float(numbers.min()), float(numbers.max()), float(most)
    finite = np.sort(numbers[np.isfinite(numbers)], axis=None)
    if not finite.size:
        return 0, 0.0, 0.0, 0.0
    spare = int(_OUTLIERS * (finite.size - 1))
    high = float(finite[-1 - spare])
    return SAMPLE_KINDS.index("float"), float(finite[spare]), high, high


def _holds_several(image: Opened) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second picture is no reason to lose the first
        return False

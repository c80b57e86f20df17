"""Pillow's resize for a window of the result, in NumPy, without computing the rest of the resized image.

Resizing an image a million times as long as wide would exhaust any memory, and Pillow keeps the filter weights of a whole
axis, 32 bytes for each of its pixels. Here each pixel of the window is computed from the pixels under it, with the fixed-point
arithmetic of :mod:`finetune.data.pillow_resize`. The pixel values are equal, and the memory beside the image is at most 8 bytes
for each pixel under one row or column of the window.
"""

import math

import numpy as np
import numpy.typing as npt

# H/W = image height/width, C = channels, T = taps of the filter

Pixels = npt.NDArray[np.uint8]
# filter name -> half its width at scale 1, in source pixels
REACH = {"bilinear": 1, "bicubic": 2}
BITS = 22


def pillow_window(
    pixels_HWC: Pixels, *, size: tuple[int, int], corner: tuple[int, int], window: tuple[int, int], interpolation: str
) -> Pixels:
    """Compute a crop of the resized image.

    Args:
        pixels_HWC: The image.
        size: Height and width to resize to.
        corner: Top and left of the window in the resized image.
        window: Its height and width.
        interpolation: ``nearest``, ``bilinear`` or ``bicubic``.

    Returns:
        uint8 ``(*window, C)``.
    """
    given = pixels_HWC.shape[:2]
    if interpolation == "nearest":
        rows, columns = (_nearest(given[axis], size[axis], corner[axis], window[axis]) for axis in (0, 1))
        return pixels_HWC[np.ix_(rows, columns)]
    axes = (0, 1) if columns_first((given[0], given[1]), size) else (1, 0)
    # the first pass computes only the rows or columns that the second reads
    begin, end = _span(given[axes[1]], size[axes[1]], corner[axes[1]], window[axes[1]], interpolation)
    pixels_HWC = pixels_HWC[:, begin:end] if axes[1] else pixels_HWC[begin:end]
    for axis in axes:
        offset = begin if axis == axes[1] else 0
        moved = pixels_HWC.swapaxes(0, axis)
        passed = np.empty((window[axis], *moved.shape[1:]), np.uint8)
        for pixel in range(window[axis]):
            first, weights_T = _taps(corner[axis] + pixel, given[axis], size[axis], interpolation)
            part = moved[first - offset : first - offset + len(weights_T)].astype(np.float64)
            # whole numbers far below 2^53: exact in any order
            sums = np.tensordot(weights_T, part, axes=1)
            passed[pixel] = np.floor((sums + 2.0 ** (BITS - 1)) / 2.0**BITS).clip(0, 255)
        pixels_HWC = passed.swapaxes(0, axis)
    return np.ascontiguousarray(pixels_HWC)


def columns_first(given: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Return whether Pillow 13 resizes height before width: the height loses more than twice the pixels of the width.

    Earlier versions always begin with the width; some pixels of tall images then differ by one.
    """
    lost_height, lost_width = given[0] - resized[0], given[1] - resized[1]
    return lost_height > max(0, 2 * lost_width)


def _span(given: int, resized: int, first: int, count: int, interpolation: str) -> tuple[int, int]:
    """Return the range of source pixels that a window needs along an axis."""
    begin, _ = _bounds(first, given, resized, interpolation)
    return begin, _bounds(first + count - 1, given, resized, interpolation)[1]


def _bounds(pixel: int, given: int, resized: int, interpolation: str) -> tuple[int, int]:
    support = REACH[interpolation] * max(given / resized, 1.0)
    centre = (pixel + 0.5) * (given / resized)
    return max(0, math.floor(centre - support + 0.5)), min(given, math.floor(centre + support + 0.5))


def _taps(pixel: int, given: int, resized: int, interpolation: str) -> tuple[int, npt.NDArray[np.float64]]:
    """Return the first source pixel and the filter weights (T,) of one output pixel; the weights are whole numbers of 22 bits."""
    first, last = _bounds(pixel, given, resized, interpolation)
    scale = given / resized
    weights_T = np.arange(first, last, dtype=np.float64)
    weights_T -= (pixel + 0.5) * scale
    weights_T += 0.5
    weights_T *= 1 / max(scale, 1.0)
    weights_T = _filter(np.abs(weights_T, out=weights_T), interpolation)
    # Pillow adds the weights one after another; NumPy's sum adds in pairs
    weights_T /= weights_T.cumsum()[-1]
    weights_T *= 2.0**BITS
    weights_T += np.copysign(0.5, weights_T)
    return first, np.trunc(weights_T, out=weights_T)


def _filter(distance: npt.NDArray[np.float64], interpolation: str) -> npt.NDArray[np.float64]:
    """Return the filter's value at a distance in (stretched) source pixels."""
    if interpolation == "bilinear":
        return np.maximum(1 - distance, 0)
    # Keys' cubic with a = -0.5, as Pillow has it (Keys 1981, doi 10.1109/TASSP.1981.1163711)
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = -0.5 * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


def _nearest(given: int, resized: int, first: int, count: int) -> npt.NDArray[np.int64]:
    """Return the source positions of the pixels ``first`` to ``first + count`` of an axis of ``resized`` pixels.

    Pillow adds up the step, one pixel after another, in double precision; this does the same, because the last bit can decide
    the result. Between two powers of two the rounded sum grows by the same amount at every step, so long runs of steps are
    skipped at once.
    """
    step = given / resized
    position, ahead = 0.5 * step, first
    while ahead > 0:
        two = position + step + step
        growth, top = two + step - two, math.ldexp(1.0, math.frexp(two)[1])
        # a sum halfway between two numbers is rounded to the even one, so all further steps equal the second
        leap = min(ahead - 2, int((top - two) / growth) - 1)
        if leap > 0 and 2 * (position + step) >= top:
            position, ahead = two + leap * growth, ahead - 2 - leap
        else:
            position, ahead = position + step, ahead - 1
    sums = np.full(count, step)
    sums[0] = position
    return sums.cumsum().astype(np.int64).clip(0, given - 1)

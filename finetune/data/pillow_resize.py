"""Pillow's resize of uint8 images for a window of the result, with equal pixel values, in operations that exporters support.

Pillow resizes in fixed point: for each axis it computes filter weights in double precision and rounds them to integers of 22
bits; each pass is rounded to whole values and clipped to 0..255. It resizes along the rows first, but along the columns first
for tall images (``src/libImaging/Resample.c``). ONNX's Resize computes in floating point and is off by one in two pixels of a
hundred. This module gathers, multiplies and sums the same integers as Pillow, but only for the pixels that the crop after the
resize keeps, and only from the rows and columns that they are computed from. An image a million times as long as wide, whose
resized form would exhaust any memory, therefore costs no more than any other.

No branch depends on a size, so that height and width stay dynamic in an exported graph.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# B = batch, C = channels, H/W = image height/width, N = length of the window, T = taps of the filter

# number of pixels, or a symbol for it while a graph is traced
Side = int | torch.SymInt
# filter name -> half-width at scale 1, in source pixels
_REACH = {"bilinear": 1, "bicubic": 2}
_BITS = 22
# number of parts in which the first pass, which reads all source pixels, takes the rows
_PARTS = 8
# nearest: this many pixels by summation, then this many powers of two by leaps: enough for an axis of 10^11 pixels
_ADDED, _LEAPS = 2**20, 18


def resize_window(
    images_BCHW: Tensor,
    *,
    size: tuple[Side, Side],
    corner: tuple[Side, Side],
    window: tuple[int, int],
    interpolation: str,
) -> Tensor:
    """Resize images and crop a window, computing the window alone.

    Args:
        images_BCHW: Images, uint8.
        size: Height and width to resize to.
        corner: Top and left of the window in the resized image.
        window: Height and width of the window.
        interpolation: Resampling filter: ``nearest``, ``bilinear`` or ``bicubic``.

    Returns:
        ``(B, C, *window)`` with values 0 to 255: uint8 for ``nearest``, int32 otherwise.
    """
    if interpolation == "nearest":
        rows, columns = (
            nearest(images_BCHW.shape[2 + axis], size[axis], corner[axis], window[axis]).unsqueeze(1) for axis in (0, 1)
        )
        images_BCHW, rows = _cut(images_BCHW, 2, rows, size[0])
        images_BCHW, columns = _cut(images_BCHW, 3, columns, size[1])
        return images_BCHW.index_select(2, rows[:, 0]).index_select(3, columns[:, 0])
    given = images_BCHW.shape[-2:]
    (rows, row_weights), (columns, weights) = (
        fixed_point_filter(given[axis], size[axis], corner[axis], window[axis], interpolation) for axis in (0, 1)
    )
    images_BCHW, rows = _cut(images_BCHW, 2, rows, size[0])
    images_BCHW, columns = _cut(images_BCHW, 3, columns, size[1])
    tall, operands = columns_first(given, size), (images_BCHW, rows, row_weights, columns, weights)
    if isinstance(tall, int):
        return _height_then_width(*operands) if tall else _width_then_height(*operands)
    # while traced: a graph of both orders, of which one is run
    height_first = torch.scalar_tensor(tall, dtype=torch.int32) > 0
    chosen: Tensor = torch.cond(height_first, _height_then_width, _width_then_height, operands)
    return chosen


def _cut(images_BCHW: Tensor, axis: int, sources_NT: Tensor, resized: Side) -> tuple[Tensor, Tensor]:
    """Cut out the part of an axis that a window needs; return it and the window's sources as positions in it."""
    given, (count, taps) = images_BCHW.shape[axis], sources_NT.shape
    if isinstance(resized, int) and resized == count:
        return images_BCHW, sources_NT
    # upper bound of the pixels from the first source to the last; a length derived from sizes alone can be exported
    span = torch.sym_min(given, (count - 1) * given // resized + 2 + taps)
    begin = torch.minimum(sources_NT[0, 0], torch.scalar_tensor(given - span, dtype=torch.int64))
    return images_BCHW.index_select(axis, torch.arange(span) + begin), sources_NT - begin


def _width_then_height(images: Tensor, rows: Tensor, row_weights: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    wide_BCHN = _resample_in_parts(images, columns, weights)
    return _resample(wide_BCHN.transpose(2, 3), rows, row_weights).transpose(2, 3).contiguous()


def _height_then_width(images: Tensor, rows: Tensor, row_weights: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    high_BCNW = _resample_in_parts(images.transpose(2, 3), rows, row_weights).transpose(2, 3)
    return _resample(high_BCNW, columns, weights).contiguous()


def columns_first(given: Sequence[Side], resized: Sequence[Side]) -> Side:
    """Return 1 if Pillow 13 resizes height first (it loses more than twice as many pixels as the width), else 0.

    Earlier versions always begin with the width; some pixels of tall images then differ by one.
    """
    lost_height, lost_width = given[0] - resized[0], given[1] - resized[1]
    return torch.sym_max(0, torch.sym_min(1, torch.sym_min(lost_height, lost_height - 2 * lost_width)))


def nearest(given: Side, resized: Side, first: Side, count: int) -> Tensor:
    """Return the source positions of pixels ``first`` to ``first + count`` of an axis of ``resized`` pixels, int64.

    Pillow accumulates the step pixel by pixel in double precision, and so does this function, because the last bit can
    decide. From some pixel on it skips steps: between two powers of two the rounded sum grows by the same amount at every step.
    """
    step = torch.scalar_tensor(given, dtype=torch.float64) / torch.scalar_tensor(resized, dtype=torch.float64)
    added = torch.sym_min(resized, _ADDED)
    sums = torch.cat([(step * 0.5).reshape(1), step.expand(added - 1)]).cumsum(0)
    pixel_N = torch.arange(count) + first
    position_N = sums.index_select(0, pixel_N.clamp(max=added - 1))
    if not isinstance(resized, int) or resized > _ADDED:
        position_N = _leaped(sums[-1], step, pixel_N - (added - 1), position_N)
    return position_N.floor().clamp(0, given - 1).long()


def _leaped(position: Tensor, step: Tensor, ahead_N: Tensor, position_N: Tensor) -> Tensor:
    """Compute the positions of pixels ``ahead_N`` steps after one; those of pixels before it stay as they are."""
    powers = 2.0 ** torch.arange(-64, 64, dtype=torch.float64)
    for _ in range(_LEAPS):
        one, two = position + step, position + step + step
        # a sum halfway between two numbers is rounded to the even one, so all further steps equal the second
        growth, top = two + step - two, powers.masked_fill(powers <= two, torch.inf).amin(0)
        leap = ((top - two) / growth).floor()
        leap = torch.where(two + leap * growth >= top, leap - 1, leap)
        leap = torch.where(2 * one >= top, leap, torch.zeros_like(leap))
        beyond_N = ahead_N - 2
        position_N = torch.where(ahead_N == 1, one, position_N)
        position_N = torch.where((beyond_N >= 0) & (beyond_N <= leap), two + beyond_N * growth, position_N)
        position, ahead_N = two + leap * growth, beyond_N - leap
    return position_N


def _resample_in_parts(images_BCHW: Tensor, sources_NT: Tensor, weights_NT: Tensor) -> Tensor:
    """Resample part by part, because every source pixel becomes several numbers of four bytes on the way."""
    height = images_BCHW.shape[2]
    # at least two rows, because an exporter treats a size of one as a constant
    part = height // _PARTS + 2
    sums = []
    for number in range(_PARTS):
        # past the end the last row is repeated
        rows = (torch.arange(part) + number * part).clamp(max=height - 1)
        sums.append(_filtered(images_BCHW.index_select(2, rows), sources_NT, weights_NT))
    return _rounded(torch.cat(sums, dim=2).index_select(2, torch.arange(height)))


def _resample(images_BCHW: Tensor, sources_NT: Tensor, weights_NT: Tensor) -> Tensor:
    """Compute the window of the last axis, int32, by a filter of :func:`fixed_point_filter`."""
    return _rounded(_filtered(images_BCHW, sources_NT, weights_NT))


def _filtered(images_BCHW: Tensor, sources_NT: Tensor, weights_NT: Tensor) -> Tensor:
    """Return the sums of the window of the last axis, each its weighted sources, int32."""
    count, taps = sources_NT.shape
    gathered = images_BCHW.index_select(3, sources_NT.reshape(-1))
    gathered_BCHNT = gathered.reshape(*images_BCHW.shape[:3], count, taps)
    return (gathered_BCHNT.to(torch.int32) * weights_NT).sum(-1, dtype=torch.int32)


def _rounded(sums_BCHN: Tensor) -> Tensor:
    """Return the values that sums stand for, 0 to 255, halves rounded up."""
    # in double, because exporters cannot shift negative numbers
    scale = 2.0**_BITS
    return ((sums_BCHN.double() + scale / 2) / scale).floor().clamp(0, 255).to(torch.int32)


def fixed_point_filter(
    given: Side, resized: Side, first: Side, count: int, interpolation: str
) -> tuple[Tensor, Tensor]:
    """Return for each pixel of the window its source pixels, and their weights as integers of 22 bits.

    Args:
        given: Length of the axis, pixels.
        resized: New length of the axis, pixels.
        first: First pixel of the window on the resized axis.
        count: Length ``N`` of the window, pixels.
        interpolation: Resampling filter: ``bilinear`` or ``bicubic``.

    Returns:
        Positions, int64 (N, T), and weights, int32 (N, T), zero where a tap is outside the filter or the image.
    """
    reach = _REACH[interpolation]
    taps = 2 * torch.sym_max(reach, (reach * given + resized - 1) // resized) + 1
    # as tensors: while traced, sizes are symbols, on which only integer arithmetic is exact
    given_, resized_ = (
        torch.scalar_tensor(given, dtype=torch.float64),
        torch.scalar_tensor(resized, dtype=torch.float64),
    )
    scale = given_ / resized_
    stretch = scale.clamp(min=1)
    support = reach * stretch
    pixel_N = torch.arange(count, dtype=torch.float64) + torch.scalar_tensor(first, dtype=torch.float64)
    centre_N1 = ((pixel_N + 0.5) * scale).unsqueeze(1)
    first_N1 = (centre_N1 - support + 0.5).floor().clamp(min=0)
    last_N1 = torch.minimum((centre_N1 + support + 0.5).floor(), given_)
    position_NT = first_N1 + torch.arange(taps, dtype=torch.float64)
    inside_NT = position_NT < last_N1
    weight_NT = _filter((position_NT - centre_N1 + 0.5) * (1 / stretch), interpolation) * inside_NT
    scaled_NT = weight_NT / weight_NT.sum(1, keepdim=True) * 2.0**_BITS
    whole_NT = torch.where(scaled_NT < 0, (scaled_NT - 0.5).ceil(), (scaled_NT + 0.5).floor())
    return torch.minimum(position_NT, given_ - 1).long(), whole_NT.to(torch.int32)


def _filter(distance: Tensor, interpolation: str) -> Tensor:
    """Evaluate the filter at a distance in (stretched) source pixels."""
    distance = distance.abs()
    if interpolation == "bilinear":
        return (1 - distance).clamp(min=0)
    # Keys' cubic with a = -0.5, as Pillow has it (Keys 1981, doi 10.1109/TASSP.1981.1163711)
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = -0.5 * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))

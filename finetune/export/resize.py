"""The uint8 resize of evaluation, level for level, in operations that exporters know.

PyTorch resizes uint8 images with antialiasing in fixed point: for each axis, filter weights in double precision, rounded
to 16-bit integers of one common scale; rows first, then columns, each pass rounded to whole levels and cut to 0..255
(``aten/src/ATen/native/cpu/UpSampleKernelAVXAntialias.h``, after Pillow-SIMD). ONNX's Resize computes in floating point:
one level of difference in two pixels of a hundred, which moves the probabilities of a network by up to some thousandths.
Here the same integers are gathered, multiplied and summed.

No branch depends on a size, so that height and width stay free in the exported graph.
"""

import torch
from torch import Tensor

# B = batch, C = channels, H/W = height/width, N = new length of the axis, T = taps of the filter

# a number of pixels, or a symbol for one while a graph is traced
Side = int | torch.SymInt
# filter name -> half its width at scale 1, in source pixels
_REACH = {"bilinear": 1, "bicubic": 2}
_WEIGHT_BITS, _MOST_BITS = 15, 22


def resize_like_evaluation(images_BCHW: Tensor, *, height: Side, width: Side, interpolation: str) -> Tensor:
    """Resize uint8 images as :func:`torchvision.transforms.v2.functional.resize` does on uint8, antialiased.

    Args:
        images_BCHW: uint8.
        height: New height.
        width: New width.
        interpolation: ``bilinear`` or ``bicubic``.

    Returns:
        int32 ``(B, C, height, width)`` with values 0 to 255.
    """
    wide_BCHN = _resample(images_BCHW, width, interpolation)
    return _resample(wide_BCHN.transpose(2, 3), height, interpolation).transpose(2, 3)


def nearest_like_evaluation(images_BCHW: Tensor, *, height: Side, width: Side) -> Tensor:
    """The nearest pixel as PyTorch chooses it, in single precision; ONNX's Resize rounds another quotient."""
    rows_BCHW = images_BCHW.index_select(2, _nearest(images_BCHW.shape[2], height))
    return rows_BCHW.index_select(3, _nearest(images_BCHW.shape[3], width))


def _nearest(given: Side, wanted: Side) -> Tensor:
    scale = torch.scalar_tensor(given, dtype=torch.float32) / torch.scalar_tensor(wanted, dtype=torch.float32)
    return (torch.arange(wanted, dtype=torch.float32) * scale).floor().clamp(max=given - 1).long()


def _resample(images_BCHW: Tensor, length: Side, interpolation: str) -> Tensor:
    """The last axis to a new length, int32."""
    sources_NT, weights_NT, bits = fixed_point_filter(images_BCHW.shape[-1], length, interpolation)
    taps = sources_NT.shape[1]
    gathered = images_BCHW.index_select(3, sources_NT.reshape(-1))
    gathered_BCHNT = gathered.reshape(*images_BCHW.shape[:3], length, taps)
    sums_BCHN = (gathered_BCHNT.to(torch.int32) * weights_NT).sum(-1, dtype=torch.int32)
    # adding half of the scale and cutting rounds halves up
    scale = torch.exp2(bits)
    levels_BCHN: Tensor = ((sums_BCHN.double() + scale / 2) / scale).floor().clamp(0, 255).to(torch.int32)
    return levels_BCHN


def fixed_point_filter(given: Side, wanted: Side, interpolation: str) -> tuple[Tensor, Tensor, Tensor]:
    """For each new pixel the source pixels that it is made of, and their weights as integers.

    Args:
        given: Length of the axis.
        wanted: Its new length ``N``.
        interpolation: ``bilinear`` or ``bicubic``.

    Returns:
        Positions, int64 (N, T); weights, int32 (N, T), zero where a tap is outside the filter or the image; and the
        number of bits of their scale, a double without dimensions.
    """
    reach = _REACH[interpolation]
    taps = 2 * torch.sym_max(reach, (reach * given + wanted - 1) // wanted) + 1
    # as tensors: sizes are symbols while the graph is traced, and only whole-number arithmetic on them is exact there
    given_, wanted_ = torch.scalar_tensor(given, dtype=torch.float64), torch.scalar_tensor(wanted, dtype=torch.float64)
    scale = given_ / wanted_
    stretch = scale.clamp(min=1)
    support = reach * stretch
    centre_N1 = (scale * (torch.arange(wanted, dtype=torch.float64) + 0.5)).unsqueeze(1)
    first_N1 = (centre_N1 - support + 0.5).floor().clamp(min=0)
    last_N1 = torch.minimum((centre_N1 + support + 0.5).floor(), given_)
    position_NT = first_N1 + torch.arange(taps, dtype=torch.float64)
    inside_NT = position_NT < last_N1
    weight_NT = _filter((position_NT - centre_N1 + 0.5) * (1 / stretch), interpolation) * inside_NT
    weight_NT = weight_NT / weight_NT.sum(1, keepdim=True)
    powers = torch.arange(1, _MOST_BITS + 1, dtype=torch.float64)
    bits = ((weight_NT.flatten().amax(0) * torch.exp2(powers) + 0.5).floor() < 2**_WEIGHT_BITS).to(torch.float64).sum()
    scaled_NT = weight_NT * torch.exp2(bits)
    whole_NT = torch.where(scaled_NT < 0, (scaled_NT - 0.5).ceil(), (scaled_NT + 0.5).floor())
    return torch.minimum(position_NT, given_ - 1).long(), whole_NT.to(torch.int32), bits


def _filter(distance: Tensor, interpolation: str) -> Tensor:
    """The filter's height at a distance in (stretched) source pixels."""
    distance = distance.abs()
    if interpolation == "bilinear":
        return (1 - distance).clamp(min=0)
    # Keys' cubic with a = -0.5, as Pillow has it (Keys 1981, doi 10.1109/TASSP.1981.1163711)
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = -0.5 * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))

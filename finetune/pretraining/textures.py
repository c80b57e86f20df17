"""Textures without figures: noise filtered and folded into bands, ridges and cells, and dead leaves.

Sources: Baradad et al. 2021, "Learning to See by Looking at Noise" (spectrum models and dead leaves); Lee, Mumford and
Huang 2001 (dead leaves: discs of power-law size that occlude each other have the statistics of natural images); Perlin
1985 (functions of noise as materials).
"""

# B = images, K = classes, H/W = pixels, L = leaves

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.pretraining.keyed import Draw, fold, normals
from finetune.pretraining.pose import canvas
from finetune.pretraining.shapes import coverage

FOLDS = 6  # ways to turn noise into a pattern


@dataclass(frozen=True, kw_only=True)
class Textures:
    """Patterns of filtered noise, one per class.

    Args:
        spectrum_K5: Exponent of the power law, centre of the band (cycles per canvas), its width in octaves,
            orientation in radians, elongation.
        fold_K: Number of the function, below FOLDS, that is applied to the noise, int64.
        bands_K: Frequency of that function.
    """

    spectrum_K5: Tensor
    fold_K: Tensor
    bands_K: Tensor


def textures(keys_K: Tensor) -> Textures:
    """Draw random textures.

    Args:
        keys_K: int64 keys, one per class.
    """
    draw = Draw(keys_K, 21, 12)
    exponent_K = draw.uniform(0.4, 2.6)
    centre_K = draw.log_uniform(1.5, 14.0)
    octaves_K = draw.log_uniform(0.25, 3.0)
    turn_K = draw.uniform(0.0, math.pi)
    long_K = torch.where(draw.chance(0.4), 1.0, draw.log_uniform(1.0, 8.0))
    return Textures(
        spectrum_K5=torch.stack([exponent_K, centre_K, octaves_K, turn_K, long_K], dim=1),
        fold_K=draw.integer(FOLDS),
        bands_K=draw.uniform(0.6, 2.5),
    )


def filtered_noise(keys_B: Tensor, spectrum_B5: Tensor, size: int) -> Tensor:
    """Draw Gaussian noise with the given spectrum, with mean 0 and variance 1 in every image.

    Args:
        keys_B: int64 keys, one per image.
        spectrum_B5: Spectrum of each image, as in :class:`Textures`.
        size: Side of the images in pixels.

    Returns:
        float32 (B, H, W).
    """
    white_BHW = normals(fold(keys_B, 22), size * size).view(-1, size, size)
    fx = torch.fft.rfftfreq(size, 1.0 / size, device=keys_B.device)[None, None, :]
    fy = torch.fft.fftfreq(size, 1.0 / size, device=keys_B.device)[None, :, None]
    exponent, centre, octaves, turn, long = (part_B[:, None, None] for part_B in spectrum_B5.unbind(1))
    along, across = turn.cos() * fx + turn.sin() * fy, turn.cos() * fy - turn.sin() * fx
    frequency = torch.sqrt((along * long) ** 2 + across**2)
    off_octaves = torch.log2(frequency.clamp_min(0.25) / centre) / octaves
    gain = frequency.clamp_min(0.5) ** (-exponent) * torch.exp(-0.5 * off_octaves**2)
    shaped_BHW: Tensor = torch.fft.irfft2(torch.fft.rfft2(white_BHW) * gain, s=(size, size))
    shaped_BHW = shaped_BHW - shaped_BHW.mean((1, 2), keepdim=True)
    return shaped_BHW / shaped_BHW.std((1, 2), keepdim=True).clamp_min(1e-8)


def folded(noise_BHW: Tensor, fold_B: Tensor, bands_B: Tensor) -> Tensor:
    """Turn noise into a pattern in [0, 1]: clouds, stripes, ridges, blotches, cells or contour lines.

    Args:
        noise_BHW: Noise with mean 0 and variance 1, float32.
        fold_B: Number of the function, int64 below FOLDS.
        bands_B: Frequency of the function.
    """
    bands = bands_B[:, None, None]
    choices_FBHW = torch.stack(
        [
            torch.sigmoid(1.7 * noise_BHW),
            0.5 + 0.5 * torch.sin(2.5 * bands * noise_BHW),
            1.0 - (bands * noise_BHW).abs().clamp_max(1.5) / 1.5,
            torch.sigmoid(12.0 * (noise_BHW - bands + 1.2)),
            (noise_BHW * bands).frac().abs(),
            torch.sigmoid(14.0 * (0.25 - (torch.sin(2.0 * bands * noise_BHW)).abs())),
        ]
    )
    return choices_FBHW[fold_B, torch.arange(noise_BHW.shape[0], device=noise_BHW.device)]


def texture_values(patterns: Textures, keys_B: Tensor, size: int) -> Tensor:
    """Draw one image of each texture, with slight variations of scale and direction.

    Args:
        patterns: Textures, one per image.
        keys_B: int64 keys, one per image.
        size: Side of the images in pixels.

    Returns:
        float32 (B, H, W) in [0, 1].
    """
    draw = Draw(keys_B, 23, 8)
    spectrum_B5 = patterns.spectrum_K5.clone()
    spectrum_B5[:, 1] *= draw.log_uniform(0.8, 1.25)
    spectrum_B5[:, 3] += draw.uniform(-0.3, 0.3)
    return folded(filtered_noise(keys_B, spectrum_B5, size), patterns.fold_K, patterns.bands_K)


@dataclass(frozen=True, kw_only=True)
class Leaves:
    """Parameters of dead-leaves images, one set per class.

    Args:
        corners_K: Number of corners of a leaf, a regular polygon; 0 for a disc. float32.
        elongation_K: Ratio of a leaf's length to its width.
        exponent_K: Exponent of the power law of the radii.
        radii_K2: Smallest and largest radius, in canvas units.
        hole_K: Radius of a leaf's hole as a share of the leaf's radius; 0 for no hole.
    """

    corners_K: Tensor
    elongation_K: Tensor
    exponent_K: Tensor
    radii_K2: Tensor
    hole_K: Tensor


def leaves(keys_K: Tensor) -> Leaves:
    """Draw random parameters of dead-leaves images.

    Args:
        keys_K: int64 keys, one per class.
    """
    draw = Draw(keys_K, 24, 12)
    corners_K = torch.where(draw.chance(0.3), 0.0, 3.0 + draw.integer(4).float())
    elongation_K = torch.where(draw.chance(0.35), 1.0, draw.log_uniform(1.2, 6.0))
    exponent_K = draw.uniform(1.0, 3.5)
    small_K = draw.log_uniform(0.05, 0.2)
    return Leaves(
        corners_K=corners_K,
        elongation_K=elongation_K,
        exponent_K=exponent_K,
        radii_K2=torch.stack([small_K, small_K * draw.log_uniform(1.5, 6.0)], dim=1),
        hole_K=torch.where(draw.chance(0.7), 0.0, draw.uniform(0.3, 0.75)),
    )


def dead_leaves(worlds: Leaves, keys_B: Tensor, size: int, *, count: int = 40) -> Tensor:
    """Lay leaves over each other; each pixel shows the random value of its top leaf, with antialiased edges.

    Args:
        worlds: Parameters of the leaves, one set per image.
        keys_B: int64 keys, one per image.
        size: Side of the images in pixels.
        count: Number of leaves per image.

    Returns:
        float32 (B, 3, H, W) in [0, 1]: three independent random values per leaf, for colour.
    """
    draw = Draw(keys_B, 25, 9 * count + 8)
    x_HW, y_HW = canvas(size, keys_B.device)
    shown_B3HW = draw.several(3)[:, :, None, None].expand(-1, -1, size, size)
    low_B, high_B = worlds.radii_K2.unbind(1)
    power_B = 1.0 - worlds.exponent_K - 1e-3
    sector_B11 = (2.0 * math.pi / worlds.corners_K.clamp_min(3.0))[:, None, None]
    smooth_B11 = (worlds.corners_K < 3.0)[:, None, None]
    stretch_B11 = worlds.elongation_K.sqrt()[:, None, None]
    common_turn_B = draw.uniform(0.0, math.pi)
    aligned_B = draw.chance(0.4)
    for _ in range(count):
        place_B2, spread_B = draw.several(2, -1.15, 1.15), draw.uniform()
        radius_B11 = ((low_B**power_B + spread_B * (high_B**power_B - low_B**power_B)) ** (1.0 / power_B))[
            :, None, None
        ]
        turn_B = torch.where(aligned_B, common_turn_B + draw.uniform(-0.2, 0.2), draw.uniform(0.0, 2.0 * math.pi))
        cos_B11, sin_B11 = turn_B.cos()[:, None, None], turn_B.sin()[:, None, None]
        dx, dy = x_HW - place_B2[:, 0, None, None], y_HW - place_B2[:, 1, None, None]
        u, v = (cos_B11 * dx + sin_B11 * dy) / stretch_B11, (cos_B11 * dy - sin_B11 * dx) * stretch_B11
        away_BHW = torch.sqrt(u * u + v * v + 1e-8)
        angle_BHW = torch.atan2(v, u)
        inward = angle_BHW - sector_B11 * torch.floor(angle_BHW / sector_B11 + 0.5)
        polygon_BHW = torch.where(smooth_B11, away_BHW, away_BHW * inward.cos() / (0.5 * sector_B11).cos())
        inside_BHW = torch.minimum(radius_B11 - polygon_BHW, polygon_BHW - worlds.hole_K[:, None, None] * radius_B11)
        solid_B11 = (worlds.hole_K == 0.0)[:, None, None]
        inside_BHW = torch.where(solid_B11, radius_B11 - polygon_BHW, inside_BHW)
        leaf_B3 = draw.several(3)
        shown_B3HW = torch.lerp(
            shown_B3HW, leaf_B3[:, :, None, None], coverage(inside_BHW, size)[:, None].to(shown_B3HW.dtype)
        )
    return shown_B3HW

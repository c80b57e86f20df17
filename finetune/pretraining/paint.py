"""Colours, fills and backgrounds, which turn a figure's coverage into an image.

This module varies everything that may vary within a class: polarity, contrast, hue, and the background of the figure
(Anderson and Farrell 2022 show that colour and background help more than further fractals).
"""

# B = images, H/W = pixels

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.pretraining.keyed import Draw, fold
from finetune.pretraining.pose import canvas
from finetune.pretraining.textures import FOLDS, dead_leaves, filtered_noise, folded, leaves


@dataclass(frozen=True, kw_only=True)
class Colours:
    """The four colours of each image, float32 (B, 3) in [0, 1]: two of the background, two of the figure."""

    ground: Tensor
    second_ground: Tensor
    figure: Tensor
    second_figure: Tensor


def draw_colours(keys_B: Tensor, *, stark: float = 0.25, tinted: float = 0.75) -> Colours:
    """Draw colours whose figure and background differ in brightness by at least a fifth.

    Args:
        keys_B: int64 keys, one per image.
        stark: Share of images in white on black or black on white.
        tinted: Share of the other images that are coloured instead of grey.
    """
    draw = Draw(keys_B, 31, 24)
    gap_B = draw.uniform(0.22, 0.95)
    dark_B = draw.uniform() * (1.0 - gap_B)
    light_B = dark_B + gap_B
    is_stark_B, light_ground_B = draw.chance(stark), draw.chance(0.5)
    dark_B, light_B = torch.where(is_stark_B, 0.0, dark_B), torch.where(is_stark_B, 1.0, light_B)
    strength_B1 = torch.where(draw.chance(tinted) & ~is_stark_B, draw.uniform(0.05, 0.45), 0.0)[:, None]
    wander_B = torch.where(is_stark_B, 0.0, draw.uniform(0.0, 0.5))

    def colour(level_B: Tensor) -> Tensor:
        tint_B3 = draw.several(3, -1.0, 1.0)
        return (level_B[:, None] + strength_B1 * (tint_B3 - tint_B3.mean(1, keepdim=True))).clamp(0.0, 1.0)

    ground_B = torch.where(light_ground_B, light_B, dark_B)
    figure_B = torch.where(light_ground_B, dark_B, light_B)
    # the second colours stay on the same side of the brightness gap
    away_B = torch.where(light_ground_B, 1.0, -1.0) * wander_B * 0.5
    return Colours(
        ground=colour(ground_B),
        second_ground=colour((ground_B + away_B * draw.uniform()).clamp(0.0, 1.0)),
        figure=colour(figure_B),
        second_figure=colour((figure_B - away_B * draw.uniform()).clamp(0.0, 1.0)),
    )


def mixed(first_B3: Tensor, second_B3: Tensor, share_BHW: Tensor) -> Tensor:
    """Mix two colours pixel by pixel: float32 (B, 3, H, W)."""
    share_B1HW = share_BHW[:, None]
    return first_B3[:, :, None, None] * (1.0 - share_B1HW) + second_B3[:, :, None, None] * share_B1HW


def fills(keys_B: Tensor, size: int, *, salt: int, plain: float) -> Tensor:
    """Draw how two colours share an area: plain, a gradient, or a random texture.

    Args:
        keys_B: int64 keys, one per image.
        size: Side of the images in pixels.
        salt: Number that separates figure and background.
        plain: Share of images whose area has one colour; half of the others have a gradient.

    Returns:
        float32 (B, H, W) in [0, 1].
    """
    draw = Draw(keys_B, 3200 + salt, 16)
    x_HW, y_HW = canvas(size, keys_B.device)
    turn_B, kind_B = draw.uniform(0.0, 2.0 * math.pi), draw.uniform()
    ramp_BHW = 0.5 + 0.4 * (turn_B.cos()[:, None, None] * x_HW + turn_B.sin()[:, None, None] * y_HW)
    spectrum_B5 = torch.stack(
        [
            draw.uniform(0.0, 2.5),
            draw.log_uniform(1.0, 12.0),
            draw.log_uniform(0.5, 3.0),
            draw.uniform(0.0, math.pi),
            draw.log_uniform(1.0, 6.0),
        ],
        dim=1,
    )
    noise_BHW = filtered_noise(fold(keys_B, salt), spectrum_B5, size)
    pattern_BHW = folded(noise_BHW, draw.integer(FOLDS), draw.uniform(0.6, 2.0))
    kind_B11 = kind_B[:, None, None]
    filled_BHW = torch.where(kind_B11 < 0.5 + 0.5 * plain, ramp_BHW, pattern_BHW)
    return torch.where(kind_B11 < plain, 0.0, filled_BHW).clamp(0.0, 1.0)


def relief(inside_BHW: Tensor, keys_B: Tensor, size: int) -> Tensor:
    """Shade a figure as a relief, from its signed distance: rounded at the rim, lit from one side.

    Args:
        inside_BHW: Signed distance in canvas units, positive inside.
        keys_B: int64 keys, one per image.
        size: Side of the images in pixels.

    Returns:
        float32 (B, H, W): the brightness that multiplies a figure's colour, from 0.1 to 1.
    """
    draw = Draw(keys_B, 36, 8)
    rim_B11 = draw.log_uniform(0.1, 0.7)[:, None, None]
    into_BHW = (inside_BHW / rim_B11).clamp(0.0, 1.0)
    height_BHW = rim_B11 * torch.sqrt(1.0 - (1.0 - into_BHW) ** 2 + 1e-4)
    near = torch.nn.functional.pad(height_BHW[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    # central differences, in canvas units
    slope_x = (near[:, 1:-1, 2:] - near[:, 1:-1, :-2]) * (0.25 * size)
    slope_y = (near[:, 2:, 1:-1] - near[:, :-2, 1:-1]) * (0.25 * size)
    turn_B, raised_B = draw.uniform(0.0, 2.0 * math.pi), draw.uniform(0.3, 1.2)
    lamp = [
        part_B[:, None, None]
        for part_B in (turn_B.cos() * raised_B.cos(), turn_B.sin() * raised_B.cos(), raised_B.sin())
    ]
    facing_BHW = (lamp[2] - slope_x * lamp[0] - slope_y * lamp[1]) / torch.sqrt(1.0 + slope_x**2 + slope_y**2)
    ambient_B11 = draw.uniform(0.1, 0.45)[:, None, None]
    return ambient_B11 + (1.0 - ambient_B11) * facing_BHW.clamp(0.0, 1.0)


def grounds(colours: Colours, keys_B: Tensor, size: int, *, plain: float = 0.4, leafy: float = 0.12) -> Tensor:
    """Draw backgrounds of two colours, some of them dead leaves.

    Args:
        colours: Colours of each image.
        keys_B: int64 keys, one per image.
        size: Side of the images in pixels.
        plain: Share of images with a background of one colour.
        leafy: Share of images with dead leaves.

    Returns:
        float32 (B, 3, H, W).
    """
    share_BHW = fills(keys_B, size, salt=1, plain=plain)
    chosen_N = (Draw(keys_B, 33, 1).chance(leafy)).nonzero()[:, 0]
    if len(chosen_N):
        world_keys_N = fold(keys_B[chosen_N], 34)
        patches_N3HW = dead_leaves(leaves(world_keys_N), world_keys_N, size, count=16)
        share_BHW = share_BHW.index_copy(0, chosen_N, patches_N3HW[:, 0])
    return mixed(colours.ground, colours.second_ground, share_BHW)


def over(ground_B3HW: Tensor, figure_B3HW: Tensor, coverage_BHW: Tensor) -> Tensor:
    """Lay the figure over the background: float32 (B, 3, H, W)."""
    return torch.lerp(ground_B3HW, figure_B3HW, coverage_BHW[:, None])


def softened(images_B3HW: Tensor, keys_B: Tensor, *, blurred: float = 0.2) -> Tensor:
    """Blur some images by a small kernel, so that edges have more than one width.

    Args:
        images_B3HW: Images, float32.
        keys_B: int64 keys, one per image.
        blurred: Share of images to blur.
    """
    near = torch.nn.functional.pad(images_B3HW, (1, 1, 1, 1), mode="replicate")
    soft = torch.nn.functional.avg_pool2d(near, 3, stride=1)
    draw = Draw(keys_B, 35, 2)
    weight_B = torch.where(draw.chance(blurred), draw.uniform(0.3, 1.0), 0.0)
    return torch.lerp(images_B3HW, soft, weight_B[:, None, None, None])


def to_bytes(images_B3HW: Tensor) -> Tensor:
    """Convert images in [0, 1] to uint8, rounded to nearest; clip values outside."""
    return (images_B3HW.clamp(0.0, 1.0) * 255.0 + 0.5).to(torch.uint8)

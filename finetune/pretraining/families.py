"""Families of classes: each draws the formulas of its classes once, and then images of them for any keys."""

# B = images, K = classes, H/W = pixels

from typing import Protocol

import torch
from torch import Tensor

from finetune.pretraining import ifs
from finetune.pretraining.keyed import Draw, fold
from finetune.pretraining.paint import draw_colours, fills, grounds, mixed, over, relief, softened
from finetune.pretraining.pose import draw_pose
from finetune.pretraining.shapes import Contours, contour_distance, contours, coverage, glyphs, stroke_distance
from finetune.pretraining.textures import (
    Leaves,
    Textures,
    dead_leaves,
    leaves,
    texture_values,
    textures,
)


class Family(Protocol):
    """A family of classes of one kind."""

    def render(self, classes_B: Tensor, keys_B: Tensor, size: int) -> Tensor:
        """Draw images of the given classes of this family, float32 (B, 3, H, W) in [0, 1]."""


class PlainFractals:
    """FractalDB's recipe: one perturbed fractal in one colour on black (Kataoka et al. 2020).

    Args:
        keys_K: int64 keys, one per class; images are drawn on their device.
    """

    def __init__(self, keys_K: Tensor) -> None:
        self.codes = ifs.good_codes(keys_K.cpu(), singular_values=False).to(keys_K.device)

    def render(self, classes_B: Tensor, keys_B: Tensor, size: int) -> Tensor:
        codes = ifs.perturbed(self.codes.select(classes_B), keys_B, amount=0.1)
        points_B2P, hue_BP = ifs.attractor(codes)
        points_B2P = ifs.fitted(points_B2P.nan_to_num(0.0, 1e6, -1e6))
        draw = Draw(keys_B, 41, 8)
        # FractalDB flips but does not rotate: four images for each perturbation
        flips_B2 = draw.several(2, -1.0, 1.0).sign()
        counts_BHW, _ = ifs.density(points_B2P * flips_B2[..., None] * 0.95, hue_BP, size)
        shown_BHW = (counts_BHW / 3.0).clamp_max(1.0)
        return shown_BHW[:, None] * draw.several(3, 0.3, 1.0)[:, :, None, None]


class Fractals:
    """Coloured fractals on backgrounds, one or two of the same code per image (Anderson and Farrell 2022).

    Args:
        keys_K: int64 keys, one per class; images are drawn on their device.
    """

    def __init__(self, keys_K: Tensor) -> None:
        self.codes = ifs.good_codes(keys_K.cpu(), singular_values=True).to(keys_K.device)

    def render(self, classes_B: Tensor, keys_B: Tensor, size: int) -> Tensor:
        codes = ifs.perturbed(self.codes.select(classes_B), keys_B, amount=0.06)
        points_B2P, hue_BP = ifs.attractor(codes)
        points_B2P = ifs.fitted(points_B2P.nan_to_num(0.0, 1e6, -1e6))
        colours = draw_colours(keys_B)
        picture_B3HW = grounds(colours, keys_B, size)
        draw = Draw(keys_B, 42, 8)
        gain_B = draw.log_uniform(0.15, 2.0)[:, None, None]
        glow_B = draw.uniform(0.0, 0.6)[:, None, None]
        for copy, (share, scale) in enumerate([(0.25, (0.2, 0.5)), (1.0, (0.45, 1.05))]):
            # the smaller copy lies behind; most images have none
            pose = draw_pose(keys_B, salt=copy, scale=scale, turn_degrees=60.0, bend=0.0)
            counts_BHW, hue_BHW = ifs.density(pose.to_canvas(points_B2P), hue_BP, size)
            counts_BHW = counts_BHW * (pose.scale_B[:, None, None] * size / 64.0) ** 2
            alpha_BHW = 1.0 - torch.exp(-gain_B * counts_BHW)
            shade_BHW = 1.0 - glow_B * torch.exp(-0.15 * counts_BHW)
            shown_B = draw.chance(share)[:, None, None]
            figure_B3HW = mixed(colours.figure, colours.second_figure, hue_BHW) * shade_BHW[:, None]
            picture_B3HW = over(picture_B3HW, figure_B3HW, alpha_BHW * shown_B)
        return softened(picture_B3HW, keys_B)


class ContourShapes:
    """Closed contours, filled, raised, drawn as lines, or nested, on backgrounds (Kataoka et al. 2022; Gielis 2003).

    Args:
        keys_K: int64 keys, one per class; images are drawn on their device.
    """

    def __init__(self, keys_K: Tensor) -> None:
        self.shapes = contours(keys_K)

    def render(self, classes_B: Tensor, keys_B: Tensor, size: int) -> Tensor:
        shapes = Contours(
            gielis_K4=self.shapes.gielis_K4[classes_B], harmonics_KJ3=self.shapes.harmonics_KJ3[classes_B]
        )
        pose = draw_pose(keys_B, salt=10, scale=(0.3, 0.95), turn_degrees=50.0)
        inside_BHW = contour_distance(shapes, pose, size)
        draw = Draw(keys_B, 43, 8)
        style_B, pen_B = draw.uniform()[:, None, None], draw.log_uniform(0.04, 0.16)[:, None, None]
        step_B = draw.uniform(2.5, 5.0)[:, None, None] * pen_B
        line_BHW = coverage(0.5 * pen_B - (inside_BHW - 0.5 * pen_B).abs(), size)
        to_ring_BHW = (torch.remainder(inside_BHW, step_B) - 0.5 * pen_B).abs()
        rings_BHW = coverage(0.5 * pen_B - to_ring_BHW, size) * coverage(inside_BHW, size)
        filled_BHW = coverage(inside_BHW, size)
        alpha_BHW = torch.where(style_B < 0.3, line_BHW, torch.where(style_B < 0.45, rings_BHW, filled_BHW))
        colours = draw_colours(keys_B)
        share_BHW = torch.where(style_B > 0.85, line_BHW, fills(keys_B, size, salt=2, plain=0.45))
        figure_B3HW = mixed(colours.figure, colours.second_figure, share_BHW)
        lit_B = (draw.chance(0.4) & (style_B[:, 0, 0] > 0.45))[:, None, None]
        shade_BHW = torch.where(lit_B, relief(inside_BHW, keys_B, size), 1.0)
        return softened(over(grounds(colours, keys_B, size), figure_B3HW * shade_BHW[:, None], alpha_BHW), keys_B)


class Glyphs:
    """Invented characters of a few strokes, drawn with pens of many widths on backgrounds.

    Args:
        keys_K: int64 keys, one per class; images are drawn on their device.
    """

    def __init__(self, keys_K: Tensor) -> None:
        self.lines_KSV2 = glyphs(keys_K)

    def render(self, classes_B: Tensor, keys_B: Tensor, size: int) -> Tensor:
        pose = draw_pose(keys_B, salt=20, scale=(0.3, 0.95), turn_degrees=22.0, stretch=1.5, shear=0.3, bend=0.13)
        lines_BSV2 = self.lines_KSV2[classes_B]
        # an unsteady hand: whole strokes are slightly displaced
        draw = Draw(keys_B, 44, 24)
        strokes = lines_BSV2.shape[1]
        lines_BSV2 = lines_BSV2 + draw.several(2 * strokes, -0.07, 0.07).view(-1, strokes, 1, 2)
        away_BHW = stroke_distance(lines_BSV2, pose, size)
        pen_B = draw.log_uniform(0.05, 0.27) * pose.scale_B
        pen_B11 = pen_B.clamp_min(1.2 / size)[:, None, None]
        solid_BHW = coverage(pen_B11 - away_BHW, size)
        edge_BHW = coverage(0.35 * pen_B11 - (away_BHW - 0.8 * pen_B11).abs(), size)
        hollow_B = (draw.chance(0.12) & (pen_B * size > 5.0))[:, None, None]
        colours = draw_colours(keys_B, stark=0.3)
        share_BHW = fills(keys_B, size, salt=2, plain=0.7)
        figure_B3HW = mixed(colours.figure, colours.second_figure, share_BHW)
        alpha_BHW = torch.where(hollow_B, edge_BHW, solid_BHW)
        return softened(over(grounds(colours, keys_B, size, plain=0.55), figure_B3HW, alpha_BHW), keys_B, blurred=0.35)


class NoiseTextures:
    """Filtered and folded noise between two colours (Baradad et al. 2021).

    Args:
        keys_K: int64 keys, one per class; images are drawn on their device.
    """

    def __init__(self, keys_K: Tensor) -> None:
        self.patterns = textures(keys_K)

    def render(self, classes_B: Tensor, keys_B: Tensor, size: int) -> Tensor:
        patterns = Textures(
            spectrum_K5=self.patterns.spectrum_K5[classes_B],
            fold_K=self.patterns.fold_K[classes_B],
            bands_K=self.patterns.bands_K[classes_B],
        )
        colours = draw_colours(keys_B, stark=0.1)
        return softened(mixed(colours.ground, colours.figure, texture_values(patterns, keys_B, size)), keys_B)


class DeadLeaves:
    """Dead-leaves images: leaves that occlude each other (Lee, Mumford and Huang 2001; Baradad et al. 2021).

    Args:
        keys_K: int64 keys, one per class; images are drawn on their device.
    """

    def __init__(self, keys_K: Tensor) -> None:
        self.worlds = leaves(keys_K)

    def render(self, classes_B: Tensor, keys_B: Tensor, size: int) -> Tensor:
        world = self.worlds
        worlds = Leaves(
            corners_K=world.corners_K[classes_B],
            elongation_K=world.elongation_K[classes_B],
            exponent_K=world.exponent_K[classes_B],
            radii_K2=world.radii_K2[classes_B],
            hole_K=world.hole_K[classes_B],
        )
        values_B3HW = dead_leaves(worlds, keys_B, size)
        draw = Draw(keys_B, 45, 4)
        # from grey to full colour, and from low to full contrast
        grey_B3HW = values_B3HW[:, :1].expand_as(values_B3HW)
        tint_B = torch.where(draw.chance(0.25), 0.0, draw.uniform())[:, None, None, None]
        contrast_B, middle_B = draw.uniform(0.4, 1.0)[:, None, None, None], draw.uniform()[:, None, None, None]
        shown_B3HW = torch.lerp(grey_B3HW, values_B3HW, tint_B) * contrast_B + (1.0 - contrast_B) * middle_B
        return softened(shown_B3HW, fold(keys_B, 46))

"""Figures with edges: closed contours from Gielis' superformula with harmonics, and glyphs of a few pen strokes.

Sources: Kataoka et al. 2022, "Replacing Labeled Real-image Datasets with Auto-generated Contours" (radial contours
teach what fractals teach); Gielis 2003, "A generic geometric transformation that unifies a wide range of natural and
abstract shapes"; Lake, Salakhutdinov and Tenenbaum 2015 (characters as programs of strokes). No glyph is taken from any
alphabet: a class is a random program of two to four strokes between the points of a lattice.
"""

# B = images, K = classes, H/W = pixels, S = strokes, V = vertices of a stroke's polyline

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.pretraining.keyed import Draw
from finetune.pretraining.pose import Pose

STROKES = 4
VERTICES = 8


@dataclass(frozen=True, kw_only=True)
class Contours:
    """Radial contours, one per class.

    Args:
        gielis_K4: Rotational symmetry m and exponents n1, n2, n3 of the superformula.
        harmonics_KJ3: Frequency, amplitude and phase of the sinusoids that multiply the radius.
    """

    gielis_K4: Tensor
    harmonics_KJ3: Tensor


def contours(keys_K: Tensor) -> Contours:
    """Draw random contours: polygons, stars, flowers, blobs and shapes between them.

    Args:
        keys_K: int64 keys, one per class.
    """
    draw = Draw(keys_K, 11, 24)
    symmetry_K = draw.integer(9).float()  # 0 gives a circle, which the harmonics turn into a blob
    n1_K, n2_K = draw.log_uniform(0.4, 12.0), draw.log_uniform(0.6, 9.0)
    n3_K = torch.where(draw.chance(0.6), n2_K, draw.log_uniform(0.6, 9.0))
    frequency_K3 = 1.0 + (draw.several(3) * 7).floor()
    loud_K1 = torch.where(draw.chance(0.35), 0.0, draw.uniform(0.1, 0.5))[:, None]
    amplitude_K3 = loud_K1 * draw.several(3, -1.0, 1.0) / frequency_K3.sqrt()
    phase_K3 = draw.several(3, 0.0, 2.0 * math.pi)
    return Contours(
        gielis_K4=torch.stack([symmetry_K, n1_K, n2_K, n3_K], dim=1),
        harmonics_KJ3=torch.stack([frequency_K3, amplitude_K3, phase_K3], dim=-1),
    )


def contour_distance(shapes: Contours, pose: Pose, size: int) -> Tensor:
    """Compute how far inside the contour each pixel is, along its radius, in canvas units; negative outside.

    Args:
        shapes: Contours, one per image.
        pose: Poses, one per image.
        size: Side of the images in pixels.

    Returns:
        float32 (B, H, W).
    """
    x_BHW, y_BHW = pose.to_figure(size).unbind(1)
    reach_B11 = _largest_radius(shapes)[:, None, None]
    radius_BHW = _radius(shapes, torch.atan2(y_BHW, x_BHW)) / reach_B11
    away_BHW = torch.sqrt(x_BHW**2 + y_BHW**2 + 1e-8)
    return (radius_BHW - away_BHW) * pose.scale_B[:, None, None]


def _radius(shapes: Contours, angle_BHW: Tensor) -> Tensor:
    m, n1, n2, n3 = (part_B[:, None, None] for part_B in shapes.gielis_K4.unbind(1))
    quarter = 0.25 * m * angle_BHW
    corner = (quarter.cos().abs() + 1e-4) ** n2 + (quarter.sin().abs() + 1e-4) ** n3
    radius_BHW = corner ** (-1.0 / n1)
    wave_BHW = torch.ones_like(radius_BHW)
    for frequency, amplitude, phase in (part_B3.unbind(1) for part_B3 in shapes.harmonics_KJ3.unbind(1)):
        wave_BHW = wave_BHW + amplitude[:, None, None] * torch.cos(
            frequency[:, None, None] * angle_BHW + phase[:, None, None]
        )
    return radius_BHW * wave_BHW.clamp_min(0.08)


def _largest_radius(shapes: Contours) -> Tensor:
    angles = torch.linspace(-math.pi, math.pi, 181, device=shapes.gielis_K4.device)
    return _radius(shapes, angles.expand(shapes.gielis_K4.shape[0], 1, -1)).amax((1, 2)).clamp_min(1e-3)


def glyphs(keys_K: Tensor) -> Tensor:
    """Draw random glyphs as polylines: straight strokes, arcs and loops between the points of a 3 x 3 lattice.

    Args:
        keys_K: int64 keys, one per class.

    Returns:
        float32 (K, S, V, 2) in figure coordinates; a glyph of fewer than S strokes repeats its first stroke.
    """
    draw = Draw(keys_K, 12, 2 + 9 * STROKES)
    strokes_K = 2 + draw.integer(STROKES - 1)
    along_V1 = torch.linspace(0.0, 1.0, VERTICES, device=keys_K.device)[:, None]
    lattice = torch.tensor([0.62, 0.85], device=keys_K.device)
    lines: list[Tensor] = []
    for stroke in range(STROKES):
        start_K2 = (draw.several(2) * 3).floor().clamp_max(2) - 1.0
        # a step of one or two lattice points, never zero: the end is one of the eight other points
        end_index_K = (((start_K2[:, 1] + 1) * 3 + start_K2[:, 0] + 1).long() + 1 + draw.integer(8)) % 9
        end_K2 = torch.stack([end_index_K % 3, end_index_K // 3], dim=1).float() - 1.0
        start_K12, end_K12 = (start_K2 * lattice)[:, None], (end_K2 * lattice)[:, None]
        wobble_K12 = draw.several(2, -0.12, 0.12)[:, None]
        bow_K11 = torch.where(draw.chance(0.45), 0.0, draw.uniform(-1.3, 1.3))[:, None, None]
        normal_K12 = torch.stack([start_K12[..., 1] - end_K12[..., 1], end_K12[..., 0] - start_K12[..., 0]], dim=-1)
        open_KV2 = start_K12 + along_V1 * (end_K12 - start_K12)
        open_KV2 = open_KV2 + bow_K11 * 4.0 * along_V1 * (1.0 - along_V1) * 0.5 * normal_K12 + wobble_K12
        turn_V1 = 2.0 * math.pi * along_V1
        loop_V2 = torch.cat([turn_V1.cos(), turn_V1.sin()], dim=1)
        loop_KV2 = 0.5 * (start_K12 + end_K12) + (0.2 + 0.25 * (end_K12 - start_K12).abs()) * loop_V2
        line_KV2 = torch.where(draw.chance(0.18)[:, None, None], loop_KV2, open_KV2)
        unused_K11 = (stroke >= strokes_K)[:, None, None]
        lines.append(torch.where(unused_K11, lines[0], line_KV2) if lines else line_KV2)
    lines_KSV2 = torch.stack(lines, dim=1)
    flat_KN2 = lines_KSV2.flatten(1, 2)
    low_K12, high_K12 = flat_KN2.amin(1, keepdim=True), flat_KN2.amax(1, keepdim=True)
    half_K11 = (0.5 * (high_K12 - low_K12)).amax(2, keepdim=True).clamp_min(0.3)
    return ((flat_KN2 - 0.5 * (low_K12 + high_K12)) / half_K11).view_as(lines_KSV2)


def stroke_distance(lines_BSV2: Tensor, pose: Pose, size: int) -> Tensor:
    """Compute the distance of each pixel from the nearest stroke, in canvas units.

    Args:
        lines_BSV2: Glyphs, one per image.
        pose: Poses, one per image.
        size: Side of the images in pixels.

    Returns:
        float32 (B, H, W), zero on the line.
    """
    x_BHW, y_BHW = pose.to_figure(size).unbind(1)
    nearest_BHW = torch.full_like(x_BHW, 1e6)
    starts, ends = lines_BSV2[:, :, :-1].flatten(1, 2), lines_BSV2[:, :, 1:].flatten(1, 2)
    for start_B2, end_B2 in zip(starts.unbind(1), ends.unbind(1), strict=True):
        along_B2 = end_B2 - start_B2
        inverse_B1 = 1.0 / (along_B2**2).sum(1, keepdim=True).clamp_min(1e-6)
        sx, sy, ax, ay, inverse = (
            part[:, None, None] for part in torch.cat([start_B2, along_B2, inverse_B1], dim=1).unbind(1)
        )
        dx, dy = x_BHW - sx, y_BHW - sy
        share = ((dx * ax + dy * ay) * inverse).clamp(0.0, 1.0)
        dx, dy = dx - share * ax, dy - share * ay
        nearest_BHW = torch.minimum(nearest_BHW, dx * dx + dy * dy)
    return nearest_BHW.sqrt() * pose.scale_B[:, None, None]


def coverage(inside: Tensor, size: int) -> Tensor:
    """Turn a signed distance into the covered share of each pixel, for antialiased edges one pixel wide.

    Args:
        inside: Signed distance in canvas units, positive inside.
        size: Side of the images in pixels; a pixel is 2 / size canvas units.
    """
    return (0.5 + inside * (0.5 * size)).clamp(0.0, 1.0)

"""The pose of a figure on the canvas: scale, rotation, shear, position and a gentle bend, one draw per image."""

# B = images, H/W = pixels, P = points

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.pretraining.keyed import Draw


def canvas(size: int, device: torch.device) -> Tensor:
    """Return the pixel centres of a square canvas: x to the right and y downwards, each from -1 to 1.

    Args:
        size: Side of the canvas in pixels.
        device: Device of the result.

    Returns:
        float32 (2, H, W).
    """
    line = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (2.0 / size) - 1.0
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([columns, rows])


@dataclass(frozen=True, kw_only=True)
class Pose:
    """An affine map from figure coordinates (about [-1, 1]) to the canvas, and a bend of the canvas before it.

    Args:
        matrix_B22: Linear map from figure to canvas.
        shift_B2: Position of the figure's origin on the canvas.
        bend_B8: Amplitude, two frequencies and phase of the sinusoid that bends each axis.
        scale_B: Mean enlargement by the matrix: canvas units per figure unit.
    """

    matrix_B22: Tensor
    shift_B2: Tensor
    bend_B8: Tensor
    scale_B: Tensor

    def to_canvas(self, points_B2P: Tensor) -> Tensor:
        """Map figure points to the canvas, without the bend: (B, 2, P)."""
        return self.matrix_B22 @ points_B2P + self.shift_B2[..., None]

    def to_figure(self, size: int) -> Tensor:
        """Return the bent figure coordinates of every pixel: float32 (B, 2, H, W)."""
        grid_2N = canvas(size, self.matrix_B22.device).flatten(1)
        (a, b), (c, d) = (row_B2.unbind(1) for row_B2 in self.matrix_B22.unbind(1))
        adjugate_B22 = torch.stack([torch.stack([d, -b], dim=-1), torch.stack([-c, a], dim=-1)], dim=1)
        inverse_B22 = adjugate_B22 / (a * d - b * c)[:, None, None]
        local_B2N = inverse_B22 @ (grid_2N - self.shift_B2[..., None])
        x_BN, y_BN = local_B2N.unbind(1)
        a, fx, fy, p, b, gx, gy, q = (part_B[:, None] for part_B in self.bend_B8.unbind(1))
        bent_x = x_BN + a * torch.sin(fx * x_BN + fy * y_BN + p)
        bent_y = y_BN + b * torch.sin(gx * x_BN + gy * y_BN + q)
        return torch.stack([bent_x, bent_y], dim=1).view(-1, 2, size, size)


def draw_pose(
    keys_B: Tensor,
    *,
    salt: int,
    scale: tuple[float, float],
    turn_degrees: float,
    stretch: float = 1.25,
    shear: float = 0.2,
    bend: float = 0.08,
    overhang: float = 0.15,
) -> Pose:
    """Draw a pose for each key.

    Args:
        keys_B: int64 keys, one per image.
        salt: Number that separates several figures of one image.
        scale: Range of the figure's half-size on the canvas, drawn uniformly.
        turn_degrees: Largest rotation in degrees, drawn uniformly between minus and plus this.
        stretch: Largest ratio of width to height, drawn log-uniformly between its inverse and this.
        shear: Largest horizontal shear, drawn between minus and plus this.
        bend: Largest amplitude of the bend, in figure units.
        overhang: Largest distance by which the figure's box may leave the canvas, in canvas units.
    """
    draw = Draw(keys_B, 1000 + salt, 16)
    scale_B = draw.uniform(*scale)
    turn_B = draw.uniform(-math.radians(turn_degrees), math.radians(turn_degrees))
    stretch_B = draw.log_uniform(1.0 / stretch, stretch).sqrt()
    shear_B = draw.uniform(-shear, shear)
    cos_B, sin_B = turn_B.cos(), turn_B.sin()
    wide_B, high_B = scale_B * stretch_B, scale_B / stretch_B
    matrix_B22 = torch.stack(
        [
            torch.stack([cos_B * wide_B, (cos_B * shear_B - sin_B) * high_B], dim=-1),
            torch.stack([sin_B * wide_B, (sin_B * shear_B + cos_B) * high_B], dim=-1),
        ],
        dim=1,
    )
    room_B1 = (1.0 + overhang - scale_B).clamp_min(0.0)[:, None]
    shift_B2 = draw.several(2, -1.0, 1.0) * room_B1
    low = torch.tensor([0.0, -3.0, -3.0, 0.0] * 2, device=keys_B.device)
    high = torch.tensor([bend, 3.0, 3.0, 2.0 * math.pi] * 2, device=keys_B.device)
    bend_B8 = low + (high - low) * draw.several(8)
    return Pose(matrix_B22=matrix_B22, shift_B2=shift_B2, bend_B8=bend_B8, scale_B=scale_B)

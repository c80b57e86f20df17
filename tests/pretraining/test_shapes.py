import math

import torch

from finetune.pretraining.pose import Pose, canvas, draw_pose
from finetune.pretraining.shapes import (
    STROKES,
    Contours,
    contour_distance,
    contours,
    coverage,
    glyphs,
    stroke_distance,
)


def plain_pose(scale: float, turn: float = 0.0) -> Pose:
    """A centred pose without bend."""
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    return Pose(
        matrix_B22=torch.tensor([[[cos, -sin], [sin, cos]]]),
        shift_B2=torch.zeros(1, 2),
        bend_B8=torch.zeros(1, 8),
        scale_B=torch.tensor([scale]),
    )


def disc() -> Contours:
    return Contours(gielis_K4=torch.tensor([[0.0, 1.0, 1.0, 1.0]]), harmonics_KJ3=torch.zeros(1, 3, 3))


def test_a_contour_without_symmetry_or_harmonics_is_a_disc_of_the_pose_s_size() -> None:
    inside = contour_distance(disc(), plain_pose(0.5), 64)[0]
    x, y = canvas(64, torch.device("cpu"))
    torch.testing.assert_close(inside, 0.5 - torch.sqrt(x**2 + y**2), atol=1e-3, rtol=0)
    area = coverage(inside, 64).mean() * 4
    assert abs(area - math.pi * 0.25) < 0.01


def test_the_superformula_with_four_corners_is_symmetric_under_a_quarter_turn() -> None:
    square = Contours(gielis_K4=torch.tensor([[4.0, 8.0, 8.0, 8.0]]), harmonics_KJ3=torch.zeros(1, 3, 3))
    inside = contour_distance(square, plain_pose(0.6), 65)[0]
    torch.testing.assert_close(inside, inside.rot90(), atol=1e-4, rtol=0)
    # the canvas's middle is inside, its corners outside, and the reach is exactly the pose's
    assert inside[32, 32] > 0
    assert inside[0, 0] < 0
    row = (coverage(inside, 65) > 0.5).any(0).nonzero()[:, 0]
    assert row[0] > 65 * 0.18


def test_random_contours_differ_and_are_bounded_by_their_pose() -> None:
    shapes = contours(torch.arange(60))
    pose = draw_pose(torch.arange(60), salt=1, scale=(0.5, 0.5), turn_degrees=0.0, bend=0.0)
    inside = coverage(contour_distance(shapes, pose, 48), 48)
    assert inside.isfinite().all()
    area = inside.mean((1, 2))
    assert area.max() < 0.5**2 * math.pi / 4 * 1.35
    assert (area > 0.005).float().mean() > 0.95
    assert len(inside.flatten(1).unique(dim=0)) == 60


def test_the_distance_to_a_straight_stroke_is_the_distance_to_its_segment() -> None:
    line = torch.tensor([[-0.5, 0.0], [0.5, 0.0]])
    vertices = line[0] + torch.linspace(0, 1, 8)[:, None] * (line[1] - line[0])
    glyph = vertices.expand(1, STROKES, 8, 2)
    away = stroke_distance(glyph, plain_pose(1.0), 32)[0]
    x, y = canvas(32, torch.device("cpu"))
    expected = torch.sqrt((x.abs() - 0.5).clamp_min(0) ** 2 + y**2)
    torch.testing.assert_close(away, expected, atol=1e-4, rtol=0)


def test_a_pose_turns_and_shrinks_the_stroke_with_it() -> None:
    vertices = torch.stack([torch.linspace(-1, 1, 8), torch.zeros(8)], dim=1).expand(1, STROKES, 8, 2)
    away = stroke_distance(vertices, plain_pose(0.5, math.pi / 2), 64)[0]
    x, y = canvas(64, torch.device("cpu"))
    expected = torch.sqrt((y.abs() - 0.5).clamp_min(0) ** 2 + x**2)
    torch.testing.assert_close(away, expected, atol=1e-4, rtol=0)


def test_glyphs_fill_their_box_and_no_two_are_alike() -> None:
    lines = glyphs(torch.arange(400))
    flat = lines.flatten(1, 2)
    torch.testing.assert_close(flat.abs().amax((1, 2)), torch.ones(400), atol=1e-5, rtol=0)
    assert len(flat.flatten(1).unique(dim=0)) == 400


def test_a_pose_keeps_the_figure_on_the_canvas() -> None:
    keys = torch.arange(500)
    pose = draw_pose(keys, salt=2, scale=(0.2, 0.8), turn_degrees=30.0, overhang=0.1)
    assert ((pose.shift_B2.abs() + pose.scale_B[:, None]) <= 1.1 + 1e-5).all()
    assert pose.scale_B.min() >= 0.2
    assert pose.scale_B.max() < 0.8


def test_canvas_points_and_figure_coordinates_are_inverse_without_a_bend() -> None:
    pose = draw_pose(torch.arange(5), salt=3, scale=(0.3, 0.9), turn_degrees=90.0, bend=0.0)
    figure = pose.to_figure(8)
    back = pose.to_canvas(figure.flatten(2)).view(5, 2, 8, 8)
    torch.testing.assert_close(back, canvas(8, torch.device("cpu")).expand(5, -1, -1, -1), atol=1e-5, rtol=0)

import torch

from finetune.pretraining.paint import draw_colours, fills, grounds, over, relief, softened, to_bytes
from finetune.pretraining.pose import canvas

KEYS = torch.arange(600)


def test_figure_and_ground_differ_in_brightness_by_a_fifth_also_at_their_second_colours() -> None:
    colours = draw_colours(KEYS, tinted=0.0)
    for figure in (colours.figure, colours.second_figure):
        for ground in (colours.ground, colours.second_ground):
            assert ((figure - ground).abs().mean(1) > 0.2).all()


def test_some_images_are_white_on_black_and_some_black_on_white() -> None:
    colours = draw_colours(KEYS, stark=0.3)
    white_on_black = (colours.figure == 1).all(1) & (colours.ground == 0).all(1)
    black_on_white = (colours.figure == 0).all(1) & (colours.ground == 1).all(1)
    assert abs(white_on_black.float().mean() - 0.15) < 0.05
    assert abs(black_on_white.float().mean() - 0.15) < 0.05


def test_fills_are_plain_as_often_as_asked() -> None:
    shares = fills(KEYS, 16, salt=1, plain=0.4)
    assert shares.min() >= 0
    assert shares.max() <= 1
    assert abs((shares.flatten(1).std(1) == 0).float().mean() - 0.4) < 0.06


def test_grounds_lie_between_their_two_colours() -> None:
    colours = draw_colours(KEYS[:100])
    pictures = grounds(colours, KEYS[:100], 16)
    low = torch.minimum(colours.ground, colours.second_ground)[:, :, None, None]
    high = torch.maximum(colours.ground, colours.second_ground)[:, :, None, None]
    assert (pictures >= low - 1e-5).all()
    assert (pictures <= high + 1e-5).all()


def test_where_the_figure_covers_nothing_the_ground_shows_and_where_it_covers_all_it_does() -> None:
    ground, figure = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    shown = over(ground, figure, torch.tensor([[[0.0, 1.0], [0.5, 0.0]]]))
    assert shown[0, 0].tolist() == [[0.0, 1.0], [0.5, 0.0]]


def test_softening_changes_its_share_of_images_and_keeps_their_mean() -> None:
    pictures = (torch.arange(600 * 3 * 64).view(600, 3, 8, 8) % 7 < 3).float()
    soft = softened(pictures, KEYS, blurred=0.3)
    changed = (soft != pictures).flatten(1).any(1).float().mean()
    assert abs(changed - 0.3) < 0.06
    assert (soft.mean((1, 2, 3)) - pictures.mean((1, 2, 3))).abs().max() < 0.06


def test_a_raised_disc_is_bright_on_the_lamp_s_side_and_dark_on_the_other() -> None:
    x, y = canvas(64, torch.device("cpu"))
    inside = (0.8 - torch.sqrt(x**2 + y**2)).expand(50, -1, -1)
    shade = relief(inside, KEYS[:50], 64)
    assert shade.min() >= 0.1
    assert shade.max() <= 1 + 1e-5
    rim = (torch.sqrt(x**2 + y**2) - 0.74).abs() < 0.04
    around = shade[:, rim]
    # opposite points of the rim: one faces the lamp, the other turns away
    assert ((around - around.flip(1)).abs().amax(1) > 0.3).float().mean() > 0.8


def test_bytes_are_rounded_and_clipped() -> None:
    assert to_bytes(torch.tensor([-0.5, 0.0, 0.5, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]

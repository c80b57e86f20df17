"""The chart of a learning-rate search keeps its curve on the axes."""

from pathlib import Path

from finetune.report.lr_find_chart import loss_limits, write_lr_find_chart

RATES = [10.0**n for n in range(-6, 2)]
SMOOTHED = [1.4, 1.4, 1.3, 1.2, 0.9, 0.7, 1.5, 2.5]


def test_a_curve_that_ends_where_the_loss_explodes_is_shown_whole() -> None:
    bottom, top = loss_limits([*SMOOTHED[:-1], 175.0], SMOOTHED)
    assert bottom < min(SMOOTHED)
    assert top == max(SMOOTHED)


def test_an_explosion_does_not_flatten_the_curve() -> None:
    _, top = loss_limits(SMOOTHED, [*SMOOTHED[:-1], 1e6])
    assert top < 5


def test_what_is_higher_is_drawn_at_the_edge_and_named(tmp_path: Path) -> None:
    for last, named in ((175.0, True), (2.0, False)):
        write_lr_find_chart(
            tmp_path / "chart.svg",
            rates=RATES,
            losses=[*SMOOTHED[:-1], last],
            smoothed=SMOOTHED,
            suggestions={"valley": 1e-3, "steepest": 1e-2},
            stage="head",
            title="loss by rate",
        )
        assert (">higher<" in (tmp_path / "chart.svg").read_text()) is named

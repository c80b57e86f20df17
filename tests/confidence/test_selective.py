import numpy as np
import pytest
from scipy.stats import binomtest

from finetune.confidence.selective import acceptance, curve_problems, lowest_accuracy, read_curve, risk_coverage
from finetune.errors import UserError


def answers(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, and whether the answer is right, which is as likely as the confidence says."""
    draw = np.random.default_rng(seed)
    confidence = 0.1 + 0.9 * draw.beta(6, 1, images)
    return confidence, draw.random(images) < confidence


def test_the_bound_is_clopper_and_pearson_s() -> None:
    for accepted, wrong in ((10, 0), (200, 7), (1000, 999)):
        wanted = binomtest(accepted - wrong, accepted, alternative="greater").proportion_ci(0.95, method="exact").low
        assert lowest_accuracy(accepted, wrong) == pytest.approx(wanted)


def test_the_accuracy_wanted_is_met_in_nineteen_of_twenty_draws_and_most_answers_are_accepted() -> None:
    confidence, right = answers(200_000, 0)
    for wanted, images, least_share in ((0.9, 300, 0.3), (0.95, 1000, 0.1)):
        met, shares = [], []
        for seed in range(200):
            point = risk_coverage(*answers(images, seed + 1)).threshold(wanted)
            if point is not None:
                taken = confidence >= point.confidence
                met.append(right[taken].mean() >= wanted)
                shares.append(taken.mean())
        assert np.mean(met) >= 0.95
        assert np.mean(shares) > least_share


def test_images_of_one_confidence_are_accepted_together_and_unknown_ones_never() -> None:
    confidence = np.array([0.9] * 30 + [0.6] * 30 + [-1.0] * 40)
    curve = risk_coverage(confidence, np.array([True] * 59 + [False] * 41))
    assert [(point.accepted, point.wrong) for point in curve.points] == [(30, 0), (60, 1)]
    assert [point.confidence for point in curve.points] == pytest.approx([0.75, 0.3])
    assert read_curve(curve.to_plain()) == curve
    assert risk_coverage(np.array([-1.0]), np.array([True])).points == ()


def test_what_cannot_be_promised_is_refused_with_the_most_that_can_be() -> None:
    curve = risk_coverage(np.linspace(0.9, 0.5, 60), np.ones(60, bool))
    with pytest.raises(
        UserError,
        match=r"--accept 0\.99: cannot be promised from the 60 validation.*most that can be is --accept 0\.951",
    ):
        acceptance(accept=0.99, least=None, curve=curve, several=False)
    accepted = acceptance(accept=0.951, least=None, curve=curve, several=False)
    assert accepted is not None
    assert accepted.accepts(0.9, known=True)
    assert accepted.accepts(0.9, known=None)
    assert not accepted.accepts(0.9, known=False)
    for words, message in (
        ({"accept": 1.0, "least": None}, "--accept 1: must be above 0 and below 1"),
        ({"accept": None, "least": 1.5}, r"--least 1\.5: must be from 0 to 1"),
        ({"accept": 0.5, "least": 0.5}, "Give one of them"),
        ({"accept": 0.5, "least": None, "curve": None}, r"does not say how accurate"),
        ({"accept": None, "least": 0.5, "several": True}, "--least: needs a model of one label per image"),
    ):
        with pytest.raises(UserError, match=message):
            acceptance(**{"curve": curve, "several": False} | words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values",
    [
        [],
        {"images": 5},
        {"images": 5, "points": [[0.5, 6, 0]]},
        {"images": 5, "points": [[0.5, 2, 3]]},
        {"images": 5, "points": [[0.5, 2, 0], [0.6, 3, 0]]},
        {"images": 5, "points": [[float("nan"), 2, 0]]},
        {"images": 5, "points": [[0.5, 2.0, 0]]},
        {"images": True, "points": []},
        {"images": 10**6, "points": [[1 / n, n, 0] for n in range(2, 1100)]},
    ],
)
def test_a_damaged_curve_is_a_problem(values: object) -> None:
    assert len(curve_problems(values)) == 1

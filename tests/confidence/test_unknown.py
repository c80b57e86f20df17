import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn import covariance

from finetune.confidence import unknown
from finetune.confidence.unknown import fit_unknown, ledoit_wolf_shrinkage, sample_by_class, score_problems

Floats = npt.NDArray[np.float64]


def features(images: int, wide: int, *, seed: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Features of three classes, of different variance in each direction, far from the origin."""
    draw = np.random.default_rng(seed)
    targets = draw.integers(0, 3, images)
    means = np.random.default_rng(0).normal(size=(3, wide))
    return means[targets] + draw.normal(size=(images, wide)) * np.linspace(0.2, 2, wide) + 5, targets


def unit(given: Floats) -> Floats:
    return np.asarray(given / np.linalg.norm(given, axis=1, keepdims=True))


@pytest.mark.parametrize(("images", "wide"), [(400, 30), (40, 90)])
@pytest.mark.parametrize("rank", [None, 8])
def test_the_score_is_the_mahalanobis_distance_of_scikit_learn_s_covariance(
    monkeypatch: pytest.MonkeyPatch, images: int, wide: int, rank: int | None
) -> None:
    monkeypatch.setattr(unknown, "RANK", rank or wide)
    train, targets = features(images, wide, seed=1)
    val, _ = features(100, wide, seed=2)
    fit = fit_unknown(train, targets, val, accept=0.95)
    assert fit.score is not None
    assert fit.threshold is not None
    means = np.stack([unit(train)[targets == number].mean(0) for number in range(3)])
    centred = unit(train) - means[targets]
    whole = covariance.LedoitWolf(assume_centered=True).fit(centred).covariance_
    if rank is not None:
        values, vectors = np.linalg.eigh(whole)
        values[:-rank] = values[:-rank].mean()
        whole = vectors @ np.diag(values) @ vectors.T
    away = unit(val)[:, None] - means
    distances = np.sqrt(np.einsum("nkd,de,nke->nk", away, np.linalg.inv(whole), away).min(1))
    np.testing.assert_allclose(fit.score(torch.from_numpy(val)).numpy() * fit.threshold, distances, rtol=2e-5)
    assert fit.threshold == pytest.approx(np.sort(distances)[95:97].mean())
    assert ledoit_wolf_shrinkage(centred) == pytest.approx(
        covariance.ledoit_wolf_shrinkage(centred, assume_centered=True)
    )


def test_as_many_other_images_of_the_kind_are_known_as_is_stated_and_few_of_another_kind() -> None:
    shares = []
    for seed in range(30):
        everything, targets = features(900, 40, seed=seed)
        fit = fit_unknown(everything[:300], targets[:300], everything[300:500], accept=0.9)
        assert fit.score is not None
        shares.append(float((fit.score(torch.from_numpy(everything[500:])) <= 1).double().mean()))
    # three standard errors
    assert np.mean(shares) == pytest.approx(0.9, abs=3 * np.std(shares) / np.sqrt(30) + 0.005)
    other = np.random.default_rng(9).normal(size=(200, 40)) * 3
    assert float((fit.score(torch.from_numpy(other)) <= 1).double().mean()) < 0.05


def test_no_score_is_fitted_where_the_images_support_none() -> None:
    train, targets = features(60, 20, seed=1)
    fit = fit_unknown(train, targets, train[:39], accept=0.95)
    assert fit.score is None
    assert fit.why_not == "it takes 40 validation images to accept 0.95 of them, and there are 39"
    assert fit_unknown(train, targets, train[:40], accept=0.95).score is not None
    alike = np.repeat(train[:3], 20, axis=0)
    same = fit_unknown(alike, np.repeat(np.arange(3), 20), train[:40], accept=0.95)
    assert same.why_not == "the features of the training images of a class do not differ"


def test_every_class_is_in_the_sample_and_the_parameters_of_a_file_are_checked() -> None:
    targets = np.repeat(np.arange(300), [1, 4000, *([10] * 298)])
    counts = np.bincount(targets[sample_by_class(targets, 300)])
    assert counts[:3].tolist() == [1, 5, 5]
    assert counts[2:].tolist() == [5] * 298
    train, targets = features(60, 20, seed=1)
    fit = fit_unknown(train, targets, train, accept=0.9)
    assert fit.score is not None
    good = fit.score.tensors()
    assert score_problems(good, features=20, classes=3) == []
    for name, value in (
        ("basis_DR", good["basis_DR"][:5]),
        ("linear_DK", good["linear_DK"][:, :1]),
        ("constant_K", good["constant_K"] * torch.nan),
        ("precision", good["precision"].double()),
        ("centre_D", good["centre_D"][None]),
    ):
        assert score_problems(good | {name: value}, features=20, classes=3), name
    assert score_problems(good, features=20, classes=2)
    assert score_problems({}, features=20, classes=3)

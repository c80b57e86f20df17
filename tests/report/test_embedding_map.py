"""The map of the embeddings keeps neighbours, and is the same every time."""

import numpy as np
import pytest

from finetune.report.embedding_map import map_chart, projections


def clusters(images: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    groups = np.arange(images) % 3
    return (random.normal(size=(images, 16)) + 20 * np.eye(3, 16)[groups]).astype(np.float32), groups


def test_clusters_stay_clusters_and_a_map_is_reproducible() -> None:
    embeddings, groups = clusters(90)
    first, second = projections(embeddings), projections(embeddings)
    for method, points in first.items():
        assert np.array_equal(points, second[method])
        apart = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(90, np.inf))
        assert (groups[apart.argmin(1)] == groups).mean() > 0.95, method


@pytest.mark.parametrize("case", ["few", "equal", "narrow"])
def test_odd_sets_of_embeddings_have_a_map_too(case: str) -> None:
    embeddings = {"few": clusters(10)[0], "equal": np.ones((12, 8), np.float32), "narrow": clusters(30)[0][:, :1]}[case]
    for points in projections(embeddings).values():
        assert points.shape == (len(embeddings), 2)
        assert np.isfinite(points).all()


def test_classes_are_named_and_mistakes_ringed() -> None:
    embeddings, groups = clusters(30)
    wrong = np.arange(30) < 3
    chart = str(map_chart(embeddings[:, :2], method="PCA", groups=groups, names=["a&b", "$c$", "d"], wrong=wrong))
    # thirty images, three rings, and three marks of the legend
    assert chart.count("<use ") == 36
    assert ">a&amp;b<" in chart
    assert ">$c$<" in chart

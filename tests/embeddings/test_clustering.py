"""Clusters of points with known groups, and labels made wrong on purpose."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score, silhouette_score

from finetune.cli import main
from finetune.embeddings import clustering as module
from finetune.embeddings.clustering import OUTLIER, cluster, label_shares, quality
from finetune.embeddings.embeddings import Embeddings, EmbeddingsError
from finetune.embeddings.label_errors import find_label_errors
from finetune.errors import UserError
from finetune.plain import to_plain
from tests.embeddings.embedding_sets import digits, embeddings_of

CENTRES = np.array([[0, 0, 9], [9, 0, 0], [0, 9, 0], [9, 9, 9]], np.float64)


def blobs(count: int = 200) -> Embeddings:
    features, labels = make_blobs(count, centers=CENTRES, cluster_std=0.7, random_state=0)
    return embeddings_of(features.astype(np.float16), labels.tolist())


def test_the_number_of_clusters_is_the_one_with_the_best_silhouette() -> None:
    made, said = blobs(), list[str]()
    found = cluster(made, most_clusters=8, metric="l2", show=said.append)
    assert len(found) == 4
    assert max(found.silhouette_by_count, key=found.silhouette_by_count.__getitem__) == 4
    assert list(found.silhouette_by_count) == list(range(2, 9))
    assert said[0].startswith("clusters: 4, the best silhouette (0.")
    figures = quality(made, found, metric="l2")
    assert figures.nmi == pytest.approx(1)
    assert (figures.ari, figures.purity) == (1, 1)
    expected = silhouette_score(made.features.astype(np.float32), found.of_row)
    assert figures.silhouette == pytest.approx(expected, abs=1e-6)


def test_k_means_is_that_of_scikit_learn_on_features_of_length_one() -> None:
    made = digits()
    found = cluster(made, clusters=10)
    scaled = made.features / np.linalg.norm(made.features, axis=1, keepdims=True)
    reference = KMeans(10, n_init=10, random_state=0).fit(scaled)
    assert adjusted_rand_score(reference.labels_, found.of_row) == pytest.approx(1, abs=1e-3)
    sizes = np.bincount(found.of_row)
    assert (np.diff(sizes) <= 0).all(), "numbered from the largest"


def test_hdbscan_leaves_outliers_out() -> None:
    made = blobs()
    features = np.concatenate([made.features, [[40, -40, 40], [-50, 50, 0]]]).astype(np.float16)
    made = embeddings_of(features, [*made.labels.tolist(), 0, 1])
    found = cluster(made, method="hdbscan", metric="l2", least_members=10)
    reference = HDBSCAN(min_cluster_size=10, copy=True).fit(features.astype(np.float32)).labels_
    assert found.of_row[-2:].tolist() == [OUTLIER, OUTLIER]
    assert ((found.of_row == OUTLIER) == (reference == OUTLIER)).all()
    assert adjusted_rand_score(reference, found.of_row) == 1
    figures = quality(made, found, metric="l2")
    assert (figures.clusters, figures.outliers) == (4, int((reference == OUTLIER).sum()))


def test_typical_images_are_near_the_centre_and_doubtful_ones_near_another() -> None:
    features = np.array([[0, 0], [0.2, 0], [-0.2, 0], [4, 0], [10, 0], [10, 0.1], [10, -0.1], [9.9, 0]], np.float32)
    found = cluster(embeddings_of(features), clusters=2, metric="l2")
    of_left = int(found.of_row[0])
    assert found.members(of_left)[-1] == found.doubtful(of_left)[0] == 3
    assert set(found.members(of_left).tolist()) == {0, 1, 2, 3}
    assert found.margins[3] < 0.6 < found.margins[0] < 1


def test_of_many_images_some_are_drawn_and_the_others_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FITTED_ON", 60)
    monkeypatch.setattr(module, "MOST_FOR_HDBSCAN", 100)
    made, said = blobs(), list[str]()
    found = cluster(made, clusters=4, metric="l2", show=said.append)
    assert said == ["k-means: fitted on 60 of 200 images, drawn at random; the others join the nearest centre"]
    assert quality(made, found).ari == 1
    with pytest.raises(UserError, match="takes at most 100 images"):
        cluster(made, method="hdbscan")


def test_images_without_labels_have_no_agreement_with_labels() -> None:
    made = embeddings_of(blobs().features)
    found = cluster(made, clusters=4)
    assert set(to_plain(quality(made, found))) == {"clusters", "outliers", "silhouette"}
    assert label_shares(blobs(), np.array([0, 1, 2, 3]))[0][1] >= 0.25


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dbscan"}, "--method dbscan: must be one of kmeans, hdbscan"),
        ({"clusters": 1}, "--clusters 1: must be from 2 to one less than the number of images, 199"),
        ({"clusters": 200}, "--clusters 200"),
        ({"metric": "dot"}, "--metric dot"),
        ({"method": "hdbscan", "least_members": 190, "metric": "l2"}, "found no cluster of 190 images"),
        ({"method": "hdbscan", "least_members": 201}, "--least-members 201: must be at most 200, the number of images"),
    ],
)
def test_settings_out_of_range_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cluster(blobs(), **settings)


def test_labels_made_wrong_on_purpose_come_first() -> None:
    made = digits()
    draw = np.random.default_rng(0)
    count = round(0.02 * len(made))
    wrong = draw.choice(len(made), count, replace=False)
    labels = made.labels.copy()
    labels[wrong] = (labels[wrong] + draw.integers(1, 10, count)) % 10
    doubts = find_label_errors(replace(made, labels=labels))
    hits = np.isin(doubts.rows, wrong)
    assert hits[:count].mean() > 0.85
    assert hits[: round(0.05 * len(made))].sum() == count
    right = doubts.suggested[hits] == made.labels[doubts.rows[hits]]
    assert right.mean() > 0.9, "the neighbours know the right label"
    assert count <= doubts.likely <= 2 * count


def test_an_image_whose_neighbours_all_say_otherwise_is_the_most_doubtful() -> None:
    made = blobs()
    labels = made.labels.copy()
    labels[7] = (labels[7] + 1) % 4
    doubts = find_label_errors(replace(made, labels=labels), neighbours=5, metric="l2")
    assert doubts.rows[0] == 7
    assert doubts.doubts[0] == pytest.approx(1)
    assert (doubts.agreeing[0], doubts.suggested[0]) == (0, made.labels[7])
    assert doubts.likely == 1
    assert set(doubts.agreeing[1:].tolist()) <= {4, 5}
    with pytest.raises(UserError, match="--neighbours 200: must be from 1 to one less"):
        find_label_errors(made, neighbours=200)


def test_a_far_outlier_beside_a_sample_of_the_others_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.embeddings.clustering._SILHOUETTE_OF", 20)
    features = np.random.default_rng(0).normal(0, 1, (400, 4)).astype(np.float32)
    features[7] = 1e4
    far = embeddings_of(features, [0] * 400)
    assert 2 not in cluster(far, metric="l2", most_clusters=6).silhouette_by_count
    with pytest.raises(EmbeddingsError, match="a few images lie far from all others"):
        cluster(far, metric="l2", most_clusters=2)


def test_images_of_one_label_have_clusters_and_no_doubtful_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = blobs()
    replace(made, labels=np.zeros_like(made.labels)).save(tmp_path / "one.npz")
    assert main(["cluster", str(tmp_path / "one.npz"), "--clusters", "4"]) == 0
    assert "labels that their neighbours contradict" not in capsys.readouterr().out
    assert (tmp_path / "one-clusters" / "clusters.csv").is_file()

"""Search compared with brute force in double precision, and with FAISS."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.embeddings import search
from finetune.embeddings.near_duplicates import near_duplicates
from finetune.embeddings.search import METRICS, FaissIndex, Neighbours, nearest, within
from finetune.errors import UserError


def brute(features: Any, queries: Any, metric: str) -> Any:
    """Return all distances in double precision (Q, N)."""
    x, q = np.asarray(features, np.float64), np.asarray(queries, np.float64)
    if metric == "l2":
        return np.sqrt(((q[:, None] - x[None]) ** 2).sum(2))
    lengths = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(x, axis=1)
    return 1 - np.divide(q @ x.T, lengths, out=np.zeros((len(q), len(x))), where=lengths > 0)


def crowded(dtype: str = "float16", count: int = 3000, dim: int = 24) -> Any:
    """Return rows some of which are equal, some nearly equal, and one of which is zero."""
    draw = np.random.default_rng(1)
    rows = draw.normal(size=(count, dim))
    rows[100:160] = rows[5]
    rows[200:260] = rows[6] * (1 + 1e-7 * draw.normal(size=(60, dim)))
    rows[7] = 0
    return rows.astype(dtype)


def check_against_brute_force(found: Neighbours, rows: Any, queries: Any, metric: str) -> None:
    """Check that distances are right and ascending; rounding may exchange rows that are equally near."""
    k = found.rows.shape[1]
    all_distances = brute(rows, queries, metric)
    np.testing.assert_allclose(found.distances, np.take_along_axis(all_distances, found.rows, 1), atol=1e-12)
    np.testing.assert_allclose(found.distances, np.sort(all_distances, axis=1)[:, :k], atol=1e-6)
    assert all(len(set(row)) == k for row in found.rows.tolist())
    keys = found.distances.round(12)
    in_order = (np.diff(keys, axis=1) > 0) | ((np.diff(keys, axis=1) == 0) & (np.diff(found.rows, axis=1) > 0))
    assert in_order.all(), "the nearest first, equally distant ones in the order of their rows"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_are_those_of_brute_force_in_double_precision(metric: str, dtype: str) -> None:
    rows = crowded(dtype)
    queries = np.concatenate([rows[:12].astype(np.float64), np.random.default_rng(2).normal(size=(20, rows.shape[1]))])
    check_against_brute_force(nearest(rows, queries, 10, metric=metric), rows, queries, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_the_size_of_blocks_changes_nothing(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = crowded()
    whole = nearest(rows, rows[:30], 7, metric=metric)
    monkeypatch.setattr(search, "_BLOCK_ROWS", 37)
    monkeypatch.setattr(search, "_BLOCK_QUERIES", 4)
    parts = nearest(rows, rows[:30], 7, metric=metric)
    check_against_brute_force(parts, rows, rows[:30], metric)
    np.testing.assert_allclose(parts.distances, whole.distances, atol=1e-6)
    lonely = np.arange(8, 30)  # queries without a crowd of equal rows around them
    np.testing.assert_array_equal(parts.rows[lonely], whole.rows[lonely])


@pytest.mark.parametrize("metric", METRICS)
def test_faiss_at_its_exact_setting_gives_the_same(metric: str) -> None:
    rows = crowded()
    index = FaissIndex(rows, metric=metric)
    queries = np.concatenate([rows[:12], np.random.default_rng(2).normal(size=(20, rows.shape[1])).astype(np.float16)])
    for left_out in (None, np.concatenate([np.arange(12), np.full(20, -1)])):
        ours, theirs = (
            nearest(rows, queries, 6, metric=metric, leave_out=left_out),
            index.nearest(queries, 6, leave_out=left_out),
        )
        np.testing.assert_allclose(theirs.distances, ours.distances, atol=1e-6 if metric == "cosine" else 2e-3)


def test_an_approximate_index_finds_most_and_gives_true_distances() -> None:
    rows = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
    ours, theirs = nearest(rows, rows[:50], 5), FaissIndex(rows, factory="HNSW16").nearest(rows[:50], 5)
    same = [len(np.intersect1d(a, b)) for a, b in zip(ours.rows, theirs.rows, strict=True)]
    assert sum(same) > 200
    np.testing.assert_array_equal(theirs.rows[:, 0], np.arange(50))
    assert (np.diff(theirs.distances, axis=1) >= 0).all()


def test_a_row_that_is_left_out_is_not_found_and_the_search_keeps_to_the_rows_it_is_given() -> None:
    rows = crowded()
    own = np.arange(40)
    found = nearest(rows, rows[:40], 4, leave_out=own)
    assert not (found.rows == own[:, None]).any()
    among = np.arange(1, 3000, 7)
    found = nearest(rows, rows[:40], 4, among=among)
    distances = brute(rows[among], rows[:40], "cosine")
    np.testing.assert_allclose(found.distances, np.sort(distances, axis=1)[:, :4], atol=1e-6)
    assert np.isin(found.rows, among).all()


def test_fewer_rows_than_neighbours_leave_places_empty() -> None:
    found = nearest(np.eye(3), np.eye(3)[:1], 5)
    assert found.rows.tolist() == [[0, 1, 2, -1, -1]]
    assert found.distances[0].tolist() == [0, 1, 1, np.inf, np.inf]


@pytest.mark.parametrize("metric", METRICS)
def test_a_radius_finds_all_rows_within_it(metric: str) -> None:
    rows = crowded()
    distances = brute(rows, rows[:20], metric)
    radius = float(np.quantile(distances, 0.02))
    for query, (found, apart) in enumerate(within(rows, rows[:20], radius, metric=metric)):
        assert sorted(found) == np.flatnonzero(distances[query] <= radius).tolist()
        assert (np.diff(apart) >= -1e-12).all()


def test_near_duplicates_come_in_groups_the_closest_first() -> None:
    draw = np.random.default_rng(3)
    rows = draw.normal(size=(400, 32)).astype(np.float32)
    rows[300:303] = rows[10] + 1e-3 * draw.normal(size=(3, 32))
    rows[350] = rows[20]
    first, second = near_duplicates(rows, 0.01)
    assert (first.rows.tolist(), second.rows.tolist()) == ([20, 350], [10, 300, 301, 302])
    assert first.distances.tolist() == [0, 0]
    assert near_duplicates(rows[:300], 1e-6) == []


def test_a_mapped_file_is_searched_without_holding_it(tmp_path: Path) -> None:
    rows = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float32, (200_000, 32))
    rows[:] = np.random.default_rng(0).normal(size=rows.shape)
    rows.flush()
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    found = nearest(mapped, rows[:3], 2)
    assert found.rows[:, 0].tolist() == [0, 1, 2]
    code = (
        "import numpy, resource, sys; from finetune.embeddings.search import nearest;"
        "rows = numpy.load(sys.argv[1], mmap_mode='r'); nearest(rows[:20_000], rows[:3], 2);"
        "peak = lambda: int([line for line in open('/proc/self/status') if line.startswith('RssAnon')][0].split()[1]);"
        "before = peak(); nearest(rows, rows[:3], 2); print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "rows.npy")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 10_000, "kB; the file has 25,600"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "-k 0: must be at least 1"),
        ({"metric": "dot"}, "--metric dot: must be one of cosine, l2"),
        ({"queries": np.zeros((1, 4))}, "queries have 4 features, the embeddings 3"),
    ],
)
def test_mistakes_are_told(arguments: dict[str, Any], message: str) -> None:
    given = {"queries": np.zeros((1, 3)), "k": 1, **arguments}
    with pytest.raises(UserError, match=message):
        nearest(np.eye(3), given.pop("queries"), **given)
    with pytest.raises(UserError, match=r"--index Falt: FAISS cannot build it"):
        FaissIndex(np.eye(3), factory="Falt")
    with pytest.raises(UserError, match="--radius -1"):
        next(within(np.eye(3), np.eye(3), -1))

"""Embedding into a file: streamed, incremental, resumed after a kill; with an extractor that counts what it computes."""

import csv
import logging
import random
import tracemalloc
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA

from finetune.embeddings.embed import EmbedSummary, Settings, embed_to_file
from finetune.embeddings.embeddings import Embeddings
from finetune.embeddings.image_records import FileRecords
from finetune.embeddings.whitening import load_whitening, whitening_path
from finetune.errors import UserError
from finetune.inference.job_store import job_path
from tests.embeddings.embedding_sets import SIGNATURE, FakeExtractor, MemoryRecords


def write(folder: Path, *names: str, text: str = "") -> list[str]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(SIGNATURE + (text or f"picture {name}"))
    return [str(folder / name) for name in names]


def embed(extractor: FakeExtractor, paths: list[str], output: Path, **kwargs: Any) -> EmbedSummary:
    settings = Settings(**{"batch_size": 4, **kwargs})
    return embed_to_file(extractor, FileRecords(paths), output, settings=settings)  # type: ignore[arg-type]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The messages that the user sees."""
    caplog.set_level(logging.INFO, "finetune")
    return caplog


def rows_of(output: Path) -> dict[str, list[float]]:
    found = Embeddings.load(output)
    return {Path(found.paths[row]).name: found.features[row].tolist() for row in range(len(found))}


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_only_new_and_changed_images_are_computed_and_those_gone_are_left_out(suffix: str, tmp_path: Path) -> None:
    output = tmp_path / f"e{suffix}"
    paths = write(tmp_path / "images", *"abcdefghij")
    assert embed(FakeExtractor(), paths, output) == EmbedSummary(images=10, computed=10)
    before = rows_of(output)
    # b is changed, c renamed, d removed, k new
    write(tmp_path / "images", "b", text="another picture")
    Path(paths[2]).rename(tmp_path / "images/c2")
    paths = [*paths[:2], str(tmp_path / "images/c2"), *paths[4:], *write(tmp_path / "images", "k")]
    again = FakeExtractor()
    told = embed(again, paths, output)
    assert told == EmbedSummary(images=10, computed=2, changed=1, gone=1)
    assert again.computed == [b"another picture", b"picture k"]
    after = rows_of(output)
    assert list(after) == ["a", "b", "c2", "e", "f", "g", "h", "i", "j", "k"]
    assert after["c2"] == before["c"]
    assert after["b"] != before["b"]
    fresh = tmp_path / f"fresh{suffix}"
    embed(FakeExtractor(), paths, fresh)
    assert rows_of(fresh) == after


@pytest.mark.parametrize("start", ["nothing", "an earlier file"])
def test_killed_and_resumed_the_file_is_that_of_an_uninterrupted_run(
    start: str, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    names = [f"{number:03}" for number in range(200)]
    paths = write(tmp_path / "images", *names)
    Path(paths[33]).write_text(f"{SIGNATURE}bad")
    whole, parts = tmp_path / "whole.npz", tmp_path / "parts.npz"
    if start != "nothing":
        for output in (whole, parts):
            embed(FakeExtractor(), paths[:50:2], output, whiten=True)
    first = FakeExtractor()
    told = embed(first, paths, whole, whiten=True)
    kept = parts.read_bytes() if parts.exists() else None
    chance, seen = random.Random(0), 0
    for _ in range(6):
        extractor = FakeExtractor(dies_after=chance.randint(1, 30))
        with pytest.raises(KeyboardInterrupt):
            embed(extractor, paths, parts, whiten=True)
        seen += len(extractor.computed)
        assert job_path(parts).exists()
        assert (parts.read_bytes() if parts.exists() else None) == kept, "what stood there stays until the end"
    last = FakeExtractor()
    assert embed(last, paths, parts, whiten=True) == told
    assert "images from an earlier attempt" in log.text
    np.testing.assert_array_equal(Embeddings.load(parts).features, Embeddings.load(whole).features)
    assert rows_of(parts) == rows_of(whole)
    assert len(last.computed) < len(first.computed) - 20, "it began anew"
    assert not job_path(parts).exists()
    assert not list(tmp_path.glob("*.part"))


def test_unreadable_files_are_counted_told_and_listed(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    paths = write(tmp_path / "images", "a", "b", "c")
    Path(paths[1]).write_text(f"{SIGNATURE}bad")
    told = embed(FakeExtractor(), [*paths, str(tmp_path / "gone.png")], tmp_path / "e.npz")
    assert (told.images, [reason for _, reason in told.unreadable]) == (2, ["It is bad.", "There is no such file."])
    assert log.messages == [
        f"2 unreadable files are left out, listed in e.unreadable.csv. The first: {paths[1]}: It is bad.",
    ]
    with (tmp_path / "e.unreadable.csv").open() as file:
        assert list(csv.reader(file))[1] == [paths[1], "It is bad."]
    Path(paths[1]).write_text(f"{SIGNATURE}good again")
    embed(FakeExtractor(), paths, tmp_path / "e.npz")
    assert not (tmp_path / "e.unreadable.csv").exists()
    with pytest.raises(UserError, match="no image could be read"):
        embed(FakeExtractor(), write(tmp_path / "images", "x", text="bad"), tmp_path / "f.npz")
    assert not (tmp_path / "f.npz").exists()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"name": "another"}, "model"),
        ({"precision": "float32"}, "precision"),
        ({"normalize": True}, "normalize"),
        ({"whiten": True}, "whiten"),
    ],
)
def test_another_model_or_setting_computes_all_again_and_says_so(
    change: dict[str, Any], what: str, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    paths = write(tmp_path / "images", *"abcdef")
    embed(FakeExtractor(), paths, tmp_path / "e.npz")
    again = FakeExtractor(name=change.pop("name", "fake"))
    assert embed(again, paths, tmp_path / "e.npz", **change).computed == 6
    assert log.messages[0].startswith(f"{tmp_path / 'e.npz'}: was made with another {what}")


def test_something_else_at_the_output_is_left_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", mine=np.arange(3))
    before = (tmp_path / "e.npz").read_bytes()
    with pytest.raises(UserError, match="is not a file of finetune embeddings"):
        embed(FakeExtractor(), write(tmp_path / "images", "a"), tmp_path / "e.npz")
    assert (tmp_path / "e.npz").read_bytes() == before


def test_whitening_is_that_of_scikit_learn_fitted_once_on_training_images_and_kept(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "e.npz"
    settings = Settings(batch_size=16, precision="float32", whiten=True, directions=2)
    embed_to_file(FakeExtractor(), MemoryRecords(60), tmp_path / "raw.npz", settings=Settings(precision="float32"))  # type: ignore[arg-type]
    embed_to_file(FakeExtractor(), MemoryRecords(60), output, settings=settings)  # type: ignore[arg-type]
    assert log.messages == ["whitening: 2 directions fitted on 30 images of the train split"]
    raw, made = Embeddings.load(tmp_path / "raw.npz"), Embeddings.load(output)
    reference = PCA(2, whiten=True, svd_solver="full").fit(raw.features[raw.rows("train")])
    np.testing.assert_allclose(made.features, reference.transform(raw.features), atol=1e-4)
    before = whitening_path(output).read_bytes()
    # more images: the old rows and the directions stay the same
    told = embed_to_file(FakeExtractor(), MemoryRecords(90), output, settings=settings)  # type: ignore[arg-type]
    assert told.computed == 30
    assert whitening_path(output).read_bytes() == before
    np.testing.assert_array_equal(Embeddings.load(output).features[:60], made.features)
    whitening, _ = load_whitening(whitening_path(output))
    later = Embeddings.load(output).features[60:]
    expected = reference.transform(_raw(MemoryRecords(90))[60:])
    np.testing.assert_allclose(later, expected, atol=1e-4)
    assert whitening.images == 30


def _raw(samples: MemoryRecords) -> Any:
    return FakeExtractor().embed([str(row).encode() for row in range(samples.count)])


def test_features_can_be_scaled_to_length_one(tmp_path: Path) -> None:
    embed(FakeExtractor(), write(tmp_path / "images", *"abc"), tmp_path / "e.npz", normalize=True, precision="float32")
    np.testing.assert_allclose(np.linalg.norm(Embeddings.load(tmp_path / "e.npz").features, axis=1), 1, atol=1e-6)


def test_features_beyond_half_precision_are_refused_with_the_way_out(tmp_path: Path) -> None:
    paths = write(tmp_path / "images", *"abc")
    with pytest.raises(UserError, match=r"holds values up to 65504.*Use --precision float32"):
        embed(FakeExtractor(scale=1e4), paths, tmp_path / "e.npz")
    with pytest.raises(UserError, match="that are not finite"):
        embed(FakeExtractor(scale=float("nan")), paths, tmp_path / "e.npz")
    assert embed(FakeExtractor(scale=1e4), paths, tmp_path / "e.npz", precision="float32").images == 3


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("e.csv", {}, "Use one of .npz, .parquet"),
        ("e.npz", {"precision": "int8"}, "--precision int8: must be one of float16, float32"),
        ("e.npz", {"whiten": True, "directions": 0}, "--directions 0: must be at least 1"),
        ("e.npz", {"whiten": True, "directions": 4}, r"--whiten --directions 4: \d images differ in \d directions"),
        ("e.npz", {"batch_size": 0}, "--batch-size 0: must be at least 1"),
    ],
)
def test_settings_out_of_range_are_told(name: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        embed(FakeExtractor(), write(tmp_path / "images", *"abcdefgh"), tmp_path / name, **settings)
    assert not (tmp_path / name).exists()


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.embeddings.embed._BLOCK", 256)
    extractor, peaks = FakeExtractor(), []
    monkeypatch.setattr(extractor, "computed", deque(maxlen=1))
    for count in (500, 1_000, 5_000):
        tracemalloc.start()
        settings = Settings(batch_size=64, whiten=True)
        embed_to_file(extractor, MemoryRecords(count), tmp_path / f"{count}.npz", settings=settings)  # type: ignore[arg-type]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # the texts of 4,000 rows alone would take 600 kB; the first run absorbs one-time allocations
    assert peaks[2] - peaks[1] < 150_000, peaks

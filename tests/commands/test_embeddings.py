"""embed, search, cluster and classify from the command line, on a run, a bundle, a pretrained backbone and a data set."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.cli import main
from finetune.config import compose
from finetune.embeddings.embeddings import Embeddings
from finetune.embeddings.extractor import FeatureExtractor
from finetune.file_schema import (
    CLASSIFIER,
    CLUSTER_SUMMARY,
    CLUSTERS,
    DOUBTFUL,
    FOUND,
    MANIFEST,
    PREDICTIONS,
    RESULTS,
    RETRIEVAL,
    check_fields,
)
from tests.conftest import TINY_RESNET10T
from tests.runs import train_tiny

Words = Callable[..., list[str]]
Capture = pytest.CaptureFixture[str]
BARE = ("backbone=timm", "backbone.name=resnet10t", "backbone.weights=none", "input.size=32")


@pytest.fixture(scope="module")
def run_dir(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [
        "data=folder",
        f"data.root={pets}",
        *TINY_RESNET10T,
        "schedule=frozen",
        "schedule.phases.0.epochs=1",
        "seed=4",
    ]
    return train_tiny(words, tmp_path_factory.mktemp("embed") / "run").run_dir


@pytest.fixture(scope="module")
def own(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of the run's own data."""
    output = tmp_path_factory.mktemp("own") / "own.npz"
    assert main(["embed", str(run_dir), "--output", str(output), "--precision", "float32"]) == 0
    return output


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_alone_embeds_its_own_data_with_its_splits(run_dir: Path, own: Path) -> None:
    found = Embeddings.load(own)
    splits = table(run_dir / "split.csv")
    made = [(found.paths[row], found.label(row), found.split(row)) for row in range(len(found))]
    assert made == [(row["path"], row["label"], row["split"]) for row in splits]
    results = json.loads((run_dir / "results.json").read_text())
    assert found.metadata["fingerprint"] == results["data"]["fingerprint"]
    assert found.classes == ("1 cat", "2 dog", "10 owl")


def test_images_need_no_labels_and_a_second_time_costs_nothing(
    run_dir: Path, pets: Path, tmp_path: Path, capsys: Capture
) -> None:
    images = shutil.copytree(pets / "2 dog", tmp_path / "images")
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    words = ["embed", str(run_dir / "model"), str(images), "--output", str(tmp_path / "e.parquet")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "1 unreadable files are left out, listed in e.unreadable.csv" in printed
    assert f"16 images (16 computed, 1 unreadable): {tmp_path / 'e.parquet'}" in printed
    assert main(words) == 0
    assert "16 images (0 computed, 16 kept from before, 1 unreadable)" in capsys.readouterr().out
    found = Embeddings.load(tmp_path / "e.parquet")
    assert {found.label(row) for row in range(16)} == {""}
    assert table(tmp_path / "e.unreadable.csv")[0]["path"].endswith("broken.png")


def test_a_backbone_that_was_never_trained_here_embeds_images_and_data_sets(pets: Path, tmp_path: Path) -> None:
    common = ["--output", str(tmp_path / "e.npz"), "--precision", "float32", "--stage", "layer2"]
    assert main(["embed", *BARE, "seed=7", str(pets / "1 cat"), *common]) == 0
    first = Embeddings.load(tmp_path / "e.npz")
    assert (len(first), first.metadata["stage"]) == (16, "layer2")
    from finetune.build.classifier import build_model
    from finetune.build.data import build_source

    config = compose([*BARE, "seed=7", "data=folder", f"data.root={pets}"])
    source = build_source(config)
    network = build_model(config, source, lambda line: None).backbone.split("layer2")[0].eval()
    spec_images = [row for row in range(len(source.index)) if source.index.path(row) == first.paths[5]]
    from finetune.data.transforms import eval_view
    from finetune.input_spec import InputSpec
    from finetune.models.channels import InputAdapter

    spec = InputSpec.from_dict(first.metadata["model"]["input"])
    view = eval_view(spec)(source.read(spec_images[0]))[None] / 255
    adapter = InputAdapter(channels=3, adapt="expand", mean=spec.mean, std=spec.std)
    with torch.inference_mode():
        expected = network(adapter(view)).mean((2, 3))[0].numpy()
    np.testing.assert_allclose(first.features[5], expected, atol=1e-5)
    assert main(["embed", *BARE, "seed=7", "data=folder", f"data.root={pets}", *common]) == 0
    again = Embeddings.load(tmp_path / "e.npz")
    assert len(again) == 48
    assert sorted({again.label(row) for row in range(48)}) == ["1 cat", "10 owl", "2 dog"]


def test_search_finds_files_by_the_same_model_and_shows_them(
    own: Path, pets: Path, tmp_path: Path, capsys: Capture
) -> None:
    known = str(pets / "1 cat/3.png")
    turned = tmp_path / "turned.png"
    from PIL import Image

    Image.open(known).rotate(2).save(turned)
    output, sheet = tmp_path / "found.csv", tmp_path / "found.html"
    words = ["search", str(own), known, str(turned), "-k", "3", "--output", str(output), "--sheet", str(sheet)]
    assert main(words) == 0
    rows = table(output)
    assert list(rows[0]) == list(FOUND)
    assert [row["query"] for row in rows] == [known] * 3 + [str(turned)] * 3
    assert known not in [row["path"] for row in rows[:3]], "an image is no neighbour of itself"
    assert rows[3]["path"] == known
    assert known in capsys.readouterr().out
    page = sheet.read_text()
    assert page.count("<figure") == page.count("data:image/jpeg;base64,") == 8
    assert main([*words[:2], known, "-k", "3", "--output", str(tmp_path / "f.json"), "--engine", "faiss"]) == 0
    assert [row["path"] for row in json.loads((tmp_path / "f.json").read_text())] == [row["path"] for row in rows[:3]]


def test_near_duplicates_are_grouped_and_quality_is_measured(own: Path, tmp_path: Path, capsys: Capture) -> None:
    made = Embeddings.load(own)
    features = np.array(made.features)
    features[5] = features[3]
    twins = Embeddings(**{**made.__dict__, "features": features})
    twins.save(tmp_path / "twins.npz")
    output = tmp_path / "groups.json"
    assert main(["search", str(tmp_path / "twins.npz"), "--radius", "0", "--output", str(output)]) == 0
    assert "1 group of near-duplicates, 2 images of 48" in capsys.readouterr().out
    assert [row["path"] for row in json.loads(output.read_text())] == [made.paths[3], made.paths[5]]
    assert main(["search", str(own), "--quality", "--output", str(tmp_path / "quality.json")]) == 0
    quality = json.loads((tmp_path / "quality.json").read_text())
    check_fields(quality, RETRIEVAL, name="quality.json")
    assert quality["queries"] == len(made.rows("test"))
    assert 0 <= quality["recall@1"] <= quality["recall@5"] <= quality["recall@10"] <= 1
    assert 0 < quality["map"] <= 1


def test_whitened_embeddings_whiten_their_queries(run_dir: Path, pets: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "w.npz"
    words = ["--whiten", "--directions", "6", "--normalize", "--precision", "float32"]
    assert main(["embed", str(run_dir), str(pets / "1 cat"), str(pets / "2 dog"), "--output", str(output), *words]) == 0
    query = tmp_path / "query.png"
    from PIL import Image

    Image.open(pets / "2 dog/4.png").save(query, compress_level=1)
    assert query.read_bytes() != (pets / "2 dog/4.png").read_bytes(), "other bytes, so it is embedded again"
    assert main(["search", str(output), str(query), "-k", "1", "--output", str(tmp_path / "f.json")]) == 0
    (row,) = json.loads((tmp_path / "f.json").read_text())
    assert row["path"] == str(pets / "2 dog/4.png")
    assert row["distance"] == pytest.approx(0, abs=1e-5)
    capsys.readouterr()
    (tmp_path / "w.whitening.safetensors").unlink()
    assert main(["search", str(output), str(query), "-k", "1"]) == 2
    assert "w.whitening.safetensors: missing. It belongs to the embeddings beside it" in capsys.readouterr().err


def test_clusters_and_doubtful_labels_are_written_and_become_training_data(
    own: Path, run_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    made = Embeddings.load(own)
    # features that separate the classes, and one wrong label
    features = np.eye(3, dtype=np.float32)[made.labels] + np.random.default_rng(0).normal(size=(48, 3)) * 0.05
    labels = made.labels.copy()
    labels[0] = 2
    planted = Embeddings(**{**made.__dict__, "features": features.astype(np.float32), "labels": labels})
    planted.save(tmp_path / "planted.npz")
    assert main(["cluster", str(tmp_path / "planted.npz"), "--most-clusters", "6"]) == 0
    printed = capsys.readouterr().out
    assert "3 clusters: silhouette" in printed
    assert "labels that their neighbours contradict: 1 (doubtful.csv)" in printed
    folder = tmp_path / "planted-clusters"
    assert {path.name for path in folder.iterdir()} == {
        *("clusters.csv", "doubtful.csv", "manifest.csv", "sheet.html", "summary.json")
    }
    for name, fields in (("clusters.csv", CLUSTERS), ("doubtful.csv", DOUBTFUL), ("manifest.csv", MANIFEST)):
        assert list(table(folder / name)[0]) == list(fields)
    (doubt,) = table(folder / "doubtful.csv")
    assert (doubt["path"], doubt["label"], doubt["suggested"]) == (made.paths[0], "10 owl", "1 cat")
    summary = json.loads((folder / "summary.json").read_text())
    check_fields(summary, CLUSTER_SUMMARY, name="summary.json")
    assert summary["sizes"] == [16, 16, 16]
    assert summary["purity"] == pytest.approx(47 / 48)
    assert (folder / "sheet.html").read_text().count("neighbours say 1 cat") == 1
    # the manifest reproduces the data set, with the label corrected
    from finetune.build.data import build_source

    for column, first in (("label", "10 owl"), ("suggested", "1 cat")):
        words = ["data=manifest", f"data.path={folder / 'manifest.csv'}", f"data.label_column={column}"]
        index = build_source(compose(words)).index
        assert index.classes[index.targets[0]] == first
        assert (index.splits == made.splits).all()
        assert index.path(7) == made.paths[7]


def test_links_that_came_with_the_file_are_not_written_through(own: Path, tmp_path: Path, capsys: Capture) -> None:
    mine, foreign = tmp_path / "mine", tmp_path / "foreign"
    mine.mkdir()
    (foreign / "results").mkdir(parents=True)
    sent = Path(shutil.copy(own, foreign / "sent.npz"))
    for link in (foreign / "sent-classify", foreign / "sent-clusters", foreign / "results/knn"):
        link.symlink_to(mine)
    for words in (["classify"], ["cluster"], ["classify", "--output", str(foreign / "results"), "--method", "knn"]):
        assert main([words[0], str(sent), *words[1:]]) == 2
        assert f"leads out of the folder, to {mine}" in capsys.readouterr().err
    assert not list(mine.iterdir())


def test_classifiers_leave_results_like_a_run_and_a_head_for_it(
    own: Path, run_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["classify", str(own), "--output", str(tmp_path / "c")]) == 0
    trained = json.loads((run_dir / "results.json").read_text())
    for method in ("knn", "logistic"):
        results = json.loads((tmp_path / "c" / method / "results.json").read_text())
        check_fields(results, RESULTS, name=method)
        chosen = json.loads((tmp_path / "c" / method / "classifier.json").read_text())
        check_fields(chosen, CLASSIFIER, name="classifier.json")
        assert results["data"] == trained["data"]
        rows = table(tmp_path / "c" / method / "predictions.csv")
        assert list(rows[0]) == list(PREDICTIONS)
        assert sorted(row["path"] for row in rows) == sorted(row["path"] for row in table(run_dir / "predictions.csv"))
        right = sum(row["target"] == row["predicted"] for row in rows) / len(rows)
        assert results["test"]["acc"] == pytest.approx(right)
        assert f"test accuracy {right:.4f}" in capsys.readouterr().out.replace("\n", " ") or method == "logistic"
    # the head on the same backbone predicts what the table says
    from finetune.bundle import load_bundle
    from finetune.data.decode import decode_image
    from finetune.data.transforms import eval_view
    from finetune.models.weights import load_head, state_hash

    model = load_bundle(run_dir)
    model.head = load_head(
        tmp_path / "c/logistic/head.safetensors", backbone_hash=state_hash(model.backbone), classes=model.classes
    )
    view = eval_view(model.input_spec)
    images = torch.stack([view(decode_image(row["path"], channels=3)) for row in rows])
    with torch.inference_mode():
        best = model(images).softmax(1).max(1)
    assert [model.classes[at] for at in best.indices] == [row["predicted"] for row in rows]
    np.testing.assert_allclose(best.values, [float(row["probability"]) for row in rows], atol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["embed", "nowhere", "--output", "e.npz"], "RUN='nowhere': no such folder. For a network that was not"),
        (["embed", "data=digits", "--output", "e.npz"], "needs a RUN, or a network as backbone=NAME"),
        (["embed", *BARE, "--output", "e.npz"], "needs images, or a data set as data=DIR"),
        (["embed", *BARE, "x.png", "data=digits", "--output", "e.npz"], "Both are given: x.png and data=digits"),
        (["embed", *BARE, ".", "--output", "e.csv"], "Use one of .npz, .parquet"),
        (["embed", *BARE, "nowhere.png", "--output", "e.npz"], "IMAGES='nowhere.png': no such file or folder"),
        (["embed", "backbone=resnet19", "data=digits", "--output", "e.npz"], "Did you mean 'resnet18'?"),
        (["embed", *BARE, "inptu.size=3", "data=digits", "--output", "e.npz"], "Did you mean 'input'?"),
        (["embed", *BARE, ".", "--output", "e.npz", "--directions", "3"], "belongs to --whiten"),
        (["embed", *BARE, "data=folder", "data.root=no", "--output", "e.npz"], "data.root='no': no such folder"),
        (["search", "e.npz", "x.png"], "EMBEDDINGS='e.npz': no such file. Make one with: finetune embed"),
        (["search", "e.npz"], "needs a QUERY, --radius for near-duplicates, or --quality"),
        (["search", "e.npz", "x", "-k", "0"], "-k 0: must be at least 1"),
        (["search", "e.npz", "x", "--sheet", "a.pdf"], "--sheet a.pdf: must end in .html"),
        (["search", "e.npz", "x", "--output", "a.txt"], "Use one of .csv, .json"),
        (["search", "e.npz", "--quality", "x"], "--quality takes no QUERY"),
        (["search", "e.npz", "-k", "3", "x.png"], "EMBEDDINGS='e.npz': no such file"),
        (["cluster", "e.npz"], "EMBEDDINGS='e.npz': no such file"),
        (["cluster", "e.npz", "--method", "hdbscan", "--clusters", "3"], "belongs to --method kmeans"),
        (["classify", "e.npz"], "EMBEDDINGS='e.npz': no such file"),
        (["classify", "e.npz", "--method", "svm"], "--method svm: not a choice. Choices: knn, logistic, all."),
    ],
)
def test_mistakes_are_told_and_write_nothing(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"model": {"hash": "x"}}, "Missing or of the wrong type: model.backbone"),
        ({"stages": ["stem"], "stage": "layer9"}, "'layer9' is not one of the stages"),
    ],
)
def test_a_damaged_record_of_the_model_is_named_before_anything_is_fitted(
    damage: dict[str, Any], message: str, own: Path, tmp_path: Path, capsys: Capture
) -> None:
    embeddings = Embeddings.load(own)
    broken = tmp_path / "broken.npz"
    replace(embeddings, metadata={**embeddings.metadata, **damage}).save(broken)
    assert main(["classify", str(broken), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"EMBEDDINGS='{broken}': damaged." in error
    assert message in error
    assert not (tmp_path / "out").exists()


def test_what_training_computed_is_not_computed_again(
    words: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_tiny(words("backbone.name=resnet10t", "schedule=frozen", "schedule.epochs=2"), tmp_path / "run")
    sizes: list[int] = []
    whole = FeatureExtractor.embed

    def counted(self: FeatureExtractor, images: list[torch.Tensor]) -> Any:
        sizes.append(len(images))
        return whole(self, images)

    monkeypatch.setattr(FeatureExtractor, "embed", counted)
    made = ["--precision", "float32", "--output"]
    assert main(["embed", str(run.run_dir), *made, str(tmp_path / "cached.npz")]) == 0
    # the cache holds the evaluation view of training and validation images, so only the test images are computed
    assert sum(sizes) == 6
    monkeypatch.setenv("FINETUNE_CACHE", "off")
    assert main(["embed", str(run.run_dir), *made, str(tmp_path / "plain.npz")]) == 0
    assert sum(sizes) == 6 + 48
    cached, plain = Embeddings.load(tmp_path / "cached.npz"), Embeddings.load(tmp_path / "plain.npz")
    assert np.allclose(cached.features, plain.features, atol=1e-5)

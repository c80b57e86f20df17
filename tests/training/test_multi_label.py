"""A run on images that may show several classes: from a table to the bundle and what is made with it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import finetune
from finetune.bundle import load_bundle, read_model_json
from finetune.cli import main
from finetune.commands.runs import summary_of
from finetune.data.decode import decode_image
from finetune.data.transforms import eval_view
from finetune.errors import UserError
from finetune.file_schema import MODEL_MULTI_LABEL, PREDICTIONS_MULTI_LABEL, RESULTS_MULTI_LABEL, check_fields, leaves
from finetune.report.loading_snippets import how_to_load
from tests.conftest import TINY
from tests.runs import fields_of_a_tiny_run, outcome, train_tiny

CLASSES = ("red", "green", "blue")
SHORT = ("schedule=head_then_all", "schedule.phases.0.epochs=1", "schedule.phases.1.epochs=1", "schedule.lr=0.01")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images, each bright in the channels of its labels; some have none, one file is damaged."""
    folder = tmp_path_factory.mktemp("colours")
    random = np.random.default_rng(0)
    rows = []
    for number in range(40):
        shown = [number >> bit & 1 for bit in range(3)]
        pixels = random.integers(0, 100, (24, 24, 3)) + 150 * np.array(shown)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        rows.append((f"{number}.png", "|".join(name for name, yes in zip(CLASSES, shown, strict=True) if yes)))
    (folder / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows, ("damaged.png", "red")])
    return folder / "table.csv"


@pytest.fixture(scope="module")
def words(table: Path) -> list[str]:
    return ["data=manifest", f"data.path={table}", "data.label_separator=|", "data.on_unreadable=skip", *TINY, *SHORT]


@pytest.fixture(scope="module")
def run_dir(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(words, tmp_path_factory.mktemp("multi_label") / "run").run_dir


def probabilities_of(run_dir: Path, files: list[str]) -> torch.Tensor:
    model = finetune.load(run_dir)
    view = eval_view(model.input_spec)
    with torch.inference_mode():
        return model(torch.stack([view(decode_image(path, channels=3)) for path in files])).sigmoid()


@pytest.mark.parametrize(
    ("file", "fields"), [("results.json", RESULTS_MULTI_LABEL), ("model/model.json", MODEL_MULTI_LABEL)]
)
def test_a_run_writes_exactly_the_documented_fields(file: str, fields: dict[str, object], run_dir: Path) -> None:
    values = json.loads((run_dir / file).read_text())
    check_fields(values, fields, name=file)
    assert fields_of_a_tiny_run(fields) <= {path for path, _ in leaves(values)}


def test_results_count_skipped_files(run_dir: Path) -> None:
    results = json.loads((run_dir / "results.json").read_text())
    assert results["data"]["skipped"] == 1
    assert "damaged.png" in (run_dir / "skipped.csv").read_text()


def test_a_list_of_runs_counts_images_and_not_their_labels(run_dir: Path) -> None:
    assert summary_of(run_dir).test_images == len((run_dir / "predictions.csv").read_text().splitlines()) - 1


def test_training_moves_the_weights_and_ends_better_than_it_began(run_dir: Path) -> None:
    with (run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert float(rows[1]["train/loss"]) < float(rows[0]["train/loss"])
    start = load_file(run_dir / "phases/0-head/start.safetensors")
    end = load_file(run_dir / "final.safetensors")
    assert not torch.equal(start["head.fc.weight"], end["head.fc.weight"])


def test_the_table_of_predictions_is_that_of_the_loaded_bundle(run_dir: Path) -> None:
    with (run_dir / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == tuple(PREDICTIONS_MULTI_LABEL)
    model = load_bundle(run_dir)
    assert model.multi_label
    assert sorted(model.classes) == sorted(CLASSES)
    expected = probabilities_of(run_dir, [row["path"] for row in rows])
    written = torch.tensor([[float(share) for share in row["probabilities"].split(";")] for row in rows])
    torch.testing.assert_close(written, expected, atol=1e-5, rtol=0)
    for row, shares in zip(rows, written, strict=True):
        names = [name for name, share in zip(model.classes, shares.tolist(), strict=True) if share > 0.5]
        assert row["predicted"] == ";".join(names)
        number = int(Path(row["path"]).stem)
        shown = {name for bit, name in enumerate(CLASSES) if number >> bit & 1}
        assert set(row["target"].split(";")) - {""} == shown


def test_predict_names_all_classes_above_a_half(run_dir: Path, table: Path, tmp_path: Path) -> None:
    output = tmp_path / "predictions.csv"
    files = [str(table.parent / f"{number}.png") for number in range(8)]
    assert main(["predict", str(run_dir), *files, "--output", str(output)]) == 0
    with output.open() as file:
        rows = list(csv.DictReader(file))
    classes = load_bundle(run_dir).classes
    for row, shares in zip(rows, probabilities_of(run_dir, files).tolist(), strict=True):
        assert row["predicted"] == ";".join(n for n, share in zip(classes, shares, strict=True) if share > 0.5)
        assert float(row["probability"]) == pytest.approx(max(shares), abs=1e-5)


def test_evaluate_gives_the_metrics_of_the_run(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run_dir), "--output", str(tmp_path / "metrics.json")]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    test = json.loads((run_dir / "results.json").read_text())["test"]
    assert metrics["confusion"] == test["confusion"]
    for name in ("acc", "f1_macro", "f1_micro", "map", "ece", "loss", "recall"):
        assert metrics[name] == pytest.approx(test[name], abs=1e-6), name
    assert "mean average precision" in capsys.readouterr().out


def test_classes_of_another_table_are_aligned_by_name(run_dir: Path, table: Path, tmp_path: Path) -> None:
    classes = load_bundle(run_dir).classes
    rows = [(str(table.parent / f"{n}.png"), n >> 2 & 1, n & 1, "test" if n > 7 else "train") for n in range(24)]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "blue", "red", "split"), *rows])
    given = ["data=manifest", f"data.path={tmp_path / 't.csv'}", "data.label_columns=[blue,red]"]
    assert main(["evaluate", str(run_dir), *given, "--output", str(tmp_path / "m.json")]) == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["missing_classes"] == ["green"]
    positives = {name: sum(metrics["confusion"][at][1]) for at, name in enumerate(classes)}
    assert positives == {"red": 8, "green": 0, "blue": 8}


def test_data_of_one_label_an_image_is_refused(
    run_dir: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in CLASSES:
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(pets / "1 cat")
    assert main(["evaluate", str(run_dir), "data=folder", f"data.root={tmp_path / 'data'}"]) == 2
    assert "has one label per image. The model was trained for several labels" in capsys.readouterr().err


def test_the_card_says_how_probabilities_are_had(run_dir: Path) -> None:
    card = (run_dir / "model/README.md").read_text()
    assert "`logits.sigmoid()`" in card
    assert "Exact match" in card
    assert "softmax" not in card
    assert card.count('["thresholds"]') == 5


@pytest.fixture(scope="module")
def with_thresholds(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that fits its thresholds, on validation images enough for all classes but one."""
    more = ["thresholds=f1", "data.val_fraction=0.5", "data.test_fraction=0.2", "monitor=val/f1_macro"]
    return train_tiny([*words, *more], tmp_path_factory.mktemp("thresholds") / "run").run_dir


def test_fitted_thresholds_decide_wherever_the_model_goes(
    with_thresholds: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, model = with_thresholds, load_bundle(with_thresholds)
    results = json.loads((run_dir / "results.json").read_text())
    assert list(model.thresholds) == results["thresholds"]["values"]
    assert set(model.thresholds) != {0.5}, "thresholds that decide as one half does would prove nothing"
    check_fields(results, RESULTS_MULTI_LABEL, name="results.json")
    check_fields(json.loads((run_dir / "model/model.json").read_text()), MODEL_MULTI_LABEL, name="model.json")
    files = [str(table.parent / f"{number}.png") for number in range(40)]
    shares = probabilities_of(run_dir, files).numpy()
    wanted = [
        ";".join(name for name, p, t in zip(model.classes, row, model.thresholds, strict=True) if p > t)
        for row in shares.astype(np.float64)
    ]
    halves = [";".join(name for name, p in zip(model.classes, row, strict=True) if p > 0.5) for row in shares]
    assert wanted != halves
    # the run's own tables and metrics
    decided = dict(zip(files, wanted, strict=True))
    with (run_dir / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["predicted"] for row in rows] == [decided[row["path"]] for row in rows]
    right = np.mean([set(row["predicted"].split(";")) == set(row["target"].split(";")) for row in rows])
    assert results["test"]["acc"] == pytest.approx(right)
    assert main(["report", str(run_dir)]) == 0
    assert "<th>threshold</th>" in (run_dir / "report.html").read_text()
    assert "A class is predicted above a threshold from" in (run_dir / "model/README.md").read_text()
    assert main(["evaluate", str(run_dir), "--output", str(tmp_path / "metrics.json")]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["confusion"] == results["test"]["confusion"]
    assert metrics["f1_macro"] == pytest.approx(results["test"]["f1_macro"])
    # whatever opens the model afterwards
    assert main(["export", str(run_dir), "--format", "onnx"]) == 0
    assert "the same answers in 100.0%" in capsys.readouterr().out
    for run, name in ((run_dir, "torch.csv"), (run_dir / "exports/model.onnx", "onnx.csv")):
        assert main(["predict", str(run), *files, "--output", str(tmp_path / name)]) == 0
        with (tmp_path / name).open() as file:
            assert [row["predicted"] for row in csv.DictReader(file)] == wanted, name
    assert list(finetune.load(run_dir).predict(files)["predicted"]) == wanted
    # the code that the card shows, on a file that every client decodes alike
    code = how_to_load("onnx", model.input_spec, path=str(run_dir / "exports/model.onnx"), multi_label=True)
    code = code.partition("```python\n")[2].partition("```")[0].replace("photo.jpg", files[5])
    exec(code, {})
    assert capsys.readouterr().out.splitlines()[-1] == str(wanted[5].split(";"))


def test_thresholds_of_a_damaged_bundle_are_named(with_thresholds: Path, tmp_path: Path) -> None:
    for path in (with_thresholds / "model").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    values = read_model_json(tmp_path)
    del values["sha256"]
    (tmp_path / "model.json").write_text(json.dumps(values | {"thresholds": [0.5, 2.0, 0.5]}))
    with pytest.raises(UserError, match=r"model\.json: damaged\. thresholds: must be 3 numbers"):
        load_bundle(tmp_path)


def test_a_bundle_from_before_there_were_several_labels_loads(run_dir: Path, tmp_path: Path) -> None:
    for path in (run_dir / "model").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    values = read_model_json(tmp_path)
    del values["model"]["multi_label"], values["sha256"]
    (tmp_path / "model.json").write_text(json.dumps(values))
    assert not load_bundle(tmp_path).multi_label


@pytest.mark.parametrize(
    "more",
    [
        ("schedule.mixup=0.4", "schedule.cutmix=1.0"),
        ("loss.class_weights=balanced", "loss.name=focal", "schedule.label_smoothing=0.1", "data.balanced=true"),
    ],
)
def test_every_kind_of_loss_trains_and_is_reproducible(more: tuple[str, ...], words: list[str], tmp_path: Path) -> None:
    first, second = (train_tiny([*words, *more], tmp_path / name).run_dir for name in ("first", "second"))
    one, two = outcome(first), outcome(second)
    assert one["files"].pop("predictions.csv") == two["files"].pop("predictions.csv")
    assert one["files"]["final.safetensors"] == two["files"]["final.safetensors"]


def test_a_head_for_the_other_kind_of_labels_is_refused(run_dir: Path) -> None:
    from finetune.models.weights import load_head

    values = read_model_json(run_dir / "model")
    file, known = run_dir / "model/head.safetensors", values["backbone_hash"]
    load_head(file, backbone_hash=known, classes=values["model"]["classes"], multi_label=True)
    with pytest.raises(UserError, match="trained for several labels per image"):
        load_head(file, backbone_hash=known, classes=values["model"]["classes"])

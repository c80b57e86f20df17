"""A new kind of data, head, export, loss or schedule is one object in one table: a run uses it without another change."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import finetune
from finetune.cli import main
from finetune.config import compose
from finetune.config.overrides import data_words, looks_like_a_path, moved_data
from finetune.data.image_source import ArraySource, arrays_source
from finetune.data.sources import DATA_SOURCES, place_settings
from finetune.data.sources.kind import SourceKind
from finetune.errors import UserError
from finetune.export.client import Array, PartClient
from finetune.export.formats import FORMATS
from finetune.export.formats.kind import ExportFormat, ExportJob
from finetune.models.adaptations import ADAPTATIONS, Adaptation
from finetune.models.channels import InputAdapter, adapt_stem
from finetune.models.heads import HEADS, build_head
from finetune.models.heads.kind import Head, HeadKind, HeadSetting
from finetune.split_settings import SplitSettings
from finetune.training.loss_kinds import LOSSES, LossKind
from finetune.training.losses import TrainingLoss
from finetune.training.lr_schedules import LR_SCHEDULES, LRSchedule
from tests.conftest import TINY
from tests.runs import train_tiny


def stripes_source(*, name: str, channels: int = 1, split: SplitSettings = SplitSettings()) -> ArraySource:
    """48 images of 16 x 16 pixels: horizontal and vertical stripes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (48, 16, 16), np.uint8)
    images[:24, ::2] += 180
    images[24:, :, ::2] += 180
    return arrays_source(
        images=images,
        targets=np.repeat(np.arange(2), 24),
        classes=["horizontal", "vertical"],
        name=name,
        channels=channels,
        split=split,
    )


def check_stripes(*, name: str, use: str) -> None:
    if name != "stripes":
        raise UserError(f"data.name={name!r}: not a pattern.")


class CentredHead(Head):
    """A linear layer on features minus a number."""

    def __init__(self, *, num_features: int, num_classes: int, drop_rate: float, centre: float) -> None:
        super().__init__()
        sizes = {"num_features": num_features, "num_classes": num_classes}
        self.settings = {"name": "centred", **sizes, "drop_rate": drop_rate, "centre": centre}
        self.centre = centre
        self.fc = nn.Linear(num_features, num_classes)

    def forward(self, features_BD: Tensor) -> Tensor:
        logits_BK: Tensor = self.fc(features_BD - self.centre)
        return logits_BK


def logits_alone(features: Any, weights: Any, functional: Any) -> Any:
    return functional.linear(features - 0.25, weights["fc.weight"], weights["fc.bias"])


class ArraysClient(PartClient):
    def __init__(self, target: str, options: dict[str, Any]) -> None:
        arrays = np.load(target)
        self.weight, self.bias, self.classes = (
            arrays["weight"],
            arrays["bias"],
            [str(name) for name in arrays["classes"]],
        )
        self.opened_by = f"numpy {np.__version__}"

    def run(self, given: Array) -> Array:
        return np.asarray(given @ self.weight.T + self.bias)


def write_arrays(job: ExportJob, path: Path) -> None:
    fc = job.classifier.head.get_submodule("fc")
    weight, bias = (value.detach().numpy() for value in fc.parameters())
    with path.open("wb") as file:
        np.savez(file, weight=weight, bias=bias - 0.25 * weight.sum(1), classes=np.array(job.classifier.classes))


def squared(distance: Tensor, settings: Mapping[str, float]) -> Tensor:
    return distance**2


@pytest.fixture(scope="module")
def kinds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        stripes = SourceKind(
            builder=lambda: stripes_source,
            specific=("name",),
            needs={"name": "PATTERN"},
            channels=1,
            check=check_stripes,
        )
        patch.setitem(DATA_SOURCES, "stripes", stripes)
        in_range = HeadSetting(default=0.25, holds=lambda value: abs(value) <= 1, rule="must lie between -1 and 1")
        centred = HeadKind(module=CentredHead, logits_alone=logits_alone, specific={"centre": in_range})
        patch.setitem(HEADS, "centred", centred)
        arrays = ExportFormat(
            name="arrays",
            about="the head as NumPy arrays",
            filename="head.npz",
            write=write_arrays,
            client=ArraysClient,
            part="head",
            caution="Only for this test.",
            hint="open it with: numpy.load('{target}')",
        )
        patch.setitem(FORMATS, "arrays", arrays)
        red = Adaptation(
            kernel=lambda weight, channels, pretraining, seed: weight[:, :1],
            statistics=lambda values, channels: [values[0]],
            grey=True,
        )
        patch.setitem(ADAPTATIONS, "first", red)
        patch.setitem(LOSSES, "squared", LossKind(weigh=squared))
        patch.setitem(LR_SCHEDULES, "halves", LRSchedule(factor=lambda step, total: 1.0 if step < total / 2 else 0.5))
        yield


WORDS = ["data=digits", "data.source=stripes", "data.name=stripes", "head.name=centred", *TINY]


@pytest.fixture(scope="module")
def run_dir(kinds: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds") / "run"
    words = ["schedule=frozen", "schedule.phases.0.epochs=2", "loss.name=squared", "schedule.lr_schedule=halves"]
    train_tiny([*WORDS, *words], folder)
    return folder


def test_a_run_trains_on_the_new_source_with_its_channels(run_dir: Path) -> None:
    description = json.loads((run_dir / "model" / "model.json").read_text())["model"]
    assert description["input_spec"]["channels"] == 1
    assert description["classes"] == ["horizontal", "vertical"]


def test_the_new_schedule_sets_the_rates_and_the_new_loss_is_named(run_dir: Path) -> None:
    with (run_dir / "metrics.csv").open() as file:
        first, second = (float(row["lr/head/decay"]) for row in csv.DictReader(file))
    assert first == 2 * second
    assert json.loads((run_dir / "results.json").read_text())["imbalance"]["loss"] == "squared"


def test_the_new_loss_is_what_it_computes(kinds: None) -> None:
    logits, targets = torch.tensor([[1.0, -1.0], [0.0, 2.0]]), torch.tensor([0, 1])
    plain = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    wrong = 1 - logits.softmax(1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(TrainingLoss(name="squared")(logits, targets), plain * wrong**2)


@torch.no_grad()
def test_a_new_adaptation_changes_the_stem_and_what_it_is_given(kinds: None) -> None:
    conv = nn.Conv2d(3, 2, 3)
    first = conv.weight[:, :1].clone()
    pretrained = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.4)}
    adapt_stem(conv, channels=1, adapt="first", seed=0, **pretrained)
    assert torch.equal(conv.weight, first)
    grey = torch.full((1, 1, 4, 4), 0.4)
    assert InputAdapter(channels=1, adapt="first", **pretrained)(grey).abs().max() < 1e-6
    with pytest.raises(UserError, match=r"not defined for input\.channels=5"):
        InputAdapter(channels=5, adapt="first", **pretrained)


def test_a_run_is_evaluated_on_the_new_source(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run_dir)]) == 0
    assert "images (test): accuracy" in capsys.readouterr().out


def test_the_new_head_is_rebuilt_from_the_bundle(run_dir: Path) -> None:
    head = finetune.load(run_dir).head
    assert isinstance(head, CentredHead)
    assert head.centre == 0.25


def test_the_new_head_is_exported_and_compared_in_a_process_without_this_package(run_dir: Path, tmp_path: Path) -> None:
    command = ["export", str(run_dir), "--format", "head", "--check", "4", "--output", str(tmp_path / "h.safetensors")]
    assert main(command) == 0
    assert json.loads((tmp_path / "h.safetensors.parity.json").read_text())["passed"]


def test_the_new_format_is_written_checked_and_explained(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "head.npz"
    assert main(["export", str(run_dir), "--format", "arrays", "--check", "4", "--output", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "parity: passed (numpy" in printed
    assert f"Only for this test.\nopen it with: numpy.load('{target}')" in printed
    assert json.loads((tmp_path / "head.npz.parity.json").read_text())["format"] == "arrays"
    assert main(["export", str(run_dir), "--format", "arrays", "--output", str(tmp_path / "head.csv")]) == 2
    assert "must end in .npz" in capsys.readouterr().err


def test_a_file_that_a_new_source_recognises_needs_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = SourceKind(
        builder=lambda: stripes_source, specific=("name",), place="name", recognises=lambda path: path.suffix == ".vol"
    )
    monkeypatch.setitem(DATA_SOURCES, "volumes", volumes)
    assert data_words("a.vol") == ["data=volumes", "data.name='a.vol'"]
    assert moved_data("a.vol") == "data.name='a.vol'"
    assert looks_like_a_path("a.vol")
    assert place_settings() == ("data.root", "data.path", "data.name")


def test_a_saved_data_set_that_has_moved_is_named_as_its_kind_names_it(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    assert moved_data(str(tmp_path)) == f"data.path='{tmp_path}'"


@pytest.mark.usefixtures("kinds")
def test_what_the_new_kinds_refuse_is_refused_everywhere() -> None:
    with pytest.raises(UserError, match=r"data\.name: must be given\. Set data\.name=PATTERN\."):
        compose(["data=digits", "data.source=stripes"])
    from finetune.build.data import build_source
    from finetune.build.paths import check_paths

    with pytest.raises(UserError, match=r"data\.name='dots': not a pattern"):
        check_paths(compose(["data=digits", "data.source=stripes", "data.name=dots"]))
    with pytest.raises(UserError, match=r"data\.root='x': not a setting of data=stripes, which takes name, "):
        build_source(compose(["data=digits", "data.source=stripes", "data.name=stripes", "data.root=x"]))
    with pytest.raises(UserError, match=r"head\.centre=2: must lie between -1 and 1\."):
        build_head(name="centred", num_features=4, num_classes=2, centre=2)

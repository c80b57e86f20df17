"""``finetune.fit`` and ``finetune.resume``: data in every form, and the user's own parts in at most five lines each."""

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchmetrics import Metric

import finetune
from finetune.api.settings import FitArguments
from finetune.build import assemble
from finetune.config.overrides import data_words
from finetune.config.schema import Config
from finetune.data.manifest import read_manifest
from finetune.data.python_datasets import datasets_of_module
from finetune.errors import ConfigError, RunError, UserError
from finetune.models.user_modules import modules_text
from tests.conftest import TINY

SETTINGS = [word for word in TINY if not word.startswith(("backbone=", "backbone.name", "logger"))]
QUICK: dict[str, Any] = {
    "backbone": "resnet10t",
    "schedule": [finetune.Phase(train=["head"], epochs=1, lr=1e-2, cache="off")],
    "loggers": "none",
    "overrides": SETTINGS,
}


# each of the user's parts in at most five lines
class Head(nn.Linear):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).tanh() * 4


class Loss(nn.Module):
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.multi_margin_loss(logits, targets)


class Colours(Dataset[tuple[Tensor, int]]):
    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        pixels = torch.randint(0, 90, (3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
        return pixels + torch.eye(3, dtype=torch.uint8)[number % 3, :, None, None] * 150, number % 3

    def __len__(self) -> int:
        return 36


def darker(view: Tensor) -> Tensor:
    return view // 2


class Count(pl.Callback):
    batches = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.batches += 1


class Bright(Metric):
    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        self.total += (probabilities.argmax(1) == 2).sum()

    def compute(self) -> Tensor:
        return self.total


class Killed(pl.Callback):
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("struck by lightning")


class Remembers(pl.Callback):
    batches = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.batches += 1

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.batches = state_dict["batches"]


OWN: dict[str, Any] = {**QUICK, "classes": ["red", "green", "blue"]}
OWN["monitor"] = "val/blue"
OWN["schedule"] = [finetune.Phase(train=["head"], epochs=3, lr=1e-2, cache="off")]


def own_parts() -> dict[str, Any]:
    torch.manual_seed(0)
    return {"data": Colours(), "head": Head(512, 3), "loss": Loss(), "transform": darker, "metrics": {"blue": Bright()}}


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Count, Path]:
    """A run of the user's data set, head, loss, transform, callback and logger."""
    folder, counted = tmp_path_factory.mktemp("own"), Count()
    logger = CSVLogger(folder / "logs")
    run = finetune.fit(**OWN | own_parts() | {"callbacks": [counted], "loggers": [logger], "run_dir": folder / "run"})
    return run, counted, folder


def test_own_dataset_head_loss_transform_callback_and_logger_train(own_run: tuple[Any, Count, Path]) -> None:
    run, counted, folder = own_run
    assert counted.batches == 3 * 3
    confusion = np.array(run.results.test.confusion)
    assert run.results.test.own == {"blue": confusion[:, 2].sum()}
    assert "val/blue" in (folder / "run" / "metrics.csv").read_text().splitlines()[0]
    assert run.results.data.classes == ("red", "green", "blue")
    assert run.results.imbalance.loss.endswith("test_fit.Loss")
    assert [len(rows) for rows in (run.results.test.recall, run.results.phases)] == [3, 1]
    assert "val/acc" in next((folder / "logs").rglob("metrics.csv")).read_text()
    assert (folder / "run" / "metrics.csv").is_file()


def test_the_bundle_of_own_parts_names_the_head_and_answers_as_the_run_did(own_run: tuple[Any, Count, Path]) -> None:
    run, _, _ = own_run
    with pytest.raises(UserError, match=r"needs classes that are not part of finetune: .*test_fit\.Head \(head\)"):
        finetune.load(run.bundle)
    model = finetune.load(run.bundle, modules={"head": Head(512, 3)})
    table = model.predict([Colours()[number][0] for number in range(36)])
    assert list(table.columns)[5:8] == ["red", "green", "blue"]
    with (run.run_dir / "predictions.csv").open() as file:
        tested = pd.read_csv(file)
    rows = [int(path.rpartition("/")[2]) for path in tested["path"]]
    assert list(table["predicted"].iloc[rows]) == list(tested["predicted"])


def test_a_run_of_a_head_given_as_an_object_shows_the_calls_in_python_that_open_it(
    own_run: tuple[Any, Count, Path], tmp_path: Path
) -> None:
    from finetune.report.usage import commands, python_snippet
    from finetune.resume_command import resume_command

    run, _, _ = own_run
    with pytest.raises(UserError, match=r"The command line cannot build it.* train with head\._target_=module\.Class"):
        finetune.export(run, "onnx", trust=True)
    model = finetune.load(run, modules={"head": Head(512, 3)})
    text = modules_text(model.describe())
    assert text == 'modules={"head": Head(...)}'
    lines = [line for _, line in commands("own run", modules=text)]
    assert lines == [
        "model = finetune.load('own run', modules={\"head\": Head(...)})",
        "model.predict('IMAGES')",
        "finetune.evaluate(model, 'DIR')",
        "finetune.export(model, 'onnx')",
    ]
    assert "finetune.load('own run/model', modules={\"head\": Head(...)})" in python_snippet(
        "own run", trust=True, modules=text
    )
    made = finetune.export(model, "backbone", output=tmp_path / "backbone.safetensors", check=2)
    assert made.path.exists()
    tested = finetune.evaluate(run, Colours(), split="all", modules={"head": Head(512, 3)})
    assert tested.images == 36
    assert "head=..." in resume_command(run.run_dir)
    assert "in Python" in resume_command(run.run_dir)


def test_a_killed_run_of_own_parts_is_resumed_with_them_to_the_same_bits(
    own_run: tuple[Any, Count, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _, _ = own_run
    with pytest.raises(
        finetune.RunError, match=r"struck by lightning[\s\S]*metrics=\.\.\., callbacks=\.\.\.\) in Python"
    ):
        finetune.fit(**OWN | own_parts() | {"callbacks": [Killed(), Remembers()], "run_dir": tmp_path / "run"})
    with pytest.raises(
        UserError, match=r"It started with data .*, head .*test_fit\.Head.*finetune\.resume\(.*head=\.\.\."
    ):
        finetune.resume(tmp_path / "run")
    remembers = Remembers()
    classes = ["red", "green", "blue"]
    resumed = finetune.resume(tmp_path / "run", **own_parts(), classes=classes, callbacks=[remembers])
    # a callback that is given again goes on where it was; one that is not is named
    assert remembers.batches == 3 * 3
    missing = f"started with callbacks ({__name__}.Killed) from Python, which are not given now"
    assert missing in capsys.readouterr().err
    assert resumed is not None
    assert resumed.results.weights_hash == whole.results.weights_hash
    assert resumed.results.test == whole.results.test


def test_the_backbone_of_own_parts_is_exported(own_run: tuple[Any, Count, Path], tmp_path: Path) -> None:
    run, _, _ = own_run
    model = finetune.load(run.bundle, modules={"head": Head(512, 3)})
    finetune.save_bundle(model, tmp_path / "copy")
    images = torch.stack([Colours()[number][0] for number in range(4)])
    again = finetune.load(tmp_path / "copy", modules={"head": Head(512, 3)})
    assert torch.equal(again(images), model(images))


def arguments(data: Any, **settings: Any) -> tuple[Config, Any]:
    return FitArguments(data=data, **QUICK | settings).config_and_objects()


def test_phases_in_a_list_take_the_names_of_their_stages_and_share_the_schedule_s_settings() -> None:
    phases = [
        finetune.Phase(train=["head"], epochs=2),
        finetune.Phase(train=["head"]),
        finetune.Phase(train=["last", "head"]),
    ]
    config, _ = arguments("digits", schedule=phases, lr=0.1, overrides=["schedule.batch_norm=train"])
    assert [phase.name for phase in config.schedule.phases] == ["head", "head-2", "last-head"]
    assert config.schedule.batch_norm == "train"
    assert config.schedule.lr == 0.1
    config, _ = arguments("digits", schedule="frozen", epochs=7)
    assert [phase.epochs for phase in config.schedule.phases] == [7]
    config, _ = arguments("digits", schedule=phases, overrides=["epochs=5"])
    assert [phase.epochs for phase in config.schedule.phases] == [5, 5, 5]


def test_arguments_become_the_settings_that_they_name(tmp_path: Path) -> None:
    config, objects = arguments(
        tmp_path / "a b",
        backbone="efficientnet_b0",
        head={"name": "mlp", "hidden": 64},
        weights="none",
        size=(48, 64),
        channels=1,
        batch_size=5,
        freeze=["stem"],
        augment="light",
        loss="focal",
        monitor="val/loss",
        seed=3,
        run_dir=tmp_path / "run",
        overrides=["data.val_fraction=0.2"],
    )
    assert config.data.root == str(tmp_path / "a b")
    assert (config.backbone.source, config.backbone.name, config.backbone.weights) == (
        "timm",
        "efficientnet_b0",
        "none",
    )
    assert (config.head.name, config.head.hidden, config.loss.name) == ("mlp", 64, "focal")
    assert (config.input.size, config.input.channels, config.data.batch_size) == ([48, 64], 1, 5)
    assert (config.freeze, config.data.augment, config.monitor, config.seed) == (["stem"], "light", "val/loss", 3)
    assert (config.data.val_fraction, config.run_dir) == (0.2, str(tmp_path / "run"))
    assert objects.names() == {}


def test_a_data_frame_is_a_manifest_whose_missing_labels_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        Image.new("RGB", (9, 9), (40 * number, 9, 9)).save(tmp_path / f"{number}.png")
    frame = pd.DataFrame(
        {"path": [f"{n}.png" for n in range(6)], "label": list("ababab"), "split": ["train", "val", "test"] * 2}
    )
    config, objects = arguments(frame)
    assert config.data.source == "manifest"
    from finetune.build import build_source

    source = build_source(config)
    assert (objects.source, source.index.classes, source.index.path(0)) == (None, ("a", "b"), str(tmp_path / "0.png"))
    frame.loc[4, "label"] = None
    config, _ = arguments(frame)
    with pytest.raises(UserError, match=r"label.*5"):
        build_source(config)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


class Loaders(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(
            TensorDataset(torch.arange(8 * 4 * 4, dtype=torch.uint8).reshape(8, 1, 4, 4), torch.arange(8) % 2)
        )

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.full((2, 1, 4, 4), 7, dtype=torch.uint8), torch.arange(2)))


def test_a_data_module_gives_its_data_sets_and_missing_splits_are_made() -> None:
    config, objects = arguments(Loaders(), overrides=[*SETTINGS, "data.test_fraction=0.25"])
    index = objects.source.index
    assert index.split_sizes() == {"train": 6, "val": 2, "test": 2}
    assert (config.input.channels, config.data.source, index.classes) == (1, "python", ("0", "1"))
    assert objects.source.read(int(index.rows("val")[0])).unique().tolist() == [7]


@pytest.mark.parametrize(
    ("loaders", "message"),
    [
        ([Loaders().val_dataloader()], ""),
        ({"cats": Loaders().val_dataloader()}, ""),
        ([], "no validation"),
        (None, "no validation"),
        ([Loaders().val_dataloader()] * 2, r"val_dataloader of Several must return one loader\. It returns 2"),
        (iter([1]), r"val_dataloader of Several must return a loader with a data set\. It returns a list_iterator"),
        (DataLoader(Stream()), r"Stream is not a data set with a length and numbered items"),
    ],
)
def test_a_list_of_loaders_is_taken_or_refused_and_never_left_out(loaders: Any, message: str) -> None:
    class Several(Loaders):
        def val_dataloader(self) -> Any:
            return loaders

    if message and message != "no validation":
        with pytest.raises(UserError, match=message):
            datasets_of_module(Several())
        return
    assert set(datasets_of_module(Several())) == ({"train"} if message else {"train", "val"})


class Restless(Colours):
    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return torch.randint(0, 255, (3, 4, 4), dtype=torch.uint8), number % 3


class Pairs(Sequence[Any]):
    def __init__(self, *items: Any) -> None:
        self.items = items

    def __getitem__(self, number: Any) -> Any:
        return self.items[number]

    def __len__(self) -> int:
        return len(self.items)


GREY = np.zeros((4, 4), np.uint8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, r"data: is an int\. Give a folder, a table, a data frame"),
        (Restless(), r"item 0 is another image each time.*Leave random transforms out"),
        (Pairs({"image": GREY}), r"item 0 is a dict\. An item must be \(image, target\)"),
        (Pairs((GREY, "cat"), (GREY, "dog")), r"are not classes\. An item must be"),
        (Pairs((np.full((4, 4), 99.0), 0), (GREY, 1)), r"float from 99 to 99.*divide by 255"),
        (Pairs(), r"the data set is empty"),
        (Stream(), r"data: is a Stream\. Give a folder"),
        ({"train": Stream()}, r"a Stream is not a data set with a length and numbered items"),
        ({"train": Colours(), "dev": Colours()}, r"splits must be train, val, test\. Given: dev"),
        (Pairs((GREY, 0), (GREY + 1, 0)), r"at least two classes|two classes"),
    ],
)
def test_data_that_is_none_is_refused_with_the_right_form(data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        arguments(data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": ["head"]}, r"schedule: is a list with a str\. Give finetune\.Phase\(train="),
        ({"head": 3}, r"head: must be a name or an nn\.Module\. It is an int"),
        ({"backbone": nn.Linear}, r"backbone: must be a name or an nn\.Module\. It is the class "),
        ({"backbone": nn.Sequential(nn.Conv2d(3, 4, 3))}, r"stages: must be given"),
        ({"classes": ["a", "b", "a"]}, r"every class must have a name of its own\. Several are called a\. Rename"),
        ({"classes": ["only one"]}, r"classes=only one: must name 3 classes"),
    ],
)
def test_an_argument_of_another_kind_is_refused_by_its_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        arguments(Colours(), **settings)


def test_several_mistakes_in_overrides_are_one_message() -> None:
    with pytest.raises(ConfigError) as error:
        arguments("digits", overrides=["schedule.lrr=1", "data.batchsize=3"])
    assert len(error.value.problems) == 2
    assert "schedule.lr" in str(error.value)


def test_a_monitor_that_a_solved_head_does_not_measure_is_refused_before_the_run_folder_exists(tmp_path: Path) -> None:
    solved = QUICK | {"schedule": "probe", "metrics": {"blue": Bright()}, "monitor": "val/blue"}
    with pytest.raises(ConfigError, match=r"monitor='val/blue': .* not measured in phase .*Monitor val/acc"):
        finetune.fit(Colours(), **solved, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", [{"head": Head(512, 3)}, {"loss": Loss()}], ids=["head", "loss"])
def test_a_solver_for_linear_heads_takes_no_own_head_or_loss(part: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"solver='lbfgs': (solves only linear heads|needs a built-in convex loss)"):
        finetune.fit(Colours(), **QUICK | {"schedule": "probe", "run_dir": tmp_path / "run", **part})
    assert not (tmp_path / "run").exists()


def test_the_record_of_a_run_names_its_objects(own_run: tuple[Any, Count, Path]) -> None:
    run, _, _ = own_run
    record = json.loads((run.run_dir / "run.json").read_text())
    assert sorted(record["decided"]["objects"]) == ["data", "head", "loss", "metrics", "transform"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = finetune.resume(run.run_dir)
    assert (again.bundle, again.results.test.loss) == (run.bundle, run.results.test.loss)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [b"a", "b"]}, r"data: column 'label' must hold text or numbers\. Row 1 holds bytes"),
        ({"label": ["a", ["b", "c"]]}, r"column 'label' must hold text or numbers\. Row 2 holds a list"),
        ({"label": ["a", np.array([1])]}, r"column 'label' .* Row 2 holds a list"),
        ({"path": [b"0.png", "1.png"]}, r"column 'path' .* Row 1 holds bytes"),
        ({"kind": ["a", {"b"}]}, r"column 'kind' .* Row 2 holds a list"),
    ],
)
def test_cells_of_a_frame_that_are_no_texts_or_numbers_are_refused_with_their_row(columns, message):
    frame = pd.DataFrame({"path": ["0.png", "1.png"], "label": ["a", "b"], **columns})
    with pytest.raises(UserError, match=message):
        arguments(frame, overrides=["data.label_column=kind"] if "kind" in columns else [])


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT])
def test_a_missing_label_of_a_frame_is_refused_with_its_row_and_columns_that_are_not_used_may_hold_anything(missing):
    frame = pd.DataFrame(
        {"path": ["0.png", "1.png", "2.png"], "label": ["a", missing, "b"], "data": [b"1", [2], "\ud800"]}
    )
    config, _ = arguments(frame)
    with pytest.raises(UserError, match=r"column 'label' must not be empty\. It is in row 2"):
        read_manifest(config.data.path)


def test_two_columns_of_one_name_are_refused():
    frame = pd.DataFrame([["0.png", "a", "b"]], columns=["path", "label", "label"])
    with pytest.raises(UserError, match=r"data: column names must be unique\. There are several label"):
        arguments(frame)


class Small(nn.Sequential):
    def __init__(self) -> None:
        pooled = nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(nn.Conv2d(3, 4, 3), pooled)
        self.num_features = 4


def test_a_network_of_your_own_goes_through_the_checks_of_one_by_name(pets: Path) -> None:
    arguments: dict[str, Any] = {
        "data": pets,
        "backbone": Small(),
        "stages": {"stem": ["0"], "body": ["1"]},
        "schedule": [finetune.Phase(train=["all"], parameters="norms")],
        "overrides": ["data.num_workers=0", "input.size=32"],
    }
    config, objects = FitArguments(**arguments).config_and_objects()
    lines: list[str] = []
    parts = assemble(config, lines.append, trusted=True, objects=objects)
    assert parts.phases[0].train == ("body", "head")
    assert any("stem without norms parameters" in line or "stem has no norms" in line for line in lines)
    assert any("48 images in 3 classes" in line for line in lines)
    missing = {**arguments, "overrides": [*arguments["overrides"], "head.weights=no.safetensors"]}
    config, objects = FitArguments(**missing).config_and_objects()
    with pytest.raises(UserError, match=r"head\.weights='no\.safetensors': no such file"):
        assemble(config, trusted=True, objects=objects)


def test_a_folder_is_what_it_is_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/dataset_info.json").write_text("{}")
    for place in (tmp_path, tmp_path / "saved", tmp_path / "table.csv"):
        assert FitArguments(data=place).words_of_data() == data_words(str(place))


def test_an_error_of_your_own_code_is_one_message_with_its_traceback_in_the_run_folder(tmp_path: Path) -> None:
    class Fails(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise KeyError("a key of mine")

    with pytest.raises(
        RunError,
        match=r"KeyError: 'a key of mine'\nThe run failed; .*/run/error\.log\. .* finetune\.resume\('.*', data=\.\.\., "
        r"callbacks=\.\.\.\)",
    ):
        finetune.fit(Colours(), **QUICK, callbacks=[Fails()], run_dir=tmp_path / "run")
    trace = (tmp_path / "run/error.log").read_text()
    assert "Traceback" in trace
    assert 'raise KeyError("a key of mine")' in trace

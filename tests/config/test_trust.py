"""What a run folder may name by itself, what only the user may, and that the difference holds to the built object."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from finetune.checksums import write_checked_json
from finetune.cli import main
from finetune.config import compose, from_yaml, to_yaml
from finetune.config.schema import Config
from finetune.config.trust import instantiate, needs_trust, optimizer_class
from finetune.errors import UserError
from finetune.runners.resume import resume
from tests.conftest import TINY
from tests.runs import outcome, train_tiny

SHELL = {"_target_": "os.system", "command": "touch MARK"}
PICKLE = {"_target_": "torch.load", "f": "x.pth", "weights_only": False}
# where a target may stand -> what to set there
PLACES: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "callbacks": lambda c, node: c["callbacks"].update(x=node),
    "logger": lambda c, node: c["logger"].update(x=node),
    "trainer": lambda c, node: c["trainer"].update(plugins=[node]),
    "trainer itself": lambda c, node: c.update(trainer=node),
    "optimizer": lambda c, node: c.update(optimizer=node),
    "schedule.optimizer": lambda c, node: c["schedule"].update(optimizer=node),
    "a phase's optimizer": lambda c, node: c["schedule"]["phases"][0].update(optimizer=node),
    "nested in a listed node": lambda c, node: c["callbacks"].update(
        x={"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/acc", "mode": node}
    ),
    "in a list without a node": lambda c, node: c["callbacks"].update(x=[[{"deep": node}]]),
    "by position": lambda c, node: c["callbacks"].update(
        x={"_target_": "lightning.pytorch.callbacks.Timer", "_args_": [node]}
    ),
    "partial": lambda c, node: c["callbacks"].update(x={**node, "_partial_": True}),
    "data": lambda c, node: c["data"].update(root=node),
}


@pytest.fixture(scope="module")
def finished(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["data=folder", f"data.root={pets}", *TINY, "schedule=frozen", "schedule.phases.0.epochs=1"]
    return train_tiny(words, tmp_path_factory.mktemp("finished") / "run").run_dir


@pytest.fixture
def foreign(finished: Path, tmp_path: Path) -> Path:
    """A run that somebody else might have sent: not finished, so that resume builds what it names."""
    copy = tmp_path / "foreign"
    shutil.copytree(finished, copy)
    (copy / "results.json").unlink()
    shutil.rmtree(copy / "phases/0-head")
    return copy


def rewrite(run_dir: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The same change in ``config.yaml`` and ``run.json``, which must agree."""
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    change(config)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    record = json.loads((run_dir / "run.json").read_text())
    change(record["config"])
    # whoever writes a hostile record writes its checksum too
    write_checked_json(run_dir / "run.json", record)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("node", [SHELL, PICKLE], ids=["shell", "pickle"])
def test_a_foreign_target_is_refused_wherever_it_stands_and_nothing_of_it_runs(
    place: str, node: dict[str, Any], foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rewrite(foreign, lambda config: PLACES[place](config, node))
    with pytest.raises(UserError, match=r"continue with: finetune resume .* --trust") as caught:
        resume(foreign)
    assert node["_target_"] in str(caught.value)
    assert not (tmp_path / "MARK").exists()


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_the_pickle_that_a_callback_would_load_is_not_opened(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"x": Payload(tmp_path / "EXECUTED")}, foreign / "x.pth")
    node = {"_target_": "torch.load", "f": str(foreign / "x.pth"), "weights_only": False}
    rewrite(foreign, lambda config: config["callbacks"].update(x=node))
    assert main(["resume", str(foreign)]) == 2
    said = capsys.readouterr().err
    assert f"callbacks.x: torch.load(f={str(foreign / 'x.pth')!r}, weights_only=False)" in said
    assert f"finetune resume {foreign} --trust" in said
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize(
    "target",
    [
        "pydoc.pipepager",
        "os.system",
        "subprocess.Popen",
        "builtins.exec",
        "hydra.utils.call",
        "hydra._internal.instantiate._instantiate2.instantiate",
        "torch.optim.lr_scheduler.LambdaLR",
        "torch.optim.Optimizer",
        "torch.optim._functional.os.system",
        "torch.optim.Adam.__init__.__globals__",
        "torch.load",
        "timm.optim.create_optimizer_v2",
        "lightning.pytorch.Trainer",
        "importlib.import_module",
        "",
        "torch.optim.AdamW ",
        "TORCH.optim.AdamW",
    ],
)
def test_an_optimizer_of_a_run_is_one_of_torch_or_timm(target: str) -> None:
    with pytest.raises(UserError, match=r"optimizer._target_|not on the list"):
        optimizer_class(target, trusted=False)


def test_every_optimizer_of_torch_and_timm_may_be_named_by_a_run() -> None:
    import timm.optim

    named = [
        f"{module.__name__}.{name}"
        for module in (torch.optim, timm.optim)
        for name, found in vars(module).items()
        if isinstance(found, type) and issubclass(found, torch.optim.Optimizer) and found is not torch.optim.Optimizer
    ]
    assert len(named) > 30
    for name in named:
        assert optimizer_class(name, trusted=False).__name__ == name.rpartition(".")[2]
    assert optimizer_class("torch.optim.adamw.AdamW", trusted=False) is torch.optim.AdamW


@pytest.mark.parametrize("name", ["Timer", "EarlyStopping"])
def test_a_listed_name_that_stands_for_something_else_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    import lightning.pytorch.callbacks as callbacks

    called: list[Any] = []
    for alias in (subprocess.Popen, os.system, subprocess, called.append):
        monkeypatch.setattr(callbacks, name, alias)
        with pytest.raises(UserError, match=r"not on the list of what data may build. Here the name stands for"):
            instantiate({"_target_": f"lightning.pytorch.callbacks.{name}"}, trusted=False)
    assert called == []


@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.lr_scheduler.types.FunctionType",
        "torch.optim.lr_scheduler.Counter",
        "torch.optim.adamw.cast",
        "torch.optim.Nothing",
        "torch.optim.swa_utils.AveragedModel",
        "torch.optim.sgd.AdamW",
    ],
)
def test_what_a_listed_package_has_imported_is_no_optimizer(target: str) -> None:
    with pytest.raises(UserError, match=r"not on the list|optimizers of torch.optim and timm.optim only"):
        optimizer_class(target, trusted=False)


def test_every_class_on_the_list_is_there_under_its_own_name() -> None:
    import importlib

    from finetune.config.trust import _resolve
    from finetune.listed_classes import LISTED

    names = [f"{package}.{name}" for package, classes in LISTED.items() for name in classes]
    assert len(names) > 20
    for name in names:
        package, _, last = name.rpartition(".")
        assert _resolve(name) is getattr(importlib.import_module(package), last)


def needs(**parts: Any) -> list[str]:
    return needs_trust(Config(**parts))


@pytest.mark.parametrize(
    ("key", "node"),
    [
        ("logger", {"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "save_dir": "<run_dir>", "name": ""}),
        ("logger", {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "<run_dir>/csv"}),
        ("callbacks", {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/acc", "mode": "max"}),
        ("callbacks", {"_target_": "lightning.pytorch.callbacks.early_stopping.EarlyStopping", "monitor": "val/acc"}),
        ("callbacks", {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "<run_dir>/mine"}),
        ("callbacks", {"_target_": "lightning.pytorch.callbacks.Timer", "duration": {"hours": 1}}),
    ],
)
def test_local_loggers_and_callbacks_of_lightning_pass(key: str, node: dict[str, Any]) -> None:
    assert needs(**{key: {"x": node}}) == []


@pytest.mark.parametrize(
    ("key", "node", "says"),
    [
        ("logger", {"_target_": "lightning.pytorch.loggers.WandbLogger", "project": "p"}, "the server of wandb"),
        (
            "logger",
            {"_target_": "lightning.pytorch.loggers.MLFlowLogger", "tracking_uri": "http://198.51.100.7:5000"},
            "which contacts http://198.51.100.7:5000",
        ),
        ("logger", {"_target_": "lightning.pytorch.loggers.MLFlowLogger"}, "which contacts the server of mlflow"),
        ("logger", {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "/etc"}, "leads out of the run"),
        ("logger", {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "here"}, "leads out of the run"),
        (
            "logger",
            {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "<run_dir>/../x"},
            "leads out of the run",
        ),
        (
            "logger",
            {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "<run_dir>", "name": "../../x"},
            "name='../../x' leads out of the run",
        ),
        (
            "logger",
            {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "s3://bucket/<run_dir>"},
            "leads out of the run",
        ),
        (
            "callbacks",
            {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "<run_dir>", "filename": "/etc/x"},
            "filename='/etc/x' leads out of the run",
        ),
        ("callbacks", {"_target_": "lightning.pytorch.callbacks.LambdaCallback"}, "LambdaCallback"),
        ("callbacks", {"_target_": ["torch.load"]}, "torch.load"),
        ("callbacks", {"_target_": "lightning.pytorch.callbacks.Timer", "_args_": []}, "have no names"),
    ],
)
def test_what_contacts_an_address_or_writes_elsewhere_is_listed(key: str, node: dict[str, Any], says: str) -> None:
    (line,) = needs(**{key: {"x": node}})
    assert line.startswith(f"{key}.x: ")
    assert says in line


def test_a_secret_among_the_arguments_is_not_shown() -> None:
    (line,) = needs(logger={"x": {"_target_": "lightning.pytorch.loggers.CometLogger", "api_key": "abc123"}})
    assert "abc123" not in line
    assert "api_key=..." in line


def test_a_word_of_the_record_in_place_of_the_precision_builds_nothing(foreign: Path, tmp_path: Path) -> None:
    record = json.loads((foreign / "run.json").read_text())
    for precision in (
        {"_target_": "os.mkdir", "_args_": [str(tmp_path / "made")]},
        {"_target_": "os.mkdir", "path": str(tmp_path / "made")},
        "${oc.env:HOME}",
    ):
        record["decided"]["precision"] = precision
        write_checked_json(foreign / "run.json", record)
        for trust in (False, True):
            with pytest.raises(UserError, match=r"must be a string|cannot be passed on"):
                resume(foreign, trust=trust)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("command", [["resume"], ["resume", "--trust"], ["evaluate"], ["report"]])
@pytest.mark.parametrize("key", ["data.root", "logger.x.tracking_uri"])
def test_an_interpolation_in_a_run_is_not_resolved(
    command: list[str],
    key: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SECRET", "hunter2hunter2")
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    if command[0] == "resume":
        (run_dir / "results.json").unlink()
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}

    def change(config: dict[str, Any]) -> None:
        at = config
        for part in key.split(".")[:-1]:
            at = at.setdefault(part, {})
        at[key.split(".")[-1]] = "a/${oc.env:SECRET}"

    rewrite(run_dir, change)
    assert main([command[0], str(run_dir), *command[1:]]) == 2
    said = capsys.readouterr()
    assert "config.yaml: line" in said.err
    assert "${oc.env:SECRET}" in said.err
    for path in run_dir.rglob("*"):
        assert "hunter2" not in str(path)
        assert not path.is_file() or path in before
        assert not path.is_file() or b"hunter2hunter2" not in path.read_bytes()
    assert "hunter2" not in said.out + said.err


def test_the_name_of_a_run_folder_is_not_resolved_either(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.chdir(tmp_path)
    named = foreign.rename(tmp_path / "${oc.env:SECRET}")
    with pytest.raises(UserError, match="cannot be passed on"):
        resume(Path(named.name))
    assert not list(tmp_path.rglob("*hunter2*"))


YAML_BOMBS = {
    "alias bomb": "a: &a [1,1,1,1,1,1,1,1,1]\n"
    + "".join(
        f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "alias to itself": "a: &a {b: *a}\n",
    "merge key": "a: &a {b: 1}\nc:\n  <<: *a\n",
    "deep lists": "a: " + "[" * 100_000,
    "deep mappings": "a: " + "{a: " * 100_000,
    "deep blocks": "".join(" " * depth + "a:\n" for depth in range(1000)),
    "large": "a: " + "x" * 2**21,
    "many": "a: [" + "1," * 200_000 + "1]",
    "a long value": "a: " + "7" * 20_000,
    "a python object": "a: !!python/object/apply:os.system ['touch MARK']",
    "a binary tag": "a: !!binary aGVsbG8=",
    "a list": "- 1",
    "a number": "1",
    "nothing": "",
    "twice": "seed: 1\nseed: 2\n",
    "no text": "\x00\x01",
    "a key of Hydra's": "hydra:\n  run: {dir: /tmp}\n  callbacks: {x: {_target_: os.system}}\n",
    "defaults": "defaults: [/logger/wandb]\n",
    "not of its type": "loss: {_target_: os.system, name: {_target_: os.system}}\n",
    "an escaped interpolation": 'name: "\\x24{oc.env:HOME}"\n',
    "a broken interpolation": "name: ${" * 1000 + "\n",
}


@pytest.mark.parametrize(
    ("command", "name"),
    [*(("resume", name) for name in YAML_BOMBS), ("evaluate", "alias bomb"), ("report", "a python object")],
)
def test_yaml_that_no_run_writes_is_refused_by_every_command_that_reads_it(
    command: str, name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    if command == "resume":
        (run_dir / "results.json").unlink()
    (run_dir / "config.yaml").write_text(YAML_BOMBS[name])
    assert main([command, str(run_dir)]) == 2
    said = capsys.readouterr().err
    assert "config.yaml" in said
    assert "Traceback" not in said
    assert len(said) < 2000


def test_a_configuration_that_is_a_pipe_a_folder_or_a_device_is_not_opened(finished: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    path = run_dir / "config.yaml"
    for make in (lambda: os.mkfifo(path), path.mkdir, lambda: path.symlink_to("/dev/zero")):
        path.unlink() if path.is_file() or path.is_symlink() or path.is_fifo() else path.rmdir()
        make()
        with pytest.raises(UserError, match="must be a regular file"):
            from_yaml(path)


def test_a_link_out_of_the_run_needs_trust_and_is_not_written_through(foreign: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (foreign / "phases/0-head").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=rf"phases/0-head: a link out, to {tmp_path / 'outside'}"):
        resume(foreign)
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_run_of_torch_lightning_and_timm_goes_on_without_trust(pets: Path, tmp_path: Path) -> None:
    words = ["data=folder", f"data.root={pets}", *TINY, "schedule=frozen", "schedule.phases.0.epochs=1"]
    words += [
        "logger=tensorboard",
        "schedule.phases.0.optimizer={_target_:timm.optim.Lion,betas:[0.9,0.99]}",
        "callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:val/loss,patience:9}",
        "callbacks.rates={_target_:lightning.pytorch.callbacks.LearningRateMonitor,logging_interval:epoch}",
        "trainer.profiler=null",
    ]
    whole = train_tiny(words, tmp_path / "whole").run_dir
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    (part / "results.json").unlink()
    shutil.rmtree(part / "phases/0-head")
    resume(part)
    assert outcome(part) == outcome(whole)


OWN = """\
from pathlib import Path

import lightning.pytorch as pl

Path({imported!r}).write_text("imported")


class Marks(pl.Callback):
    def on_fit_start(self, trainer, pl_module):
        Path({fitted!r}).write_text("fitted")
"""


def test_a_users_own_class_goes_on_by_trust_after_it_was_listed(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imported, fitted = tmp_path / "imported", tmp_path / "fitted"
    (tmp_path / "own_callback_of_trust.py").write_text(OWN.format(imported=str(imported), fitted=str(fitted)))
    monkeypatch.syspath_prepend(str(tmp_path))
    rewrite(foreign, lambda config: config["callbacks"].update(mine={"_target_": "own_callback_of_trust.Marks"}))
    assert main(["resume", str(foreign)]) == 2
    assert "callbacks.mine: own_callback_of_trust.Marks()" in capsys.readouterr().err
    assert not imported.exists()
    assert main(["resume", str(foreign), "--trust"]) == 0
    said = capsys.readouterr().out
    assert said.index("trusted: callbacks.mine: own_callback_of_trust.Marks()") < said.index("resuming:")
    assert fitted.read_text() == "fitted"


def test_what_the_user_types_may_name_any_class() -> None:
    config = compose(["data=digits", "callbacks.x={_target_:collections.OrderedDict,a:1}"])
    assert instantiate(config.callbacks["x"], trusted=True) == {"a": 1}
    assert optimizer_class("collections.OrderedDict", trusted=True).__name__ == "OrderedDict"


def test_a_configuration_of_every_packaged_choice_is_read_back_from_its_file(tmp_path: Path) -> None:
    for logger, optimizer in (("tensorboard", "adamw"), ("none", "sgd"), ("mlflow", "adamw"), ("wandb", "sgd")):
        config = compose(["data=digits", f"logger={logger}", f"optimizer={optimizer}"])
        (tmp_path / "config.yaml").write_text(to_yaml(config))
        assert from_yaml(tmp_path / "config.yaml") == config
        assert len(needs_trust(config)) == (logger in ("wandb", "mlflow"))


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": Payload(tmp_path / "EXECUTED")}, path)
    return path


@pytest.mark.parametrize("begun", [True, False])
def test_a_run_cannot_have_a_file_read_by_a_keyword_of_its_network(
    begun: bool, finished: Path, tmp_path: Path, pickled: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    (run_dir / "results.json").unlink()
    keywords = {"checkpoint_path": str(pickled)}
    rewrite(run_dir, lambda config: config["backbone"].update(kwargs=keywords))
    if begun:
        record = json.loads((run_dir / "run.json").read_text())
        record["model"]["backbone"]["kwargs"] = keywords
        write_checked_json(run_dir / "run.json", record)
    else:
        shutil.rmtree(run_dir / "phases/0-head")
    for trust in (False, True):
        with pytest.raises(UserError, match=r"checkpoint_path.*would (read|let)"):
            resume(run_dir, trust=trust)
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"])
@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_a_keyword_that_opens_files_is_refused_from_the_command_line_too_with_the_way_to_go(
    key: str, source: str, pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "data=digits", *TINY, f"backbone.source={source}", "backbone.name=resnet18"]
    assert main([*words, f"backbone.kwargs.{key}={pickled}"]) == 2
    said = capsys.readouterr().err
    assert f"backbone.kwargs.{key}='{pickled}'" in said
    assert "backbone.weights=PATH" in said
    assert not (tmp_path / "EXECUTED").exists()
    assert main([*words, f"backbone.weights={pickled}"]) == 2
    assert "cannot be read as plain tensors" in capsys.readouterr().err
    assert not (tmp_path / "EXECUTED").exists()

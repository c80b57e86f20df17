"""What can be known before training is said before a run folder is made."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from finetune.build.training import _translated, check_training
from finetune.config import compose
from finetune.errors import UserError

STOP = "lightning.pytorch.callbacks.EarlyStopping"
MORE = "lightning.pytorch.callbacks.GradientAccumulationScheduler"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["monitor=val/accuracy"], "monitor='val/accuracy': not a validation metric. Metrics: val/acc, val/f1_macro"),
        (["thresholds=f1"], "thresholds=f1: only for several labels per image. Leave it out"),
        (["monitor=val/map"], "monitor='val/map': only for several labels per image. Set monitor=val/f1_macro."),
        (
            ["trainer.devicess=2"],
            "trainer.devicess=2: lightning.pytorch.Trainer takes no such argument. Did you mean 'devices'?",
        ),
        (["trainer.accelerator=gppu"], "trainer.accelerator='gppu': not known. Choices: auto, cpu, gpu, mps, tpu."),
        (["trainer.accelerator=cpu", "trainer.devices=x"], "trainer.devices='x': must be a positive whole number"),
        (
            ["trainer.devices=1000000000"],
            "trainer.devices=1000000000: at most 8 processes on this machine, 4 for each of",
        ),
        (["trainer.devices='9'"], "trainer.devices=9: at most 8 processes"),
        (["trainer.num_nodes=2"], "trainer.num_nodes=2: this process was not told of other machines"),
        *(
            (
                [f"trainer.strategy={name}"],
                f"trainer.strategy='{name}': must be auto or ddp. Each process trains a whole copy",
            )
            for name in ("dpp", "fsdp", "deepspeed", "ddp_spawn", "dp", "xla")
        ),
        (
            [
                "trainer.strategy._target_=lightning.pytorch.strategies.DDPStrategy",
                "+trainer.strategy.start_method=spawn",
            ],
            "trainer.strategy: Lightning chose DDPStrategy, which shards the network or copies this process.",
        ),
        (["trainer.precision=fp16"], "trainer.precision='fp16': not known. Choices: auto, 32-true"),
        (
            ["logger=none", "+logger.comet._target_=lightning.pytorch.loggers.CometLogger"],
            "logger.comet: needs the package comet_ml. Install it: pip install comet_ml",
        ),
        *(
            ([f"+trainer.{name}={value}"], f"trainer.{name}={value}: the run decides it itself")
            for name, value in {
                "min_steps": 3,
                "min_epochs": 3,
                "limit_train_batches": 1,
                "limit_test_batches": 0.5,
                "overfit_batches": 2,
                "fast_dev_run": True,
                "check_val_every_n_epoch": 2,
                "val_check_interval": 0.5,
                "reload_dataloaders_every_n_epochs": 1,
            }.items()
        ),
        (
            [f"callbacks.more._target_={MORE}", "callbacks.more.scheduling={1: 2}"],
            "callbacks.more: GradientAccumulationScheduler changes how many batches make a step",
        ),
        ([f"callbacks.stop._target_={STOP}"], f"callbacks.stop.monitor: must be given. {STOP} needs it."),
        (
            [f"callbacks.stop._target_={STOP}", "callbacks.stop.monitor=val/loss", "callbacks.stop.patiens=3"],
            f"callbacks.stop.patiens=3: {STOP} takes no such argument. Did you mean 'patience'?",
        ),
        (
            ["callbacks.stop._target_=nowhere.Stop"],
            "callbacks.stop._target_='nowhere.Stop': cannot be imported. No module",
        ),
        (["callbacks.stop.patience=3"], "callbacks.stop: must be a node with a _target_ and its arguments."),
    ],
)
def test_a_mistake_is_one_message_about_its_setting(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.distributed.cores", lambda: 2)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 0)
    with pytest.raises(UserError) as caught:
        check_training(compose(["data=digits", "logger=none", *words]), tmp_path / "run", multi_label=False)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_callback_object_that_changes_the_steps_is_refused_too(tmp_path: Path) -> None:
    more = GradientAccumulationScheduler({0: 2})
    with pytest.raises(
        UserError, match="callbacks: GradientAccumulationScheduler changes how many batches make a step"
    ):
        check_training(compose(["data=digits"]), tmp_path / "run", multi_label=False, callbacks=[more])


def test_a_device_that_is_not_there_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"trainer\.accelerator='gpu': this machine has no GPU"):
        check_training(compose(["data=digits", "trainer.accelerator=gpu"]), tmp_path / "run", multi_label=False)


def test_machines_are_waited_for_where_they_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node0")
    check_training(
        compose(["data=digits", "trainer.num_nodes=2", "trainer.accelerator=cpu", "trainer.devices=1"]),
        tmp_path / "run",
        multi_label=False,
    )
    assert list(tmp_path.iterdir()) == []


def test_what_is_right_passes_and_writes_nothing(tmp_path: Path) -> None:
    words = [f"callbacks.stop._target_={STOP}", "callbacks.stop.monitor=val/loss", "monitor=val/map"]
    # their defaults, written out
    words += ["+trainer.limit_train_batches=1.0", "+trainer.check_val_every_n_epoch=1"]
    check_training(compose(["data=digits", *words]), tmp_path / "run", multi_label=True)
    check_training(
        compose(["data=digits", "monitor=val/own"]), tmp_path / "run", multi_label=False, user_metrics=["own"]
    )
    assert list(tmp_path.iterdir()) == []


def test_only_lightnings_refusal_of_a_precision_becomes_a_message_about_it() -> None:
    config = compose(["data=digits", "trainer.precision=7-bit"])
    refused = UserError("Precision '7-bit' is invalid. Allowed precision values: ('32-true',)")
    assert "trainer.precision='7-bit': not known." in str(_translated(refused, config))
    other = UserError("Trainer: the plugin has a precision of its own.")
    assert _translated(other, config) is other

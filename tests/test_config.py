"""What configuration is refused, and that it survives being written and read."""

import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf.errors import ConfigKeyError

from finetune.cli import main
from finetune.config import compose, find_key, from_yaml, quoted, to_yaml
from finetune.config.trust import instantiate
from finetune.errors import ConfigError, UserError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["schedule.lr=0"], "schedule.lr=0.0: must be above 0."),
        (["schedule.phases.1.lr=-1"], "schedule.phases[1].lr=-1.0: must be above 0."),
        (["schedule.label_smoothing=2"], "schedule.label_smoothing=2.0: must lie between 0 and 1."),
        (["schedule.ema_decay=1"], "schedule.ema_decay=1.0: must lie strictly between 0 and 1."),
        (["schedule.lr_schedule=cosin"], "Did you mean 'cosine'?"),
        (["schedule.batch_norm=frozen"], "schedule.batch_norm='frozen': not known. Choices: train, eval."),
        (["schedule.phases.0.restore=first"], "schedule.phases[0].restore='first'"),
        (["schedule.phases.0.train=[]"], "schedule.phases[0].train=[]: a phase must name the stages that it trains."),
        (["schedule.phases.0.name=all"], "names must differ. Used twice: all."),
        (["schedule.phases.0.name=a/b"], "becomes a folder name"),
        (["schedule.phases.0.lr_slice=[1e-4]"], "must be two positive rates"),
        (["schedule.phases.0.stage_lr.head=-1"], "schedule.phases[0].stage_lr.head=-1.0: must not be negative."),
        (["data.batch_size=0"], "data.batch_size=0: must be at least 1."),
        (["data.val_fraction=0.6", "data.test_fraction=0.5"], "Together they take everything."),
        (["head.drop_rate=1"], "head.drop_rate=1.0: must be at least 0 and below 1."),
        (["input.adapt=fol"], "Did you mean 'fold'?"),
        (["loss.name=focl"], "Did you mean 'focal'?"),
        *(
            (
                [f"{key}=none", "data.transform._target_=my.Own"],
                "data.transform: follows the augmentation, and with augment",
            )
            for key in ("data.augment", "schedule.augment")
        ),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_path(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(["data=digits", *words])
    assert message in str(caught.value)


def test_problems_are_collected() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["data=digits", "schedule.lr=0", "data.batch_size=0", "head.drop_rate=2"])
    assert len(caught.value.problems) == 3


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    config = compose(
        ["data=digits", "logger=wandb", "schedule.phases.1.stage_lr={layer4:1e-4}", "trainer.max_time=1", "name='a: b'"]
    )
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_yaml(tmp_path / "config.yaml") == config


def test_free_parts_take_any_key_and_typed_parts_none_but_their_own() -> None:
    assert compose(["data=digits", "trainer.detect_anomaly=true"]).trainer["detect_anomaly"] is True
    assert find_key("trainer.anything.below") == (None, True)
    assert find_key("schedule.phases.x.lr")[0] == "schedule.phases is a list; its entries are numbered from 0."
    assert find_key("seed.x")[0] == "seed is a single value and has no key 'x'."


@pytest.mark.parametrize("value", ["a b", "it's", "x=1", "a,b", "back\\slash", "[1]", "ünïcode"])
def test_quoted_values_arrive_as_they_are(value: str) -> None:
    assert compose(["data=folder", f"data.root={quoted(value)}"]).data.root == value


def test_a_logger_that_is_not_installed_is_one_message() -> None:
    node = {"_target_": "lightning.pytorch.loggers.CometLogger"}
    with pytest.raises(UserError, match="CometLogger"):
        instantiate(node, trusted=True, run_dir=Path())


def test_a_trainer_argument_that_does_not_exist_is_one_message() -> None:
    with pytest.raises(UserError, match=r"lightning.pytorch.Trainer: does not take these arguments.*devicess"):
        instantiate({"_target_": "lightning.pytorch.Trainer", "devicess": 2}, trusted=True)


def test_an_interruption_that_omegaconf_hides_behind_an_error_of_its_own_stops_as_any_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C inside OmegaConf, whose clean-up then fails, as one of two hundred random strikes found."""

    def interrupted(*given: Any, **more: Any) -> None:
        try:
            try:
                raise KeyboardInterrupt
            finally:
                raise AttributeError("'NoneType' object has no attribute '_invalidate_flags_cache'")
        except AttributeError as error:
            raise ConfigKeyError(str(error)) from error

    monkeypatch.setattr("hydra.compose", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compose(["data=digits"])
    assert main(["plan", "experiment=digits", "--cfg", "job"]) == 130
    assert capsys.readouterr().err == "Stopped.\n"


def test_a_separator_that_is_a_tilde_stays_one() -> None:
    config = compose(["data=manifest", "data.path=~/t.csv", "data.label_separator=~"])
    assert config.data.label_separator == "~"
    assert config.data.path == os.path.expanduser("~/t.csv")

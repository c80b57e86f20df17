"""Each guard speaks when its fault is there, and only then."""

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from finetune.errors import RunError
from finetune.training.callbacks.checkpoints import PhaseCheckpoints, read_checkpoint
from finetune.training.metrics_csv import MetricsCsv
from tests.training.building import fit, phase_for, tiny_classifier


class At(pl.Callback):
    """Does something to the module after a batch."""

    def __init__(self, step: int, act: Any) -> None:
        self._step, self._act = step, act

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == self._step:
            self._act(pl_module)


def test_a_frozen_weight_that_changed_ends_the_run_by_name(pets: Path) -> None:
    classifier = tiny_classifier()

    @torch.no_grad()
    def nudge(module: Any) -> None:
        module.classifier.get_parameter("backbone.net.layer2.0.conv1.weight")[0, 0, 0, 0] += 1e-7

    with pytest.raises(RunError, match=r"frozen, yet changed: backbone.net.layer2.0.conv1.weight\."):
        fit(classifier, phase_for(classifier, ("head",)), pets, callbacks=[At(2, nudge)])


def test_a_frozen_running_statistic_that_changed_ends_the_run_by_name(pets: Path) -> None:
    classifier = tiny_classifier()

    def thaw(module: Any) -> None:
        module.classifier.backbone.net.layer1[0].bn1.train()

    with pytest.raises(RunError, match=r"frozen, yet changed: backbone.net.layer1.0.bn1.running_mean"):
        fit(classifier, phase_for(classifier, ("head",)), pets, callbacks=[At(1, thaw)])


def test_modes_that_somebody_changed_before_the_first_batch_end_the_run(pets: Path) -> None:
    classifier = tiny_classifier()

    class Trains(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            pl_module.train()

    with pytest.raises(RunError, match="no longer in the mode that the phase asks for"):
        fit(classifier, phase_for(classifier, ("head",)), pets, callbacks=[Trains()])


def test_a_loss_that_is_not_finite_names_the_step_and_the_files_of_its_batch(pets: Path) -> None:
    classifier = tiny_classifier()

    @torch.no_grad()
    def poison(module: Any) -> None:
        next(module.classifier.head.parameters())[0] = float("inf")

    with pytest.raises(RunError, match=r"not finite at step 2 of phase 'test' \(batch 2 of epoch 0\)") as caught:
        fit(classifier, phase_for(classifier, ("head",)), pets, callbacks=[At(2, poison)])
    assert str(pets) in str(caught.value)
    assert "and 4 more" in str(caught.value) or "and 5 more" in str(caught.value)


@pytest.mark.parametrize(("every", "epochs"), [(1, 1), (None, 2)])
def test_a_checkpoint_with_weights_that_are_not_finite_never_replaces_a_good_one(
    every: int | None, epochs: int, pets: Path, tmp_path: Path
) -> None:
    classifier = tiny_classifier(name="test_resnet")
    # inside the only epoch, or with the last step of the second
    step = 2 if every else 10

    @torch.no_grad()
    def poison(module: Any) -> None:
        next(module.classifier.head.parameters())[0] = float("nan")

    checkpoints = PhaseCheckpoints(
        folder=tmp_path, metrics_csv=MetricsCsv(tmp_path / "metrics.csv"), every_n_steps=every
    )
    with pytest.raises(RunError, match=r"phase 'test': weights of head are not finite after step \d+\. The last"):
        fit(
            classifier,
            phase_for(classifier, ("head",), epochs=epochs),
            pets,
            callbacks=[At(step, poison), checkpoints],
            enable_checkpointing=True,
        )
    last = read_checkpoint(tmp_path / "last.ckpt")
    assert last["global_step"] < step
    assert all(tensor.isfinite().all() for tensor in last["state_dict"].values())


def test_a_group_without_a_gradient_for_an_epoch_is_told_once(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier = tiny_classifier()
    # the head no longer sees layer4's output: its loss cannot reach the backbone
    classifier.head.register_forward_pre_hook(lambda module, inputs: (inputs[0].detach(),))
    phase = phase_for(classifier, ("layer4", "head"), epochs=3)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        fit(classifier, phase, pets)
    silent = [line for line in capsys.readouterr().err.splitlines() if "had no gradient" in line]
    assert len(silent) == 2
    assert all(f"'layer4/{kind}'" in text for kind, text in zip(("decay", "no_decay"), silent, strict=True))


def test_a_group_at_rate_zero_may_be_silent(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier = tiny_classifier()
    classifier.head.register_forward_pre_hook(lambda module, inputs: (inputs[0].detach(),))
    fit(classifier, phase_for(classifier, ("layer4", "head"), stage_lr={"layer4": 0.0}), pets)
    assert "had no gradient" not in capsys.readouterr().err

"""Averages of weights, against timm's, and what a checkpoint holds of them."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from timm.utils import ModelEmaV3

from finetune.training.callbacks.ema import StageEma, decay_at
from finetune.training.freezing import tensors_of
from tests.training.building import fit, phase_for, tiny_classifier

STAGES = ("layer4", "head")


def test_averages_are_timms_and_those_of_the_named_stages_alone() -> None:
    classifier = tiny_classifier()
    ours = StageEma(classifier, stages=STAGES, decay=0.5)
    theirs = ModelEmaV3(classifier, decay=0.5, use_warmup=True)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 6):
        with torch.no_grad():
            for tensor in classifier.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(torch.randn(tensor.shape, generator=generator))
                else:
                    tensor.add_(1)
        ours.update(step)
        theirs.update(classifier, step=step)
    expected = {name: t for name, t in theirs.module.state_dict().items() if classifier.stage_of(name) in STAGES}
    assert set(ours.averages) == set(expected)
    for name, average in ours.averages.items():
        if average.is_floating_point():
            torch.testing.assert_close(average, expected[name], rtol=1e-6, atol=1e-6)
        else:
            # timm averages a count too, and rounds; it is not averaged here but copied
            assert int(average) == int(classifier.state_dict()[name])


def test_a_decay_of_many_thousand_steps_does_not_ship_the_start_of_a_short_phase() -> None:
    classifier = tiny_classifier()
    ema = StageEma(classifier, stages=STAGES, decay=0.9999)
    start = {name: tensor.clone() for name, tensor in ema.averages.items()}
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(1)
    for step in range(1, 89):
        ema.update(step)
    weights = dict(classifier.named_parameters())
    assert all(torch.equal(ema.averages[name], weights[name]) for name in start if name in weights)


def test_swapping_in_and_out_leaves_every_bit_as_it_was() -> None:
    classifier = tiny_classifier()
    ema = StageEma(classifier, stages=STAGES, decay=0.5)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.mul_(1.5)
    ema.update(8)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    ema.swap_in()
    inside = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    assert all(torch.equal(inside[name], average) for name, average in ema.averages.items())
    changed = {classifier.stage_of(name) for name in before if not torch.equal(before[name], inside[name])}
    assert changed == set(STAGES)
    ema.swap_out()
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())


class Saves(pl.Callback):
    """Writes a checkpoint after each batch and inside each validation, and keeps the weights of those moments."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.steps: list[dict[str, torch.Tensor]] = []
        self.validated: dict[str, torch.Tensor] = {}

    def _save(self, trainer: pl.Trainer, module: Any, name: str) -> dict[str, torch.Tensor]:
        trainer.save_checkpoint(self._folder / name)
        return {n: t.detach().clone() for n, t in tensors_of(module.classifier, STAGES).items()}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.steps.append(self._save(trainer, pl_module, f"step{len(self.steps)}.ckpt"))

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.validated = self._save(trainer, pl_module, "validation.ckpt")


def test_every_checkpoint_holds_weights_and_averages_of_its_step(pets: Path, tmp_path: Path) -> None:
    classifier = tiny_classifier()
    averages = {name: tensor.detach().clone() for name, tensor in tensors_of(classifier, STAGES).items()}
    # the user's callbacks come before the one that averages
    saves = Saves(tmp_path)
    fit(
        classifier,
        phase_for(classifier, STAGES, ema_decay=0.9, accumulate=2, batch_norm="train"),
        pets,
        callbacks=[saves],
    )
    before = {name: tensor.clone() for name, tensor in averages.items()}
    step = 0
    for number, weights in enumerate(saves.steps):
        # two batches make a step, and so does the odd one at the end
        if number % 2 or number == len(saves.steps) - 1:
            step += 1
            for name, average in averages.items():
                if average.is_floating_point():
                    average.lerp_(weights[name], 1 - decay_at(step, most=0.9))
                else:
                    average.copy_(weights[name])
        saved = torch.load(tmp_path / f"step{number}.ckpt", weights_only=True)
        assert_holds(saved, weights, averages)
    assert not any(
        torch.equal(averages[name], before[name]) for name in dict(classifier.head.named_parameters(prefix="head"))
    )
    assert_holds(torch.load(tmp_path / "validation.ckpt", weights_only=True), saves.steps[-1], averages)
    assert all(torch.equal(saves.validated[name], average) for name, average in averages.items())
    after = tensors_of(classifier, STAGES)
    assert all(torch.equal(after[name], weight) for name, weight in saves.steps[-1].items())


def assert_holds(saved: dict[str, Any], weights: dict[str, torch.Tensor], averages: dict[str, torch.Tensor]) -> None:
    held = saved["callbacks"]["StageEma"]["averages"]
    assert held.keys() == averages.keys()
    assert all(torch.equal(held[name], average) for name, average in averages.items())
    assert saved["state_dict"].keys() == {f"classifier.{name}" for name in weights}
    assert all(torch.equal(saved["state_dict"][f"classifier.{name}"], weight) for name, weight in weights.items())

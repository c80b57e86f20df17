"""Averages of weights, against torch's own, and what a checkpoint holds of them."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from finetune.training.callbacks.ema import StageEma
from finetune.training.freezing import tensors_of
from tests.training.building import fit, phase_for, tiny_classifier

STAGES = ("layer4", "head")


def test_averages_are_torchs_and_those_of_the_named_stages_alone() -> None:
    classifier = tiny_classifier()
    ours = StageEma(classifier, stages=STAGES, decay=0.9)
    theirs = AveragedModel(classifier, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    theirs.update_parameters(classifier)  # its first update copies
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        with torch.no_grad():
            for tensor in classifier.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(torch.randn(tensor.shape, generator=generator))
                else:
                    tensor.add_(1)
        ours.update()
        theirs.update_parameters(classifier)
    expected = {name: t for name, t in theirs.module.state_dict().items() if classifier.stage_of(name) in STAGES}
    assert set(ours.averages) == set(expected)
    for name, average in ours.averages.items():
        if average.is_floating_point():
            torch.testing.assert_close(average, expected[name], rtol=1e-6, atol=1e-6)
        else:
            # torch lets its multi-average round; a count is not averaged here but copied
            assert int(average) == int(classifier.state_dict()[name])


def test_swapping_in_and_out_leaves_every_bit_as_it_was() -> None:
    classifier = tiny_classifier()
    ema = StageEma(classifier, stages=STAGES, decay=0.5)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.mul_(1.5)
    ema.update()
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
    for number, weights in enumerate(saves.steps):
        # two batches make a step, and so does the odd one at the end
        if number % 2 or number == len(saves.steps) - 1:
            for name, average in averages.items():
                if average.is_floating_point():
                    average.lerp_(weights[name], 1 - 0.9)
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

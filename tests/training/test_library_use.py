"""``FineTuner`` is a LightningModule like any other: under the user's Trainer, on the user's batches, with the user's loss."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import finetune
from finetune.errors import ConfigError, RunError, UserError
from tests.models.own_parts import STAGES, Head, Net
from tests.training.building import CLASSES, tiny_classifier

Loader = DataLoader[tuple[Tensor, ...]]


def loader(images: int = 24, *, size: int = 8, seed: int = 0, floats: bool = False) -> Loader:
    """Random images whose class is the colour channel that is bright."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(images) % len(CLASSES)
    pixels = torch.randint(0, 60, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    pixels[torch.arange(images), targets] += 180
    return DataLoader(TensorDataset(pixels.float() / 255 if floats else pixels, targets), batch_size=size)


@contextmanager
def trainer(epochs: int = 1, *, callbacks: Any = (), **settings: Any) -> Iterator[Trainer]:
    """A user's Trainer on the CPU, without the advice that Lightning has for every user."""
    given = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, **settings}
    with warnings.catch_warnings():
        for advice in (
            "does not have many workers",
            "have no `val_dataloader`",
            "callbacks used to create the checkpoint",
            # torch's own deprecation, inside Lightning 2.6
            r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        ):
            warnings.filterwarnings("ignore", message=f".*{advice}")
        yield Trainer(
            max_epochs=epochs, accelerator="cpu", enable_model_summary=False, callbacks=list(callbacks), **given
        )


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


class Rates(pl.Callback):
    """Keeps the rate of each group at each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.steps.append({group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups})


def test_what_trains_moves_and_what_is_frozen_does_not_in_a_single_bit() -> None:
    model = tiny_classifier()
    before = bits(model)
    module = finetune.FineTuner(
        model, train=["layer4", "head"], lr=1e-2, layer_decay=0.5, loss=nn.CrossEntropyLoss(), batch_norm="train"
    )
    with trainer(3) as user:
        user.fit(module, loader(), loader(seed=1))
    moved = changed(before, bits(model))
    # counters, running statistics and weights of what trains, and nothing else
    assert moved == {name for name in before if name.startswith("head.") or model.stage_of(name) == "layer4"}
    assert {"train/loss", "val/loss", "val/acc"} <= user.callback_metrics.keys()
    assert float(user.callback_metrics["val/acc"]) == 1


def test_running_statistics_of_trainable_stages_stay_by_default() -> None:
    model = tiny_classifier()
    before = bits(model)
    with trainer() as user:
        user.fit(finetune.FineTuner(model, train=["all"]), loader())
    moved = changed(before, bits(model))
    assert moved == {name for name, _ in model.named_parameters()}


def test_the_rate_of_a_stage_is_lr_times_layer_decay_to_its_distance_from_the_head() -> None:
    seen = Rates()
    module = finetune.FineTuner(
        tiny_classifier(), train=["layer2", "layer4", "head"], lr=0.01, layer_decay=0.5, lr_schedule="constant"
    )
    with trainer(callbacks=[seen]) as user:
        user.fit(module, loader())
    rates = {"layer2": 0.01 * 0.5**3, "layer4": 0.01 * 0.5, "head": 0.01}
    assert seen.steps == [{f"{s}/{kind}": rate for s, rate in rates.items() for kind in ("decay", "no_decay")}] * 3


def test_warmup_and_cosine_span_the_steps_of_the_fit() -> None:
    seen = Rates()
    module = finetune.FineTuner(tiny_classifier(), train=["head"], lr=1.0, warmup_epochs=1, weight_decay=0)
    with trainer(2, callbacks=[seen], accumulate_grad_batches=2) as user:
        user.fit(module, loader(32))
    # four batches and two steps an epoch: both of the first epoch rise, the second one falls
    assert [step["head/decay"] for step in seen.steps] == [0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_loss_may_be_one_number_or_one_an_image(reduction: str) -> None:
    results = []
    for loss in (None, nn.CrossEntropyLoss(reduction=reduction)):
        model = tiny_classifier()
        with trainer() as user:
            user.fit(finetune.FineTuner(model, train=["head"], loss=loss), loader())
        results.append(bits(model))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)


def test_floats_in_0_to_1_train_as_the_same_bytes_do() -> None:
    results = []
    for floats in (False, True):
        model = tiny_classifier()
        with trainer() as user:
            user.fit(finetune.FineTuner(model, train=["head"]), loader(floats=floats))
        results.append(bits(model))
    assert changed(*results) == set()


def with_shares(*, multi_label: bool) -> tuple[finetune.Classifier, Loader]:
    """A classifier, and images whose targets are rows of zeros and ones."""
    model = tiny_classifier()
    model.multi_label = multi_label
    images, targets = loader().dataset.tensors  # type: ignore[attr-defined]
    return model, DataLoader(TensorDataset(images, nn.functional.one_hot(targets, len(CLASSES)).float()), batch_size=8)


def test_a_multi_label_classifier_trains_on_zeros_and_ones_by_binary_cross_entropy() -> None:
    model, batches = with_shares(multi_label=True)
    images, targets = batches.dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        logits_BK = model.eval()(images)
    with trainer() as user:
        (tested,) = user.test(finetune.FineTuner(model, train=["head"]), batches, verbose=False)
        user.fit(finetune.FineTuner(model, train=["head"]), batches, batches)
    expected = nn.functional.binary_cross_entropy_with_logits(logits_BK, targets)
    assert tested["test/loss"] == pytest.approx(float(expected), rel=1e-4)
    assert float(user.callback_metrics["val/loss"]) < tested["test/loss"]


def test_whole_numbers_of_several_labels_train_as_floats_do() -> None:
    losses = []
    for kind in (torch.float32, torch.int64):
        model, batches = with_shares(multi_label=True)
        images, targets = batches.dataset.tensors  # type: ignore[attr-defined]
        whole = DataLoader(TensorDataset(images, targets.to(kind)), batch_size=8)
        with trainer() as user:
            loss = nn.BCEWithLogitsLoss()
            losses += user.test(finetune.FineTuner(model, train=["head"], loss=loss), whole, verbose=False)
    assert losses[0] == losses[1]


def test_class_shares_train_as_the_class_numbers_do() -> None:
    results = []
    for batches in (loader(), with_shares(multi_label=False)[1]):
        model = tiny_classifier()
        with trainer() as user:
            user.fit(finetune.FineTuner(model, train=["head"], loss=nn.CrossEntropyLoss()), batches)
        results.append(bits(model))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)


def test_the_users_own_head_loss_and_optimizer_train() -> None:
    class Cosines(nn.Module):
        def __init__(self, features: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(len(CLASSES), features))

        def forward(self, features_BD: Tensor) -> Tensor:
            return 10 * nn.functional.normalize(features_BD) @ nn.functional.normalize(self.weight).T

    class Margin(nn.Module):
        def forward(self, logits_BK: Tensor, targets: Tensor) -> Tensor:
            return nn.functional.multi_margin_loss(logits_BK, targets)

    model = tiny_classifier()
    model.head = Cosines(model.backbone.num_features)  # type: ignore[assignment]
    before = bits(model)
    module = finetune.FineTuner(
        model, train=["head"], lr=0.1, loss=Margin(), optimizer=partial(torch.optim.SGD, momentum=0.9)
    )
    with trainer(2) as user:
        (untrained,) = user.test(module, loader(seed=2), verbose=False)
        user.fit(module, loader(), loader(seed=1))
        (trained,) = user.test(module, loader(seed=2), verbose=False)
    assert changed(before, bits(model)) == {"head.weight"}
    assert trained["test/loss"] < untrained["test/loss"]


def test_the_users_own_network_trains_and_comes_back_from_its_bundle_to_the_bit(tmp_path: Path) -> None:
    images, _ = next(iter(loader(seed=2)))
    backbone = finetune.build_backbone(Net(), stages=STAGES)
    model = finetune.build_classifier(backbone, head=Head(16, len(CLASSES)), classes=CLASSES, size=(32, 32))
    before = bits(model)
    module = finetune.FineTuner(model, train=["layer2", "head"], layer_decay=0.5, loss=nn.CrossEntropyLoss())
    with trainer(2) as user:
        user.fit(module, loader(), loader(seed=1))
    assert {model.stage_of(name) for name in changed(before, bits(model))} == {"layer2", "head"}
    finetune.save_bundle(model, tmp_path)
    again = finetune.load(tmp_path, modules={"head": Head(16, len(CLASSES)), "backbone": Net()})
    assert torch.equal(again(images), model.eval()(images))


def test_a_fit_resumed_by_ckpt_path_ends_in_the_same_bits(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"train": ["layer4", "head"], "lr": 1e-2, "warmup_epochs": 1}
    saved = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, filename="{epoch}")
    whole = tiny_classifier()
    with trainer(3, callbacks=[saved], enable_checkpointing=True) as user:
        user.fit(finetune.FineTuner(whole, **settings), loader(), loader(seed=1))
    resumed = tiny_classifier(seed=1)
    with trainer(3) as user:
        module = finetune.FineTuner(resumed, **settings)
        user.fit(module, loader(), loader(seed=1), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    assert user.global_step == 9
    assert changed(bits(whole), bits(resumed)) == set()


def test_lightnings_early_stopping_and_best_checkpoint_follow_the_logged_metrics(tmp_path: Path) -> None:
    best = ModelCheckpoint(dirpath=tmp_path, monitor="val/acc", mode="max", filename="best")
    stop = EarlyStopping(monitor="val/loss", patience=1, min_delta=10)
    with trainer(9, callbacks=[best, stop], enable_checkpointing=True) as user:
        user.fit(finetune.FineTuner(tiny_classifier(), train=["head"]), loader(), loader(seed=1))
    assert user.current_epoch == 2
    assert best.best_model_score == user.callback_metrics["val/acc"]
    assert set(torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]) == {
        f"classifier.{name}" for name in tiny_classifier().state_dict()
    }


def test_probabilities_are_predicted_for_batches_with_and_without_targets() -> None:
    module = finetune.FineTuner(tiny_classifier(), train=["head"])
    with trainer() as user:
        whole = user.predict(module, loader())
        bare = user.predict(module, DataLoader([image for image, _ in loader().dataset], batch_size=8))  # type: ignore[arg-type]
    assert whole is not None
    assert bare is not None
    torch.testing.assert_close(torch.cat(whole), torch.cat(bare))  # type: ignore[arg-type]
    torch.testing.assert_close(torch.cat(whole).sum(1), torch.ones(24))  # type: ignore[arg-type]


def test_mistyped_settings_are_named_together_with_the_nearest_valid_ones() -> None:
    with pytest.raises(ConfigError) as error:
        finetune.FineTuner(
            tiny_classifier(),
            train=["layer5", "head"],
            stage_lr={"haed": 1},
            lr=-1,
            lr_schedule="cosin",
            batch_norm="on",
        )
    assert str(error.value).splitlines() == [
        "train[0]='layer5': not a stage of 'resnet10t'. Stages: stem, layer1, layer2, layer3, layer4, head. "
        "Did you mean 'layer4'?",
        "stage_lr['haed']: not a stage that trains. Stages that train: head. Did you mean 'head'?",
        "lr_schedule='cosin': must be one of cosine, constant, one_cycle. Did you mean 'cosine'?",
        "batch_norm='on': must be one of eval, train.",
        "lr=-1: must be a finite number of at least 0.",
    ]
    with pytest.raises(ConfigError) as error:
        finetune.FineTuner(tiny_classifier(), train=["layer4", "head"], stage_lr={"layer4": -1, "head": "fast"})  # type: ignore[dict-item]
    assert str(error.value).splitlines() == [
        "stage_lr['layer4']=-1: must be a finite number of at least 0.",
        "stage_lr['head']='fast': must be a finite number of at least 0.",
    ]
    vit = tiny_classifier(name="vit_tiny_patch16_224")
    with pytest.raises(
        ConfigError, match=r"train=\['stem'\]: nothing to train. In vit_tiny_patch16_224 they have no norms"
    ):
        finetune.FineTuner(vit, train=["stem"], parameters="norms")
    with pytest.raises(ConfigError, match=r"parameters='lora': finetune\.fit and finetune train have it"):
        finetune.FineTuner(vit, train=["all"], parameters="lora")
    with pytest.raises(ConfigError, match=r"train=\[\]: nothing to train. Name at least one of stem, layer1"):
        finetune.FineTuner(tiny_classifier(), train=[])


def test_stages_without_parameters_of_the_chosen_kind_stay_frozen_with_a_warning() -> None:
    vit = tiny_classifier(name="vit_tiny_patch16_224")
    before = bits(vit)
    with pytest.warns(
        UserWarning, match=r"train=\['all'\]: stem of vit_tiny_patch16_224 has no norms parameters and"
    ) as seen:
        module = finetune.FineTuner(vit, train=["all"], parameters="norms")
    assert seen[0].filename == __file__
    with trainer(limit_train_batches=1) as fit:
        fit.fit(module, loader())
    moved = changed(before, bits(vit))
    assert moved
    assert all(vit.stage_of(name) == "head" or "norm" in name for name in moved)


def test_a_loss_with_parameters_of_its_own_is_refused() -> None:
    class Learned(nn.CrossEntropyLoss):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    with pytest.raises(ConfigError, match="loss=Learned: has parameters of its own, which would not train"):
        finetune.FineTuner(tiny_classifier(), train=["head"], loss=Learned())


def fit_on(batch: Any, **settings: Any) -> None:
    with trainer() as user:
        user.fit(
            finetune.FineTuner(tiny_classifier(), train=["head"], **settings), DataLoader([batch], batch_size=None)
        )


IMAGES = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((IMAGES, torch.tensor([0, 1, 2, 3])), r"targets=3: must be from 0 to 2, for the classes 1 cat, 2 dog, 10 owl"),
        ((IMAGES, torch.tensor([0, -1, 2, 1])), r"targets=-1: must be from 0 to 2"),
        (
            (IMAGES, torch.tensor([0, 1])),
            r"targets: must be class numbers of shape \(4,\), for 3 classes. They are torch.int64",
        ),
        (
            (IMAGES, torch.zeros(4)),
            r"targets: must be class numbers of shape \(4,\).* They are torch.float32 of shape \(4,\)",
        ),
        (
            (IMAGES - 2.0, torch.tensor([0, 1, 2, 0])),
            r"images: float from -2 to -2. The classifier takes float in \[0, 1\]",
        ),
        ((IMAGES + 255.0, torch.tensor([0, 1, 2, 0])), r"images: float from 255 to 255.* divide by 255"),
        ((IMAGES, torch.zeros(4, 5)), r"targets: must be class numbers of shape \(4, 3\)"),
        ((IMAGES,), r"batch: must be \(images, targets\), two tensors. It is a (list|tuple) of 1"),
        ({"image": IMAGES}, r"batch: must be \(images, targets\), two tensors. It is a dict"),
    ],
)
def test_a_batch_that_is_no_pair_of_images_and_targets_is_refused(batch: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_on(batch)


def test_a_loss_of_another_shape_is_refused_by_name() -> None:
    class ByClass(nn.Module):
        def forward(self, logits_BK: Tensor, targets: Tensor) -> Tensor:
            return logits_BK.square()

    with pytest.raises(
        UserError, match=r"loss=ByClass: must return one number, or one for each of the 4 images.*\(4, 3\)"
    ):
        fit_on((IMAGES, torch.tensor([0, 1, 2, 0])), loss=ByClass())


def test_a_fit_ends_where_the_loss_is_not_finite_or_something_moves_a_frozen_weight() -> None:
    class Lost(nn.CrossEntropyLoss):
        def forward(self, logits_BK: Tensor, targets: Tensor) -> Tensor:
            return super().forward(logits_BK, targets) * float("nan")

    class Nudge(pl.Callback):
        @torch.no_grad()
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            pl_module.classifier.get_parameter("backbone.net.layer2.0.conv1.weight").add_(1e-7)

    with pytest.raises(
        RunError, match=r"loss=nan: not finite at step 0 .* Lower lr, give the Trainer gradient_clip_val=1"
    ):
        fit_on((IMAGES, torch.tensor([0, 1, 2, 0])), loss=Lost())
    moved = r"frozen, yet changed: backbone\.net\.layer2\.0\.conv1\.weight"
    with pytest.raises(RunError, match=moved), trainer(callbacks=[Nudge()]) as user:
        user.fit(finetune.FineTuner(tiny_classifier(), train=["head"]), loader())


def test_a_schedule_without_an_end_is_refused() -> None:
    module = finetune.FineTuner(tiny_classifier(), train=["head"])
    with pytest.raises(UserError, match="lr_schedule='cosine': needs to know when training ends"), trainer(-1) as user:
        user.fit(module, loader())


TWO_PROCESSES = """
import torch
from lightning.pytorch import Trainer
import finetune
from tests.training.building import tiny_classifier
from tests.training.test_library_use import loader

if __name__ == "__main__":
    model = tiny_classifier()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = Trainer(max_epochs=2, devices=2, accelerator="cpu", strategy="ddp", logger=False,
                      enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    module = finetune.FineTuner(model, train=["layer4", "head"], lr=1e-2, batch_norm="train")
    trainer.fit(module, loader(), loader(seed=1))
    moved = {model.stage_of(n) for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(trainer.strategy.broadcast(weights), weights)
    print(trainer.global_rank, sorted(moved), trainer.global_step, sorted(trainer.callback_metrics), flush=True)
"""


def test_two_processes_train_one_network_and_freeze_the_same_stages(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    root = str(Path(__file__).parents[2])
    words = [sys.executable, "-W", "ignore", str(script)]
    ran = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": root})
    assert ran.returncode == 0, ran.stderr
    lines = sorted(line for line in ran.stdout.splitlines() if line[:2] in ("0 ", "1 "))
    logged = "['lr/head/decay', 'lr/head/no_decay', 'lr/layer4/decay', 'lr/layer4/no_decay', 'train/loss', 'val/acc', 'val/loss']"
    # 24 images in batches of 8, half of them for each process: two steps an epoch
    assert lines == [f"{rank} ['head', 'layer4'] 4 {logged}" for rank in (0, 1)]

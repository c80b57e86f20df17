"""Small classifiers, data and fits without a run around them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from finetune.data.datamodule import ImageDataModule
from finetune.data.image_source import Source
from finetune.data.sources.folder import folder_source
from finetune.models.build import build_backbone
from finetune.models.classifier import Classifier, build_classifier
from finetune.phases import ResolvedPhase
from finetune.training.freezing import apply_phase
from finetune.training.losses import TrainingLoss
from finetune.training.phase_module import FitSettings, PhaseModule
from finetune.training.quiet_lightning import quiet_lightning

CLASSES = ("1 cat", "2 dog", "10 owl")


def tiny_classifier(
    *, source: str = "timm", name: str = "resnet10t", size: int = 32, seed: int = 0, **head: Any
) -> Classifier:
    """Random weights, settled BatchNorm statistics, three classes."""
    backbone = build_backbone(source=source, name=name, weights="none", seed=seed)
    settings = {"name": "linear", "drop_rate": 0.0, **head}
    classifier = build_classifier(
        backbone=backbone, head=settings, classes=CLASSES, channels=3, size=(size, size), seed=seed
    )
    generator = torch.Generator().manual_seed(1)
    for module in classifier.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            # not the fresh 0 and 1, and no branch that starts at zero: every weight then gets a gradient
            assert module.running_mean is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            torch.nn.init.ones_(module.weight)
    return classifier


def phase_for(classifier: Classifier, train: Sequence[str], **settings: Any) -> ResolvedPhase:
    """A short phase."""
    given = {"name": "test", "epochs": 1, "lr": 0.01, "batch_size": 8, "augment": "none", **settings}
    return ResolvedPhase(train=tuple(s for s in classifier.stages if s in train), stages=classifier.stages, **given)


def adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW with a weight decay that would show."""
    return torch.optim.AdamW(groups)


def fit(
    classifier: Classifier,
    phase: ResolvedPhase,
    data: Path | Source,
    *,
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] = adamw,
    callbacks: Sequence[pl.Callback] = (),
    **trainer: Any,
) -> PhaseModule:
    """Train one phase on an image folder, or on a source."""
    source = folder_source(root=str(data)) if isinstance(data, Path) else data
    module_of_data = ImageDataModule(source=source, spec=classifier.input_spec, num_workers=0)
    module_of_data.begin_phase(name=phase.name, batch_size=phase.batch_size, augment=phase.augment)
    apply_phase(classifier, phase)
    module = PhaseModule(
        classifier=classifier,
        phase=phase,
        optimizer=optimizer,
        loss=TrainingLoss(label_smoothing=phase.label_smoothing),
        settings=FitSettings(monitor="val/acc"),
        batches_per_epoch=module_of_data.batches_per_epoch(phase.batch_size),
        file_of=source.index.path,
    )
    with quiet_lightning():
        pl.Trainer(
            max_epochs=phase.epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            accumulate_grad_batches=phase.accumulate,
            gradient_clip_val=phase.gradient_clip,
            callbacks=list(callbacks),
            **{"enable_checkpointing": False, **trainer},
        ).fit(module, datamodule=module_of_data)
    return module


class NormedHead(torch.nn.Module):
    """A head with running statistics."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(num_features)
        self.fc = torch.nn.Linear(num_features, num_classes)

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        logits_BK: torch.Tensor = self.fc(self.norm(features_BD))
        return logits_BK

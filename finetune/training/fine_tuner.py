"""Fine-tuning as a plain LightningModule: any Trainer, any DataLoader of ``(images, targets)``, any loss."""

# B = batch, C = input channels, H/W = image height/width, K = classes

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from finetune.arguments import public
from finetune.errors import ConfigError, UserError, did_you_mean, shortened
from finetune.metrics import correct_predictions
from finetune.models.classifier import Classifier
from finetune.models.raw_images import check_range
from finetune.phases import ResolvedPhase, expand_stages
from finetune.training.callbacks.guards import Guards
from finetune.training.freezing import apply_phase, trainable_names, without_empty_stages
from finetune.training.losses import MultiLabelLoss, TrainingLoss
from finetune.training.low_rank import LORA
from finetune.training.lr_schedules import LR_SCHEDULES
from finetune.training.param_groups import OptimizerFactory
from finetune.training.staged_module import StagedModule

# a user's own Trainer keeps no history of validation, so `plateau` is left out
SCHEDULES = tuple(name for name, schedule in LR_SCHEDULES.items() if not schedule.follows_validation)


class FineTuner(StagedModule):
    """Trains chosen stages of a classifier and keeps the others frozen, bitwise unchanged.

        module = finetune.FineTuner(model, train=["layer4", "head"], lr=1e-3, layer_decay=0.5, loss=nn.CrossEntropyLoss())
        Trainer(max_epochs=3).fit(module, train_loader, val_loader)

    A batch is a tuple or list ``(images, targets)``. Images are (B, C, H, W), ``uint8`` from 0 to 255 or float in [0, 1]: the
    type decides. The classifier normalises them itself, so the transforms must not. Targets are class numbers (B,), or zeros
    and ones (B, K) for a multi-label classifier; the training loss may also take class shares (B, K), as mixup makes them.

    Frozen stages have no gradient and stay in evaluation mode, so neither weights nor BatchNorm statistics can move. Each
    trainable stage has its own optimizer groups, ``<stage>/decay`` and ``<stage>/no_decay``. The module logs ``train/loss``,
    ``val/loss`` and ``val/acc`` once an epoch (``test/...`` in a test), and ``lr/<group>``. It stops a fit whose loss is not
    finite, or in which something else changed a frozen tensor.

    Rates are a function of the step alone, so training resumed by ``ckpt_path`` gives the same bits wherever the batches are
    the same; their order and dropout draw from torch's own generators.

    Args:
        classifier: Network to train, for instance from :func:`finetune.build_classifier`.
        train: Stages to train, or ``all``, ``backbone`` or ``last`` (the last fifth of the backbone's stages).
        lr: Peak learning rate of the head.
        layer_decay: ``lr(stage) = lr * layer_decay ** (distance from the head)``; the first stage is five away.
        stage_lr: Peak rates of single stages, which override ``layer_decay``.
        loss: Any module from logits (B, K) and targets to one number or to losses (B,); None takes cross-entropy, or binary
            cross-entropy for a multi-label classifier.
        optimizer: Optimizer class, or function from parameter groups to an optimizer.
        weight_decay: Weight decay of weights with two or more dimensions; biases and norms have none.
        lr_schedule: ``cosine``, ``constant`` or ``one_cycle``, over all optimizer steps of the fit.
        warmup_epochs: Epochs of linear warmup at the start.
        batch_norm: ``eval`` keeps the BatchNorm statistics of trainable stages, ``train`` lets them move.
        parameters: Train ``all`` parameters of the trainable stages, or only their ``norms``, ``bias`` or ``gates``; the
            head always trains whole. Stages without such parameters stay frozen, with a warning that names them. ``lora`` is
            for :func:`finetune.fit`, which merges it when a phase ends.

    Raises:
        ConfigError: A stage is unknown, or a setting is out of range; all such problems together.
    """

    @public
    def __init__(
        self,
        classifier: Classifier,
        *,
        train: Sequence[str],
        lr: float = 1e-3,
        layer_decay: float = 1.0,
        stage_lr: Mapping[str, float] | None = None,
        loss: nn.Module | None = None,
        optimizer: OptimizerFactory = torch.optim.AdamW,
        weight_decay: float = 0.01,
        lr_schedule: str = "cosine",
        warmup_epochs: float = 0.0,
        batch_norm: str = "eval",
        parameters: str = "all",
    ) -> None:
        names = [train] if isinstance(train, str) else list(train)
        stages, problems = expand_stages(names, classifier.stages, where="train", network=classifier.backbone.name)
        if not names:
            problems.append(f"train=[]: nothing to train. Name at least one of {', '.join(classifier.stages)}.")
        problems += [
            f"stage_lr[{stage!r}]: not a stage that trains. Stages that train: {', '.join(stages)}."
            f"{did_you_mean(stage, stages)}"
            for stage in stage_lr or {}
            if stages and stage not in stages
        ]
        problems += _not_one_of("lr_schedule", lr_schedule, SCHEDULES)
        problems += _not_one_of("batch_norm", batch_norm, ("eval", "train"))
        if parameters == LORA:
            problems.append(
                f"parameters='{LORA}': finetune.fit and finetune train have it. They add the products when a phase begins and "
                "merge them into the weights when it ends, which a fit by a Trainer of your own does not. Use "
                'finetune.fit(schedule=[finetune.Phase(train=["all"], parameters="lora")]), or set norms, bias or gates here.'
            )
        else:
            problems += _not_one_of("parameters", parameters, ("all", "norms", "bias", "gates"))
        settings = {"lr": lr, "layer_decay": layer_decay, "weight_decay": weight_decay, "warmup_epochs": warmup_epochs}
        settings |= {f"stage_lr[{stage!r}]": rate for stage, rate in (stage_lr or {}).items() if stage in stages}
        problems += [
            f"{name}={value!r}: must be a finite number of at least 0."
            for name, value in settings.items()
            if not (isinstance(value, int | float) and 0 <= value < math.inf)
        ]
        if loss is not None and any(parameter.requires_grad for parameter in loss.parameters()):
            problems.append(
                f"loss={type(loss).__name__}: has parameters of its own, which would not train. "
                "Put them into the classifier's head, or set their requires_grad to False."
            )
        if not problems and not trainable_names(classifier, train=stages, parameters=parameters):
            problems.append(
                f"train={stages}: nothing to train. In {classifier.backbone.name} they have no {parameters} parameters. Name "
                "other stages, or set parameters='all'."
            )
        if problems:
            raise ConfigError(problems)
        phase = ResolvedPhase(
            name="fit",
            train=tuple(stages),
            stages=classifier.stages,
            lr=lr,
            layer_decay=layer_decay,
            stage_lr=dict(stage_lr or {}),
            weight_decay=weight_decay,
            lr_schedule=lr_schedule,
            warmup_epochs=warmup_epochs,
            batch_norm=batch_norm,
            parameters=parameters,
        )
        filled = without_empty_stages(classifier, phase)
        if empty := [stage for stage in phase.train if stage not in filled.train]:
            warnings.warn(
                f"train={names}: {', '.join(empty)} of {classifier.backbone.name} "
                f"{'has' if len(empty) == 1 else 'have'} no {parameters} parameters and "
                f"{'stays' if len(empty) == 1 else 'stay'} frozen.",
                stacklevel=3,  # past the check of the arguments, to the line that builds the module
            )
        default_loss = MultiLabelLoss() if classifier.multi_label else TrainingLoss()
        super().__init__(classifier, filled, optimizer=optimizer, loss=default_loss if loss is None else loss)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Compute the logits (B, K) of raw images."""
        logits_BK: Tensor = self.classifier(images_BCHW)
        return logits_BK

    def configure_callbacks(self) -> list[Callback]:
        """Return the guards of a fit: they stop it if the loss is not finite or a frozen tensor has changed."""
        return [Guards(classifier=self.classifier, phase=self.phase)] if self.trainer.state.fn == "fit" else []

    def setup(self, stage: str) -> None:
        """Freeze before the optimizer is made and DDP wraps the network."""
        if stage == "fit":
            # temperature, thresholds and curves were fitted to weights that will now change
            self.classifier.unfit()
            apply_phase(self.classifier, self.phase)
            # Lightning warns about each module that is in evaluation mode before on_train_start, where modes are set
            self.classifier.train()

    def on_train_start(self) -> None:
        """Set the modes of all stages, and count the optimizer steps of the fit."""
        apply_phase(self.classifier, self.phase)
        steps = self.trainer.estimated_stepping_batches
        per_epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        endless = not 0 < steps < math.inf
        if endless and self.phase.lr_schedule != "constant":
            raise UserError(
                f"lr_schedule={self.phase.lr_schedule!r}: needs to know when training ends, and this Trainer has no end. "
                "Set max_epochs (or max_steps, for batches without a length), or lr_schedule='constant'."
            )
        if self.phase.warmup_epochs and math.isinf(per_epoch):
            raise UserError(
                f"warmup_epochs={self.phase.warmup_epochs:g}: an epoch of batches without a length has no number of steps. "
                "Leave it out, or set limit_train_batches."
            )
        self.total_steps = 0 if endless else int(steps)
        self.warmup_steps = round(self.phase.warmup_epochs * math.ceil(per_epoch)) if self.phase.warmup_epochs else 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Write the rates of the step into the optimizer's groups."""
        self.set_rates()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Check a batch while it is still on the CPU, where reading it does not wait for a device."""
        if not self.trainer.predicting:
            images, targets = _pair(batch)
            if self.trainer.global_step == 0:
                check_range(images)
            self._check_targets(images, targets)
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the mean loss of a batch."""
        images, targets = _pair(batch)
        loss = self._mean_loss(self(images), targets)
        self.log(
            "train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=len(images)
        )
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the rates of the epoch's last step."""
        rates = {f"lr/{group['name']}": group["lr"] for group in self.trainer.optimizers[0].param_groups}
        self.log_dict(rates, sync_dist=False, rank_zero_only=True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``val/loss`` and ``val/acc``."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``test/loss`` and ``test/acc``."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the probabilities (B, K) of a batch of images, with or without targets."""
        return self.classifier.probabilities(self(batch if isinstance(batch, Tensor) else batch[0]))

    def _evaluate(self, batch: Any, split: str) -> None:
        images, targets = _pair(batch)
        logits_BK = self(images)
        right_B = correct_predictions(logits_BK, targets)
        values = {f"{split}/loss": self._mean_loss(logits_BK, targets), f"{split}/acc": right_B.float().mean()}
        self.log_dict(values, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=len(images))

    def _mean_loss(self, logits_BK: Tensor, targets: Tensor) -> Tensor:
        # as UserLoss: class numbers stay integers, and losses of several labels take floats
        loss = self.loss(logits_BK, targets.to(logits_BK.dtype) if targets.ndim == 2 else targets.long())
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        if shape not in ((), (len(logits_BK),)):
            raise UserError(
                f"loss={type(self.loss).__name__}: must return one number, or one for each of the {len(logits_BK)} images. It "
                f"returned {shape}. Give it reduction='mean', or take the mean over the classes."
            )
        mean: Tensor = loss.mean()
        return mean

    def _check_targets(self, images: Tensor, targets: Tensor) -> None:
        """Refuse targets that do not fit this classifier.

        Raises:
            UserError: The shape, the type or a value is wrong; the message names it.
        """
        classes, several = len(self.classifier.classes), self.classifier.multi_label
        shares = targets.ndim == 2 and (several or self.trainer.training)
        expected = (len(images), classes) if shares or several else (len(images),)
        if tuple(targets.shape) != expected or (targets.ndim == 1 and targets.is_floating_point()):
            what = "zeros and ones" if several else "class numbers"
            raise UserError(
                f"targets: must be {what} of shape {expected}, for {classes} classes. They are {targets.dtype} of shape "
                f"{tuple(targets.shape)}."
            )
        top = 1 if targets.ndim == 2 else classes - 1
        wrong = targets[(targets < 0) | (targets > top)]
        if len(wrong):
            raise UserError(
                f"targets={shortened(sorted(set(wrong.tolist())))}: must be from 0 to {top}, for the classes "
                f"{shortened(self.classifier.classes)}. Number the classes in their order."
            )


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    """Take images and targets out of a batch."""
    if isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return batch[0], batch[1]
    what = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, tuple | list) else type(batch).__name__
    raise UserError(
        f"batch: must be (images, targets), two tensors. It is a {what}. Give the DataLoader a data set of such pairs, or a "
        "collate_fn that makes them."
    )


def _not_one_of(name: str, value: str, choices: Sequence[str]) -> list[str]:
    """Return the problem of a value that is not one of its choices; empty if it is one."""
    if value in choices:
        return []
    return [f"{name}={value!r}: must be one of {', '.join(choices)}.{did_you_mean(value, choices)}"]

"""Evaluate the final weights of a run on the validation and the test images."""

from collections.abc import Callable, Mapping
from pathlib import Path

import lightning.pytorch as pl
import torch
from torchmetrics import Metric

from finetune.activation_cache.cache import ActivationCache
from finetune.counted import counted
from finetune.data.datamodule import ImageDataModule
from finetune.data.loading import Batch
from finetune.data.sampling import Rows
from finetune.errors import RunError
from finetune.metrics import build_metrics, split_metrics, update_metrics
from finetune.models.classifier import Classifier
from finetune.phases import ResolvedPhase
from finetune.training.eval_outputs import SplitEvaluation, SplitOutputs, Validation, sample_of
from finetune.training.phase_forward import PhaseForward

# most numbers of a validation's outputs that are kept in memory during training
MOST_KEPT = 4_000_000


def reusable_validation(validated: Validation | None, *, step: int, images: int) -> Validation | None:
    """Return the fit's last validation if it covered every image with the weights the phase passes on, else None.

    Args:
        validated: Validation that the fit kept.
        step: Optimizer step of the phase that made those weights.
        images: Number of images in the validation split.
    """
    if validated is None or validated.step != step or len(validated.outputs.get("rows", ())) != images:
        # the phase was finished before a resume, or the Trainer is configured to validate at other times or on a part
        return None
    return validated


class EvaluationModule(pl.LightningModule):
    """Evaluates a classifier on a split, and collects its outputs.

    Args:
        classifier: Network with its final weights.
        forward: Forward pass from what the batches hold.
        embedded_rows: Rows of the index whose embeddings are kept; None keeps none.
        user_metrics: User-supplied metrics by name; None for none.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        forward: PhaseForward,
        embedded_rows: torch.Tensor | None = None,
        user_metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.metrics = build_metrics(len(classifier.classes), multi_label=classifier.multi_label, own=user_metrics)
        # None until the whole split has been evaluated
        self.evaluation: SplitEvaluation | None = None
        self._forward, self._outputs = forward, SplitOutputs(embedded_rows)

    def on_test_start(self) -> None:
        """Build the frozen prefix, as the fit does."""
        self._forward.prepare(device=self.device, context=self.trainer.precision_plugin.forward_context)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the metrics with one batch and collect its outputs."""
        features_BD, logits_BK = self._forward.features_and_logits(batch.images)
        update_metrics(self.metrics, logits=logits_BK, targets=batch.targets)
        self._outputs.add(
            rows=batch.rows,
            targets=batch.targets,
            logits_BK=logits_BK,
            features_BD=features_BD,
        )

    def on_test_epoch_end(self) -> None:
        """Compute the metrics and gather the outputs while the processes are still connected."""
        self.evaluation = SplitEvaluation(metrics=split_metrics(self.metrics), outputs=self._outputs.gather())


def evaluate(
    *,
    phase: ResolvedPhase,
    make_cache: Callable[[], ActivationCache | None],
    validated: Validation | None,
    classifier: Classifier,
    data: ImageDataModule,
    trainer: pl.Trainer,
    prepare: Callable[[pl.Trainer], None],
    user_metrics: Mapping[str, Metric] | None = None,
    train_rows: Rows | None = None,
) -> dict[str, SplitEvaluation]:
    """Return metrics and outputs of ``val`` and ``test``, with the embeddings of a sample.

    Args:
        phase: Last phase; the validation images may already have passed its frozen prefix.
        make_cache: Function that makes the cache of the validation images; it returns None if there is none.
        validated: Validation of these weights in the last fit, which replaces another one; None if there is none.
        classifier: Network with the final weights.
        data: Batches of the splits.
        trainer: Trainer that writes nothing.
        prepare: Function called before each call of the Trainer.
        user_metrics: User-supplied metrics by name; None for none.
        train_rows: Rows of training images that are evaluated too, as ``train``, all with embeddings; None for none.
    """
    evaluated: dict[str, SplitEvaluation] = {}
    for split in ("val", "test") if train_rows is None else ("train", "val", "test"):
        if split == "val" and validated is not None:
            evaluated["val"] = validated
            continue
        cache = None if split == "test" else make_cache()
        if split == "train" and cache is not None and not cache.holds_evaluation_of_train:
            cache = None
        cached_stage = cache.cached_stage if cache is not None else None
        rows = data.source.index.rows(split) if split != "train" or train_rows is None else train_rows
        # for the report's map of the test images, and for the score of unknown images
        embedded = torch.from_numpy(rows)
        module = EvaluationModule(
            classifier,
            forward=PhaseForward(classifier, phase, cached_stage=cached_stage, compiled=False),
            embedded_rows=embedded if split == "train" else sample_of(embedded),
            user_metrics=user_metrics,
        )
        classifier.eval()
        if cache is not None:
            device, context = trainer.strategy.root_device, trainer.precision_plugin.forward_context
            cache.prepare(device=device, context=context, trains=False)
        # passed explicitly: the data module has no Trainer yet if every phase was finished before a resume
        rank, world = trainer.global_rank, trainer.world_size
        batches = data.eval_dataloader(split, rows=rows, rank=rank, world=world, activations=cache)
        prepare(trainer)
        trainer.test(module, dataloaders=batches, verbose=False)
        if cache is not None:
            cache.close()
        assert module.evaluation is not None
        evaluated[split] = module.evaluation
    return evaluated


def require_finite(evaluated: Mapping[str, SplitEvaluation], weights: Path) -> None:
    """Check that a network gives numbers.

    Args:
        evaluated: Outputs of each split.
        weights: File of its weights.

    Raises:
        RunError: A logit is not finite.
    """
    for split, evaluation in evaluated.items():
        logits_NK = evaluation.outputs["logits"]
        broken = int((~logits_NK.isfinite()).any(1).sum())
        if broken:
            raise RunError(
                f"{weights}: the network with these weights gives values that are not finite, on {broken:,} of "
                f"{counted(len(logits_NK), f'{split} image')}. Start a new run at a lower rate (lr=), or with "
                "trainer.precision=32-true."
            )

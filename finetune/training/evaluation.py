"""Evaluate the final weights of a run on the validation and the test images."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import lightning.pytorch as pl
import torch

from finetune.activation_cache.cache import ActivationCache
from finetune.data.datamodule import ImageDataModule
from finetune.models.classifier import Classifier
from finetune.training.callbacks.output_collector import EvaluationOutputs
from finetune.training.eval_outputs import Validation, sample_of
from finetune.training.phase_module import PhaseModule

# numbers of a validation's outputs that are kept in memory while training goes on
MOST_KEPT = 4_000_000


def reusable_validation(validated: Validation | None, *, step: int, images: int) -> Validation | None:
    """Return the fit's last validation if it covered every image with the weights the phase hands on, else None.

    Args:
        validated: Validation that the fit kept.
        step: Optimizer step of the phase that made those weights.
        images: Number of images in the validation split.
    """
    if validated is None or validated.step != step or len(validated.outputs.get("rows", ())) != images:
        # the phase had been finished before a resume, or the Trainer was told to validate at other times, or in part
        return None
    return validated


def evaluate(
    *,
    make_module: Callable[[ActivationCache | None], PhaseModule],
    make_cache: Callable[[], ActivationCache | None],
    validated: Validation | None,
    classifier: Classifier,
    data: ImageDataModule,
    make_trainer: Callable[[list[pl.Callback]], pl.Trainer],
    running: Callable[[pl.Trainer], AbstractContextManager[None]],
) -> dict[str, Any]:
    """Return the metrics of ``val`` and ``test``, and under ``gathered`` the outputs of each.

    Args:
        make_module: Makes the module that evaluates batches of images, or of what a cache holds.
        make_cache: Makes the cache of the validation images, or None.
        validated: Validation of these weights in the last fit, used in place of another one; or None.
        classifier: Network with the final weights.
        data: Batches of the splits.
        make_trainer: Makes a Trainer that writes nothing, from its callbacks.
        running: Context around each call of a Trainer.
    """
    evaluated: dict[str, Any] = {"gathered": {}}
    for split in ("val", "test"):
        if split == "val" and validated is not None:
            evaluated["val"], evaluated["gathered"]["val"] = validated.metrics, validated.outputs
            continue
        cache = make_cache() if split == "val" else None
        module = make_module(cache)
        classifier.eval()
        # a map of the test images is all that embeddings are kept for
        rows = torch.from_numpy(data.source.index.rows(split))
        outputs = EvaluationOutputs(sample_of(rows) if split == "test" else None)
        trainer = make_trainer([outputs])
        if cache is not None:
            device, context = trainer.strategy.root_device, trainer.precision_plugin.forward_context
            cache.prepare(device=device, context=context, trains=False)
        # said, because the data knows no Trainer yet where every phase had been finished before a resume
        rank, world = trainer.global_rank, trainer.world_size
        batches = data.eval_dataloader(split, rank=rank, world=world, activations=cache)
        with running(trainer):
            trainer.test(module, dataloaders=batches, verbose=False)
        if cache is not None:
            cache.close()
        evaluated[split] = module.evaluated
        evaluated["gathered"][split] = outputs.gathered
    return evaluated

"""The forward pass of a phase: from images or cached activations to features and logits."""

# B = batch, C = input channels, H/W = image height/width, D = features, K = classes

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from finetune.activation_cache.frozen_prefix import Prefix, in_half_precision
from finetune.activation_cache.policy import last_frozen_stage
from finetune.models.chunks import run_in_chunks
from finetune.models.classifier import Classifier
from finetune.models.memory_format import memory_format_for
from finetune.phases import ResolvedPhase


class PhaseForward:
    """Runs the trainable part, after the frozen prefix without a graph unless the batch already holds the prefix's output.

    Args:
        classifier: Network that trains.
        phase: Phase that names the stages that train.
        cached_stage: Stage whose cached output the batches hold; None if they hold images.
        compiled: Whether :meth:`compile` compiles the trainable part.
    """

    def __init__(
        self, classifier: Classifier, phase: ResolvedPhase, *, cached_stage: str | None, compiled: bool
    ) -> None:
        self._classifier = classifier
        self._is_cached, self._compiles = cached_stage is not None, compiled
        self._cached_stage = cached_stage or last_frozen_stage(classifier, phase)
        # from activations after the frozen prefix to features
        self._rest = None if self._cached_stage is None else classifier.backbone.split(self._cached_stage)[1]
        self._prefix: Prefix | None = None
        # from images or activations to features, where a graph is built
        self._compiled: Callable[[Tensor], Tensor] | None = None

    def prepare(self, *, device: torch.device, context: Callable[[], AbstractContextManager[Any]]) -> None:
        """Build the frozen prefix on the device and in the precision of the fit or test."""
        if self._cached_stage is not None and not self._is_cached:
            with context():
                self._prefix = Prefix(self._classifier, self._cached_stage, fold=in_half_precision(device))

    def compile(self) -> None:
        """Compile the trainable part, if the run compiles."""
        if self._compiles:
            self._compiled = torch.compile(self._classifier.embed if self._rest is None else self._rest)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of a batch of images or activations."""
        if not self._is_cached and self._prefix is None and self._compiled is None:
            return run_in_chunks(self._classifier, images)
        logits_BK: Tensor = self._classifier.head(self.features(images))
        return logits_BK

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (B, D) and the logits (B, K) of a batch of images or activations."""
        features_BD = self.features(images)
        return features_BD, self._classifier.head(features_BD)

    def features(self, images: Tensor) -> Tensor:
        """Return the features (B, D) of a batch of images or activations."""
        compiled = self._compiled if torch.is_grad_enabled() else None
        if self._rest is None or not (self._is_cached or self._prefix is not None):
            return run_in_chunks(self._classifier.embed, images) if compiled is None else compiled(images)
        activations = images if self._prefix is None else self._prefix(images)
        if activations.ndim == 4:
            activations = activations.contiguous(memory_format=memory_format_for(self._classifier.input_spec))
        features_BD: Tensor = (self._rest if compiled is None else compiled)(activations)
        return features_BD

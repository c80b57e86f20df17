"""Prediction with the trained network in PyTorch."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from finetune.bundle import UNKNOWN, find_bundle, load_bundle, read_model_json
from finetune.data.decode import DecodeOptions, decode_bytes, decode_file
from finetune.data.transforms import eval_view
from finetune.inference.answers import Answers
from finetune.inference.decode_options import decode_options_of
from finetune.models.batch_norm_folding import fast_features
from finetune.models.chunks import run_in_chunks
from finetune.models.classifier import Classifier
from finetune.plain import Json


class TorchEngine:
    """A bundle, ready to classify.

    Args:
        run: Run folder or bundle folder.
        modules: User-supplied modules that the model needs; see :func:`finetune.bundle.load_bundle`.
        classifier: Its network, where it is loaded already.

    Raises:
        UserError: There is no complete bundle.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        modules: Mapping[str, nn.Module] | None = None,
        classifier: Classifier | None = None,
    ) -> None:
        self.classifier = load_bundle(run, modules=modules) if classifier is None else classifier
        self.classes, self.multi_label = self.classifier.classes, self.classifier.multi_label
        self.thresholds = self.classifier.thresholds
        self.tells_unknown = self.classifier.unknown is not None
        self.selective, self.conformal = self.classifier.selective, self.classifier.conformal
        self._features = fast_features(self.classifier)
        self.view = eval_view(self.classifier.input_spec)
        self.options: DecodeOptions = decode_options_of(run)
        described = read_model_json(find_bundle(run))
        weights = described["weights_sha256"]
        self.identity: dict[str, Json] = {"runtime": "torch", "model": weights, "classes": list(self.classes)}
        # probabilities of the same weights depend on it
        self.identity["temperature"] = self.classifier.temperature
        if self.tells_unknown:
            self.identity["unknown"] = described[UNKNOWN]["sha256"]
        if self.multi_label:
            self.identity["thresholds"] = list(self.thresholds)
        self.identity |= {"multi_label": self.multi_label, **self.options.to_plain()}

    def read(self, path: str) -> torch.Tensor:
        """Return the evaluation view of a file, uint8 (C, H, W)."""
        return self.view.of_pixels(decode_file(path, self.options, min_side=self.view.min_side))

    def read_bytes(self, data: bytes, name: str, *, max_pixels: int) -> torch.Tensor:
        """Return the evaluation view of an image file given as bytes; ``name`` is used in messages only."""
        options = replace(self.options, max_pixels=max_pixels)
        return self.view.of_pixels(decode_bytes(data, options, path=name, min_side=self.view.min_side))

    @torch.inference_mode()
    def classify(self, images: list[torch.Tensor]) -> Answers:
        """Return probabilities, and the scores of unknown images if the model has them."""
        return self.answers(self.features(images))

    @torch.inference_mode()
    def features(self, images: list[torch.Tensor]) -> torch.Tensor:
        """Return the features (B, D) before the head, of images that have been read."""
        return run_in_chunks(self._features, torch.stack(images))

    @torch.inference_mode()
    def answers(self, features_BD: torch.Tensor) -> Answers:
        """Return what :meth:`classify` does, of features."""
        unknown = self.classifier.unknown
        return Answers(
            probabilities_NK=self.classifier.probabilities(self.classifier.logits(features_BD)).numpy(),
            unknown_N=None if unknown is None else unknown(features_BD).numpy(),
        )

"""A trained model as :func:`finetune.load` returns it: a classifier that also takes images in any form and answers in a table."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune.arguments import public
from finetune.attribute_names import CALLS_OF_A_MODEL, no_attribute
from finetune.confidence.conformal import PredictionSets, prediction_sets
from finetune.confidence.selective import Acceptance, acceptance
from finetune.confidence.thresholds import labels_shown
from finetune.data.decode import DecodeOptions
from finetune.data.transforms import eval_view
from finetune.errors import UserError, shortened, type_in_words
from finetune.file_schema import joined_labels
from finetune.html import html_table
from finetune.inference.answers import UNKNOWN, Answers, ImageAnswer, check_named, is_known
from finetune.inference.given_images import GivenImage, given_images
from finetune.models.classifier import Classifier
from finetune.models.modes import evaluating
from finetune.table import frame

# N = images, K = classes


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How :func:`predict` answers.

    Args:
        uncertain_below: An answer whose margin is smaller is uncertain.
        batch_size: Images in one forward pass.
        acceptance: Which answers are accepted; None for no column of it.
        sets: Which classes are in the set of an image; None for no column of it.
        names_unknown: Whether ``unknown`` is predicted for images that are unlike the training images.

    Raises:
        UserError: A value is out of range.
    """

    uncertain_below: float = 0.2
    batch_size: int = 32
    acceptance: Acceptance | None = None
    sets: PredictionSets | None = None
    names_unknown: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.uncertain_below <= 1:
            raise UserError(f"uncertain_below={self.uncertain_below!r}: must be from 0 to 1.")
        if type(self.batch_size) is not int or self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size!r}: must be a whole number of at least 1.")


class TrainedModel(Classifier):
    """A trained network: ``uint8 (B, C, H, W)`` of any size to logits ``(B, K)``, and :meth:`predict` for everything else.

    A batch of exactly the input size is taken as resized and cropped already; :meth:`predict` resizes and crops every image. The
    two differ on pictures that happen to have the input size, where ``input_spec.crop_pct`` is below 1.

    ``classes`` are the names of its classes, ``input_spec`` is what it takes, ``decode_options`` how its image files
    are decoded. ``folder`` is the run or bundle that it was loaded from.
    """

    decode_options: DecodeOptions
    folder: str | None = None

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Compute the logits ``(B, K)`` of raw images, as :meth:`finetune.Classifier.forward` does.

        Raises:
            UserError: The argument is not a tensor of images.
        """
        _check_tensor(images_BCHW, "model.predict(images)")
        return super().forward(images_BCHW)

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """Compute the features ``(B, D)`` of raw images, as :meth:`finetune.Classifier.embed` does.

        Raises:
            UserError: The argument is not a tensor of images.
        """
        _check_tensor(images_BCHW, "finetune.embed(model, images)")
        return super().embed(images_BCHW)

    def __getattr__(self, name: str) -> Any:
        """Return a module, a parameter or a buffer, as every module of torch does.

        Raises:
            AttributeError: There is none; the message has the call that does what was meant.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise no_attribute(self, name, CALLS_OF_A_MODEL) from None

    def _repr_html_(self) -> str:
        spec, count = self.input_spec, dict.fromkeys(self.stages, 0)
        for name, parameter in self.named_parameters():
            count[self.stage_of(name)] += parameter.numel()
        kind = "several labels an image" if self.multi_label else "one label an image"
        where = f", from {self.folder}" if self.folder else ""
        caption = (
            f"{self.backbone.name}: {spec.channels} x {spec.size[0]} x {spec.size[1]} pixels to {len(self.classes)} classes "
            f"({shortened(self.classes)}), {kind}{where}"
        )
        return html_table(
            ["stage", "parameters"], [(name, f"{size:,}") for name, size in count.items()], caption=caption
        )

    @public
    def predict(
        self,
        images: Any,
        *,
        uncertain_below: float = 0.2,
        batch_size: int = 32,
        unknown: bool = False,
        accept: float | None = None,
        least: float | None = None,
        sets: float | None = None,
    ) -> Any:
        """Classify images and return a table; see :func:`finetune.predict`."""
        return predict(
            self,
            images,
            uncertain_below=uncertain_below,
            batch_size=batch_size,
            unknown=unknown,
            accept=accept,
            least=least,
            sets=sets,
        )


def _check_tensor(images: Any, call: str) -> None:
    if not isinstance(images, Tensor):
        raise UserError(
            f"images: must be a tensor (B, C, H, W). It is {type_in_words(images)}. For files, Pillow images and arrays call "
            f"{call}."
        )


def trained_model(classifier: Classifier, *, decode_options: DecodeOptions, folder: str | None = None) -> TrainedModel:
    """Return a classifier as a :class:`TrainedModel` of the same modules, in evaluation mode.

    Args:
        classifier: Loaded network.
        decode_options: How image files were decoded in training, from
            :func:`finetune.inference.decode_options.decode_options_of`.
        folder: Run or bundle folder that it was loaded from; None for none.
    """
    model = TrainedModel(
        backbone=classifier.backbone,
        head=classifier.head,
        input_spec=classifier.input_spec,
        adapt=classifier.adapt,
        classes=classifier.classes,
        multi_label=classifier.multi_label,
        head_target=classifier.head_target,
    )
    model.decode_options, model.folder = decode_options, folder
    model.temperature, model.thresholds = classifier.temperature, classifier.thresholds
    model.unknown, model.selective, model.conformal = classifier.unknown, classifier.selective, classifier.conformal
    model.eval()
    return model


@torch.inference_mode()
def predict(
    model: Classifier,
    images: Any,
    *,
    uncertain_below: float = 0.2,
    batch_size: int = 32,
    unknown: bool = False,
    accept: float | None = None,
    least: float | None = None,
    sets: float | None = None,
) -> Any:
    """Classify images in any form, each resized and cropped as ``finetune predict`` does.

        model.predict("pets")                                  # a folder; also files, patterns, lists of them
        model.predict([Image.open("a.jpg"), array])            # Pillow images, arrays (H, W, C), tensors (C, H, W)
        model.predict(table)                                   # a data frame with a column path

    Args:
        model: A loaded or built classifier; it may be on any device, and in either mode.
        images: The images.
        uncertain_below: An answer is marked uncertain if its margin is smaller. The margin is the gap between the two most
            probable classes; for a model of several labels, twice the distance of the nearest probability from its threshold.
        batch_size: Images in one forward pass.
        unknown: Predict ``unknown`` for images that are unlike the training images, with their class as ``nearest``.
        accept: Accuracy wanted of the accepted answers, for a column ``accepted``.
        least: Least probability of the accepted answers, in its place.
        sets: Share of the images whose true class must be in their set, for a column ``set`` of classes joined by ``;``, the most
            probable first.

    Returns:
        A pandas DataFrame where pandas is installed, else a :class:`finetune.table.Table`. A row for each image: ``image`` (its
        path or position), ``predicted`` (with several labels joined by ``;``), ``probability``, ``margin``, ``uncertain``, for a
        model that tells unknown images ``unknown_score``, above 1 for them, and ``known``; the probability of every class under
        its name, and ``error``, the reason why a file cannot be read.

    Raises:
        UserError: The images are in no known form, there are none, or the model cannot tell or promise what is asked.
    """
    check_named(model.classes, tells_unknown=model.unknown is not None, names_unknown=unknown)
    options = PredictOptions(
        uncertain_below=uncertain_below,
        batch_size=batch_size,
        acceptance=acceptance(accept=accept, least=least, curve=model.selective, several=model.multi_label),
        sets=prediction_sets(coverage=sets, curve=model.conformal, several=model.multi_label),
        names_unknown=unknown,
    )
    spec = model.input_spec
    decode_options = model.decode_options if isinstance(model, TrainedModel) else DecodeOptions(channels=spec.channels)
    device = next(model.parameters()).device
    tells_unknown = model.unknown is not None
    answers = _Rows(
        classes=model.classes,
        thresholds=model.thresholds if model.multi_label else None,
        options=options,
        tells_unknown=tells_unknown,
    )
    waiting: list[GivenImage] = []
    with evaluating(model):

        def classify() -> None:
            pixels = [image.pixels_CHW for image in waiting if image.pixels_CHW is not None]
            rows: Iterator[ImageAnswer] = iter(())
            if pixels:
                features_BD = model.embed(torch.stack(pixels).to(device))
                rows = Answers(
                    probabilities_NK=model.probabilities(model.logits(features_BD)).cpu().numpy(),
                    unknown_N=None if model.unknown is None else model.unknown(features_BD).cpu().numpy(),
                ).each()
            for image in waiting:
                answers.add(image.name, None if image.pixels_CHW is None else next(rows), image.error)
            waiting.clear()

        for image in given_images(images, options=decode_options, view=eval_view(spec)):
            waiting.append(image)
            if len(waiting) == options.batch_size:
                classify()
        classify()
    if not answers.names:
        raise UserError("images: none given. Pass files, a folder or arrays.")
    return frame(answers.columns(), shown_first=("image", "predicted", "probability", "uncertain"))


@dataclass(kw_only=True)
class _Rows:
    """The rows of the table so far."""

    classes: tuple[str, ...]
    # None for one label an image
    thresholds: tuple[float, ...] | None
    options: PredictOptions
    tells_unknown: bool
    names: list[str] = field(default_factory=list)
    shares: list[npt.NDArray[np.float32] | None] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, name: str, answer: ImageAnswer | None, error: str) -> None:
        """Add a row; ``answer`` is None for an image that cannot be read."""
        self.names.append(name)
        self.shares.append(None if answer is None else answer.probabilities_K)
        self.scores.append(None if answer is None else answer.unknown_score)
        self.errors.append(error)

    def columns(self) -> dict[str, list[Any]]:
        """Return the table by columns; names of classes that are names of columns get ``p_`` before them."""
        margins = [None if row is None else self._margin(row) for row in self.shares]
        columns: dict[str, list[Any]] = {
            "image": self.names,
            "predicted": ["" if row is None else self._predicted(row) for row in self.shares],
            "probability": [None if row is None else float(row.max()) for row in self.shares],
            "margin": margins,
            "uncertain": [margin is None or margin < self.options.uncertain_below for margin in margins],
        }
        known = [is_known(score) for score in self.scores]
        if self.options.names_unknown:
            columns["nearest"] = columns["predicted"]
            columns["predicted"] = [
                UNKNOWN if is_in is False else name for name, is_in in zip(columns["nearest"], known, strict=True)
            ]
        if self.tells_unknown:
            columns |= {"unknown_score": self.scores, "known": known}
        if self.options.acceptance is not None:
            columns["accepted"] = [
                None if row is None else self.options.acceptance.accepts(float(row.max()), known=is_in)
                for row, is_in in zip(self.shares, known, strict=True)
            ]
        if self.options.sets is not None:
            columns["set"] = [None if row is None else self._set(row, self.options.sets) for row in self.shares]
        for number, name in enumerate(self.classes):
            key = f"p_{name}" if name in (*columns, "error") else name
            columns[key] = [None if row is None else float(row[number]) for row in self.shares]
        columns["error"] = self.errors
        return columns

    def _predicted(self, row_K: npt.NDArray[np.float32]) -> str:
        if self.thresholds is not None:
            return joined_labels(self.classes, labels_shown(row_K, self.thresholds))
        return self.classes[int(row_K.argmax())]

    def _set(self, row_K: npt.NDArray[np.float32], sets: PredictionSets) -> str:
        order = np.argsort(-row_K, kind="stable")
        return joined_labels(self.classes, order[: sets.count(row_K[order])])

    def _margin(self, row_K: npt.NDArray[np.float32]) -> float:
        if self.thresholds is not None:
            return float(2 * np.abs(row_K - np.array(self.thresholds)).min())
        second, first = np.sort(row_K)[-2:]
        return float(first - second)

"""Prediction sheet: a page of classified images by class and confidence, with Grad-CAM, and the counts at the end."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from finetune.data.image_file import UnreadableImage
from finetune.data.index import natural_order
from finetune.errors import UserError
from finetune.models.classifier import Classifier
from finetune.report.grad_cam import find_layer, heat_maps, overlay
from finetune.report.pages import render_page
from finetune.report.thumbnails import data_url
from finetune.terminal import printable

# pictures of a page, and of each class: 12 surest and 12 least sure
MOST_SHOWN, MOST_OF_CLASS, FEWEST_OF_CLASS = 240, 24, 2


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A classified image.

    Args:
        path: File to open.
        name: Path as the user gave it.
        predicted: Predicted class; with several labels all that the image shows, which may be none.
        target: Index of its most probable class.
        probability: Probability of that class.
    """

    path: str
    name: str
    predicted: str
    target: int
    probability: float


@dataclass(kw_only=True)
class ClassSightings:
    """The images of one predicted class; memory does not grow with their number.

    Args:
        images: Number of images.
        probability: Sum of their probabilities.
        surest: The surest of them, as a heap.
        least: The least sure of them, as a heap.
    """

    images: int = 0
    probability: float = 0.0
    surest: list[tuple[float, int, Sighting]] = field(default_factory=list)
    least: list[tuple[float, int, Sighting]] = field(default_factory=list)

    def add(self, sighting: Sighting) -> None:
        """Count an image, and keep it if it is among the surest or the least sure."""
        self.images += 1
        self.probability += sighting.probability
        # where images are equally sure, the first count as surer, so that the two heaps hold different ones
        for heap, sign in ((self.surest, 1), (self.least, -1)):
            entry = (sign * sighting.probability, -sign * self.images, sighting)
            if len(heap) < MOST_OF_CLASS // 2:
                heapq.heappush(heap, entry)
            else:
                heapq.heappushpop(heap, entry)

    def shown(self, most: int) -> list[Sighting]:
        """Return up to ``most`` images, surest first: half of them the surest, half the least sure."""
        first = sorted(self.surest, reverse=True)[: most - most // 2]
        last = sorted(self.least, reverse=True)[: most // 2]
        # an image that is in both heaps once; surest first, the earlier first where two are equally sure
        chosen = {(rank, place): sighting for rank, place, sighting in first}
        chosen |= {(-rank, -place): sighting for rank, place, sighting in last}
        return [chosen[key] for key in sorted(chosen, reverse=True)]


@dataclass(frozen=True, kw_only=True)
class _Tile:
    name: str
    path: str
    probability: float
    images: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class _Group:
    title: str
    images: int
    probability: float
    tiles: Sequence[_Tile]


class PredictionSheet:
    """Collects what a prediction job finds, then renders the page.

    Args:
        several: Whether images have several labels.
    """

    def __init__(self, *, several: bool) -> None:
        self._several = several
        self._classes: dict[str, ClassSightings] = {}
        self._unreadable: list[tuple[str, str]] = []
        self._errors = 0

    def add(self, sighting: Sighting) -> None:
        """Add a classified image."""
        self._classes.setdefault(sighting.predicted, ClassSightings()).add(sighting)

    def add_unreadable(self, name: str, error: str) -> None:
        """Add an image that could not be read."""
        self._errors += 1
        if len(self._unreadable) < MOST_OF_CLASS:
            self._unreadable.append((name, error))

    def render(self, *, model: str, read: Callable[[str], Tensor], classifier: Classifier | None) -> str:
        """Render the page as HTML with its images embedded.

        Args:
            model: Name of the model.
            read: Opens an image file as the network sees it.
            classifier: Network that Grad-CAM explains; None without PyTorch's.
        """
        place = {name: number for number, name in enumerate(natural_order(self._classes))}
        ordered = sorted(self._classes.items(), key=lambda entry: (-entry[1].images, place[entry[0]]))
        most = min(MOST_OF_CLASS, max(FEWEST_OF_CLASS, MOST_SHOWN // max(1, len(ordered))))
        groups, shown, stage = [], 0, None
        for name, sightings in ordered:
            chosen = sightings.shown(most) if shown < MOST_SHOWN else []
            shown += len(chosen)
            tiles, found = _tiles(chosen, read, classifier)
            stage = stage or found
            groups.append(
                _Group(
                    title=printable(name or "none of the classes"),
                    images=sightings.images,
                    probability=sightings.probability / sightings.images,
                    tiles=tiles,
                )
            )
        return render_page(
            "prediction_sheet.html",
            model=printable(model),
            several=self._several,
            groups=groups,
            images=sum(group.images for group in groups),
            stage=stage,
            why_no_maps="" if stage else _why_no_maps(classifier, bool(shown)),
            unreadable=[(printable(name), printable(error)) for name, error in self._unreadable],
            errors=self._errors,
        )


def _why_no_maps(classifier: Classifier | None, any_shown: bool) -> str:
    if not any_shown:
        return ""
    if classifier is None:
        return "ONNX Runtime has no gradients, so where the network looked is not shown."
    return "This network has no feature map of at least 4 × 4 places behind its first stage, so where it looked is not shown."


def _tiles(
    chosen: Sequence[Sighting], read: Callable[[str], Tensor], classifier: Classifier | None
) -> tuple[list[_Tile], str | None]:
    """Return the tiles of images, and the stage whose map is explained; None without one."""
    pictures: dict[int, Tensor] = {}
    for position, sighting in enumerate(chosen):
        try:
            pictures[position] = read(sighting.path)
        except (UnreadableImage, UserError, OSError):
            continue  # changed since it was classified: its tile says so
    where = find_layer(classifier, next(iter(pictures.values()))) if classifier is not None and pictures else None
    urls: dict[int, tuple[str, ...]] = {position: (data_url(picture),) for position, picture in pictures.items()}
    if classifier is not None and where is not None:
        heats = heat_maps(
            classifier, where, torch.stack(list(pictures.values())), [chosen[position].target for position in pictures]
        )
        urls = {
            position: overlay(picture, heat) for (position, picture), heat in zip(pictures.items(), heats, strict=True)
        }
    tiles = [
        _Tile(
            name=printable(Path(sighting.name).name),
            path=printable(sighting.name),
            probability=sighting.probability,
            images=urls.get(position, ()),
        )
        for position, sighting in enumerate(chosen)
    ]
    return tiles, None if where is None else printable(where.stage)

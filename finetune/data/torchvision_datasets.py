"""Builds a source from any classification data set of torchvision, by its name.

Data sets of files on disk are treated like a folder: all rules for unusual images, scans and splits apply. Data sets
that torchvision keeps as one array (MNIST, CIFAR, SVHN, STL10) stay in memory; the rest is read through torchvision.
"""

import inspect
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from finetune.data.color import to_pixels
from finetune.data.decode import DecodeOptions
from finetune.data.image_source import Source, arrays_source, files_source
from finetune.data.index import SPLITS, distinct_names, natural_order
from finetune.data.listing import UNASSIGNED, Listing, Use
from finetune.data.path_table import concatenate, path_table
from finetune.errors import UserError, did_you_mean, first_line
from finetune.split_settings import SplitSettings

# split names of data sets that do not use train, val and test
_CALLED = {
    "OxfordIIITPet": {"train": "trainval", "test": "test"},
    "Country211": {"train": "train", "val": "valid", "test": "test"},
}

# attributes in which torchvision's classes keep file paths
_FILE_ATTRIBUTES = ("_images", "_image_files", "_samples", "samples", "_image_paths")
_LABEL_ATTRIBUTES = ("_labels", "targets", "labels", "y")

# largest data set, in pixel values, that is held in memory if it has neither files nor an array
_MOST_PIXELS = 2_000_000_000


def torchvision_source(
    *,
    name: str,
    root: str = "data",
    split: SplitSettings = SplitSettings(),
    decode_options: DecodeOptions = DecodeOptions(),
    on_unreadable: str = "error",
    use: Use = "train",
    download: bool = True,
) -> Source:
    """Build a source from a data set of ``torchvision.datasets``; keep its splits and make missing ones from train.

    Args:
        name: Name of the class, such as ``OxfordIIITPet``.
        root: Folder that holds the data set, or that it is downloaded to.
        split: Rule for the splits that the data set lacks.
        decode_options: How its files, where it has files, become pixels.
        on_unreadable: Treatment of unreadable files, ``error`` or ``skip``.
        use: What the data set is for.
        download: Whether to fetch it if it is not there.

    Raises:
        UserError: There is no such data set, it is not for classification, or it is not there and was not downloaded.
    """
    parts = _open(name, root, download=download)
    classes = _classes(parts)
    labels = {key: _labels(name, part) for key, part in parts.items()}
    files = {key: _files(part) for key, part in parts.items()}
    if all(paths is not None and len(paths) == len(labels[key]) for key, paths in files.items()):
        listings = [
            _listing(name, root, classes, paths, labels[key], key) for key, paths in files.items() if paths is not None
        ]
        listing = replace(_together(listings, tuple(parts)), use=use)
        return files_source(listing, split=split, decode_options=decode_options, on_unreadable=on_unreadable)
    arrays = {key: _array(part, decode_options.channels) for key, part in parts.items()}
    return arrays_source(
        images=np.concatenate(list(arrays.values())),
        targets=np.concatenate(list(labels.values())),
        classes=classes,
        name=name,
        splits=np.concatenate([np.full(len(labels[key]), _number(key, parts), np.int8) for key in parts]),
        given=() if len(parts) == 1 else tuple(parts),
        channels=decode_options.channels,
        split=split,
        use=use,
    )


def _open(name: str, root: str, *, download: bool) -> dict[str, Any]:
    """Open the data set's splits under our names; a data set without splits is all ``train``."""
    from torchvision import datasets

    valid = [kind for kind in datasets.__all__ if inspect.isclass(getattr(datasets, kind)) and kind != "VisionDataset"]
    if name not in valid:
        raise UserError(
            f"data.name={name!r}: not a data set of torchvision.{did_you_mean(name, valid)} "
            "All data sets: https://docs.pytorch.org/vision/stable/datasets.html"
        )
    make = getattr(datasets, name)
    parameters = inspect.signature(make).parameters
    common: dict[str, Any] = {"root": root} | ({"download": download} if "download" in parameters else {})
    if "train" in parameters:
        split_arguments: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in parameters:
        names = _CALLED.get(name, {split: split for split in SPLITS})
        split_arguments = {split: {"split": called} for split, called in names.items()}
    else:
        split_arguments = {"train": {}}
    if name == "FakeData":
        common.pop("root")
    parts = {}
    for split, arguments in split_arguments.items():
        try:
            parts[split] = make(**common, **arguments)
        except ValueError as error:
            if "split" in arguments and split != "train":
                continue  # a data set raises ValueError for a split that it does not have
            raise UserError(f"data.name={name!r}: cannot be opened. {error}") from None
        except Exception as error:  # networks, disks and archives fail in many ways
            if not download:
                raise UserError(
                    f"data.name={name!r}: is not in data.root={root!r}, and is downloaded only where you type its name. Get it "
                    f"with: finetune audit data=torchvision data.name={name} data.root={shlex.quote(root)}"
                ) from None
            raise UserError(
                f"data.name={name!r}: is not in data.root={root!r} and could not be downloaded. {_first_line(error)} "
                "Download it on a machine with a network, and copy that folder here."
            ) from None
    return parts


def _number(split: str, parts: dict[str, Any]) -> int:
    return UNASSIGNED if len(parts) == 1 else SPLITS.index(split)


def _classes(parts: dict[str, Any]) -> list[str]:
    names = getattr(parts["train"], "classes", None) or getattr(parts["train"], "categories", None)
    if names:
        return distinct_names([name if isinstance(name, str) else " / ".join(map(str, name)) for name in names])
    labels = np.concatenate([_labels("", part) for part in parts.values()])
    return natural_order(str(label) for label in range(int(labels.max()) + 1))


def _labels(name: str, part: Any) -> npt.NDArray[np.int64]:
    for attribute in _LABEL_ATTRIBUTES:
        values = getattr(part, attribute, None)
        if values is not None and len(values) == len(part):
            return np.asarray(values, np.int64)
    pairs = getattr(part, "_samples", None) or getattr(part, "samples", None)
    values = [pair[1] for pair in pairs] if pairs else [part[row][1] for row in range(len(part))]
    if not all(isinstance(value, (int, np.integer)) or getattr(value, "ndim", 1) == 0 for value in values):
        raise UserError(f"data.name={name!r}: is not a data set for classification. Its targets are not class numbers.")
    return np.asarray([int(value) for value in values], np.int64)


def _files(part: Any) -> list[str] | None:
    """Return the paths of the images if the data set keeps them, else None."""
    for attribute in _FILE_ATTRIBUTES:
        values = getattr(part, attribute, None)
        if isinstance(values, Sequence) and len(values) == len(part) and len(values):
            paths = [str(value[0] if isinstance(value, tuple) else value) for value in values]
            if os.path.isfile(paths[0]):
                return [os.path.abspath(path) for path in paths]
    return None


def _listing(
    name: str, root: str, classes: Sequence[str], paths: list[str], labels: npt.NDArray[np.int64], split: str
) -> Listing:
    top = os.path.abspath(root)
    return Listing(
        origin=f"data.name={name!r}",
        root=top,
        classes=tuple(classes),
        paths=path_table(os.path.relpath(path, top) for path in paths),
        targets=labels,
        splits=np.full(len(paths), SPLITS.index(split), np.int8),
    )


def _together(listings: list[Listing], given: tuple[str, ...]) -> Listing:
    """Join the listings of all splits, which share one list of classes."""
    first = listings[0]
    if len(listings) == 1:
        return Listing(
            origin=first.origin,
            root=first.root,
            classes=first.classes,
            paths=first.paths,
            targets=first.targets,
            splits=np.full(len(first), UNASSIGNED, np.int8),
        )
    return Listing(
        origin=first.origin,
        root=first.root,
        classes=first.classes,
        paths=concatenate([("", listing.paths) for listing in listings]),
        targets=np.concatenate([listing.targets for listing in listings]),
        splits=np.concatenate([listing.splits for listing in listings]),
        given=given,
    )


def _array(part: Any, channels: int) -> npt.NDArray[np.uint8]:
    """Return all images as one array (N, H, W) or (N, H, W, 3)."""
    data = getattr(part, "data", None)
    if data is not None and len(data) == len(part) and getattr(data, "ndim", 0) in (3, 4):
        images = np.asarray(data, np.uint8)
        # SVHN and STL10 put channels first, CIFAR last
        return images.transpose(0, 2, 3, 1) if images.ndim == 4 and images.shape[1] == 3 else images
    pictures = [_picture(part[row][0], channels) for row in range(len(part))]
    if len({picture.shape for picture in pictures}) > 1:
        raise UserError("data.name: this data set has neither files nor images of one size. Save it as a folder first.")
    if sum(picture.size for picture in pictures) > _MOST_PIXELS:
        raise UserError("data.name: this data set has no files and is too large for memory. Save it as a folder first.")
    return np.stack(pictures)


def _picture(image: Any, channels: int) -> npt.NDArray[np.uint8]:
    if not isinstance(image, Image.Image):
        raise UserError("data.name: this data set does not give images.")
    return to_pixels(image, channels=channels)


def _first_line(error: Exception) -> str:
    return first_line(error).rstrip(".") + "."

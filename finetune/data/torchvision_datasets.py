"""Builds a source from any classification data set of torchvision, by its name.

Data sets of files on disk are treated like a folder: all rules for unusual images, scans and splits apply. Data sets
that torchvision keeps as one array (MNIST, CIFAR, SVHN, STL10) stay in memory; the rest is read through torchvision.
"""

import inspect
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from finetune.data.color import to_pixels
from finetune.data.decode import DecodeOptions
from finetune.data.folder_walk import check_files_below
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

# data sets that a file may name, because torchvision only reads data there -> what lies of them in their root
_LISTED: Mapping[str, tuple[str, ...]] = {
    "CIFAR10": ("cifar-10-batches-py",),  # pickles, each compared with its digest first
    "CIFAR100": ("cifar-100-python",),
    "CLEVRClassification": ("clevr",),
    "Caltech101": ("caltech101",),
    "Caltech256": ("caltech256",),
    "Country211": ("country211",),
    "DTD": ("dtd",),
    "EuroSAT": ("eurosat",),
    "FER2013": ("fer2013",),
    "FGVCAircraft": ("fgvc-aircraft-2013b",),
    "FakeData": (),
    "FashionMNIST": ("FashionMNIST",),
    "Flowers102": ("flowers-102",),
    "Food101": ("food-101",),
    "GTSRB": ("gtsrb",),
    "INaturalist": ("2021_train",),
    "ImageFolder": (".",),
    "ImageNet": ("meta.bin", "train", "val"),  # it would unpack its archives if one of these were missing
    "Imagenette": ("imagenette2",),
    "KMNIST": ("KMNIST",),
    "LFWPeople": ("lfw-py",),
    "MNIST": ("MNIST",),
    "Omniglot": ("omniglot-py",),
    "OxfordIIITPet": ("oxford-iiit-pet",),
    "PCAM": ("pcam",),
    "QMNIST": ("QMNIST",),
    "RenderedSST2": ("rendered-sst2",),
    "SEMEION": ("semeion.data",),
    "STL10": ("stl10_binary",),
    "SUN397": ("SUN397",),
    "SVHN": ("train_32x32.mat", "test_32x32.mat"),
    "StanfordCars": ("stanford_cars",),
    "USPS": ("usps.bz2", "usps.t.bz2"),
}

# attributes in which torchvision's classes keep file paths
_FILE_ATTRIBUTES = ("_images", "_image_files", "_samples", "samples", "_image_paths", "imgs", "data")
# path and class of each image of the classes that keep neither
_KEPT_OTHERWISE: Mapping[str, Callable[[Any], Iterable[tuple[str, int]]]] = {
    "Caltech101": lambda part: (
        (f"{part.root}/101_ObjectCategories/{part.categories[y]}/image_{number:04d}.jpg", y)
        for y, number in zip(part.y, part.index, strict=True)
    ),
    "Caltech256": lambda part: (
        (f"{part.root}/256_ObjectCategories/{part.categories[y]}/{y + 1:03d}_{number:04d}.jpg", y)
        for y, number in zip(part.y, part.index, strict=True)
    ),
    "INaturalist": lambda part: ((f"{part.root}/{part.all_categories[y]}/{name}", y) for y, name in part.index),
    "Omniglot": lambda part: (
        (f"{part.target_folder}/{part._characters[y]}/{name}", y) for name, y in part._flat_character_images
    ),
}
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
        UserError: There is no such data set, it is not for classification, it is not there and was not downloaded, or a file
            may not name it.
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
    if not download:
        _may_be_named_by_a_file(name, root)
    for place in _LISTED.get(name, ()):
        check_files_below(os.path.join(root, place))
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
                raise _not_there(name, root) from None
            raise UserError(
                f"data.name={name!r}: is not in data.root={root!r} and could not be downloaded. {_first_line(error)} "
                "Download it on a machine with a network, and copy that folder here."
            ) from None
    return parts


def _may_be_named_by_a_file(name: str, root: str) -> None:
    """Refuse a data set that a run or another file names if torchvision does more than read it.

    Raises:
        UserError: It is not on the list, or it is not there: torchvision would make its folder or unpack its archives.
    """
    if name not in _LISTED:
        raise UserError(
            f"data.name={name!r}: must be typed, because torchvision may unpickle, unpack or write files to open it. Type "
            f"data=torchvision data.name={name}, or resume your own run with --trust."
        )
    if not all(os.path.exists(os.path.join(root, place)) for place in _LISTED[name]):
        raise _not_there(name, root)


def _not_there(name: str, root: str) -> UserError:
    return UserError(
        f"data.name={name!r}: is not in data.root={root!r}, and is downloaded only where you type its name. Get it "
        f"with: finetune audit data=torchvision data.name={name} data.root={shlex.quote(root)}"
    )


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
    kept = _KEPT_OTHERWISE.get(type(part).__name__)
    if kept is not None:
        return np.asarray([label for _, label in kept(part)], np.int64)
    pairs = getattr(part, "_samples", None) or getattr(part, "samples", None)
    values = [pair[1] for pair in pairs] if pairs else [part[row][1] for row in range(len(part))]
    if not all(isinstance(value, (int, np.integer)) or getattr(value, "ndim", 1) == 0 for value in values):
        raise UserError(f"data.name={name!r}: is not a data set for classification. Its targets are not class numbers.")
    return np.asarray([int(value) for value in values], np.int64)


def _files(part: Any) -> list[str] | None:
    """Return the paths of the images if the data set keeps them, else None."""
    kept = _KEPT_OTHERWISE.get(type(part).__name__)
    if kept is not None:
        return [os.path.abspath(path) for path, _ in kept(part)]
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

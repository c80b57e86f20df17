"""Data sets given as Python objects: map-style torch data sets of ``(image, target)``, one for all splits or one per split."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from finetune.data.assign_splits import arrange
from finetune.data.decode import DecodeOptions, to_tensor
from finetune.data.image_file import content_hash
from finetune.data.index import SPLITS, Index, distinct_names
from finetune.data.listing import UNASSIGNED, Listing, Use, check_classes
from finetune.data.path_table import path_table
from finetune.data.python_images import pixels_of
from finetune.data.scan import Facts
from finetune.errors import UserError, shortened, type_in_words
from finetune.split_settings import SplitSettings

# C = channels, H/W = image height/width, N = samples, K = classes

_ITEM = "An item must be (image, target): " + (
    "a Pillow image, an array (H, W, C) or a tensor (C, H, W), and a class number, or zeros and ones (K,) for several labels."
)


class DatasetSource:
    """A source of the images of map-style data sets.

    Args:
        index: The table of samples.
        datasets: The data sets.
        decode_options: Channels of the images.
        places: Data set and position in it of each row of the index, int64 (N, 2).
    """

    many_threads = False

    def __init__(
        self, *, index: Index, datasets: Sequence[Any], decode_options: DecodeOptions, places: npt.NDArray[np.int64]
    ) -> None:
        self.index, self.decode_options = index, decode_options
        self.facts: Facts | None = None
        self.in_memory = all(isinstance(dataset, TensorDataset) for dataset in datasets)
        self._datasets, self._places = datasets, places

    def read(self, row: int, *, min_side: int | None = None) -> Tensor:
        """Return the pixels of one item, uint8 (C, H, W)."""
        number, position = self._places[row].tolist()
        image, _ = _item(self._datasets[number], position)
        return to_tensor(pixels_of(image, f"data: the image of item {position}", self.decode_options))


def dataset_source(
    data: Any,
    *,
    classes: Sequence[str] | None = None,
    decode_options: DecodeOptions = DecodeOptions(),
    split: SplitSettings = SplitSettings(),
    use: Use = "train",
) -> DatasetSource:
    """Build a source from a data set, or from one for each split; every item is read once, to know its class and content.

    Args:
        data: Map-style data set of ``(image, target)``, or data sets by split: ``train``, ``val``, ``test``.
        classes: Class names in the order of the numbers; None takes ``classes`` of the data set, or the numbers themselves.
        decode_options: Channels of the images.
        split: Rule for the splits that are not given.
        use: Purpose of the data set.

    Raises:
        UserError: An item is not an image with a target, the classes do not fit, or an item differs each time it is read.
    """
    by_split = dict(data) if isinstance(data, Mapping) else {"": data}
    if wrong := [name for name in by_split if name not in ("", *SPLITS)]:
        raise UserError(f"data: splits must be {', '.join(SPLITS)}. Given: {shortened(wrong)}. Rename them.")
    contents, targets, splits, places = [], [], [], []
    for number, (name, dataset) in enumerate(by_split.items()):
        _check_map_style(dataset)
        for position in range(len(dataset)):
            image, target = _item(dataset, position)
            contents.append(_content(image, position, decode_options))
            targets.append(target)
            splits.append(UNASSIGNED if not name else SPLITS.index(name))
            places.append((number, position))
        if len(dataset):
            _must_be_the_same_again(dataset, contents[-len(dataset)], decode_options)
    if not targets:
        raise UserError("data: the data set is empty.")
    numbers = _targets(targets)
    names = _names(classes, list(by_split.values()), numbers)
    listing = check_classes(
        Listing(
            origin="data",
            root="",
            classes=tuple(names),
            paths=path_table(f"{name or 'item'}/{position:07}" for (name, _), position in _named(by_split, places)),
            targets=numbers,
            splits=np.array(splits, np.int8),
            given=tuple(name for name in SPLITS if name in by_split),
            use=use,
        )
    )
    index, rows = arrange(listing, content=np.array(contents, np.uint64).reshape(-1, 2), split=split)
    return DatasetSource(
        index=index,
        datasets=list(by_split.values()),
        decode_options=decode_options,
        places=np.array(places, np.int64)[rows],
    )


def _check_map_style(dataset: Any) -> None:
    """Refuse a data set without a length or numbered items, such as an IterableDataset.

    Raises:
        UserError: It lacks one of them.
    """
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise UserError(
            f"data: {type_in_words(dataset)} is not a data set with a length and numbered items. Give a map-style data set, "
            "a folder, or a data frame."
        )


def _named(by_split: Mapping[str, Any], places: Sequence[tuple[int, int]]) -> list[tuple[tuple[str, Any], int]]:
    items = list(by_split.items())
    return [(items[number], position) for number, position in places]


def _item(dataset: Any, position: int) -> tuple[Any, Any]:
    item = dataset[position]
    if not isinstance(item, tuple | list) or len(item) != 2:
        what = f"{type(item).__name__} of {len(item)}" if isinstance(item, tuple | list) else type(item).__name__
        raise UserError(f"data: item {position} is a {what}. {_ITEM}")
    return item[0], item[1]


def _content(image: Any, position: int, decode_options: DecodeOptions) -> npt.NDArray[np.uint64]:
    pixels_CHW = to_tensor(pixels_of(image, f"data: the image of item {position}", decode_options))
    content: npt.NDArray[np.uint64] = content_hash(
        repr(tuple(pixels_CHW.shape)).encode() + pixels_CHW.contiguous().numpy().tobytes()
    )
    return content


def _must_be_the_same_again(dataset: Any, first: npt.NDArray[np.uint64], decode_options: DecodeOptions) -> None:
    """Read the first item again: a random transform inside a data set would also change what is tested.

    Raises:
        UserError: It is another image now.
    """
    image, _ = _item(dataset, 0)
    if not np.array_equal(_content(image, 0, decode_options), first):
        raise UserError(
            "data: item 0 is another image each time it is read. Splits, tests and a resume need the same. Leave random "
            "transforms out of the data set; augment= and transform= make the training views."
        )


def _targets(targets: Sequence[Any]) -> npt.NDArray[np.int64] | npt.NDArray[np.uint8]:
    arrays = [np.asarray(target.cpu() if isinstance(target, Tensor) else target) for target in targets]
    shapes = {array.shape for array in arrays}
    kinds = {array.dtype.kind for array in arrays}
    if len(shapes) == 1 and kinds <= set("iub") and next(iter(shapes)) == ():
        return np.array(arrays, np.int64)
    stacked = np.stack(arrays) if len(shapes) == 1 and kinds <= set("iubf") else None
    if stacked is None or stacked.ndim != 2 or not np.isin(stacked, (0, 1)).all():
        raise UserError(f"data: targets of shapes {shortened(sorted(map(str, shapes)))} are not classes. {_ITEM}")
    return stacked.astype(np.uint8)


def _names(
    classes: Sequence[str] | None, datasets: Sequence[Any], numbers: npt.NDArray[np.int64] | npt.NDArray[np.uint8]
) -> list[str]:
    least = numbers.shape[1] if numbers.ndim == 2 else int(numbers.max()) + 1
    if numbers.ndim == 1 and int(numbers.min()) < 0:
        raise UserError(f"data: class numbers must start at 0. There is {int(numbers.min())}.")
    known = next((names for names in map(_classes_of, datasets) if names), None) if classes is None else list(classes)
    names = [str(number) for number in range(least)] if known is None else [str(name) for name in known]
    if len(names) < least or (numbers.ndim == 2 and len(names) != least):
        raise UserError(f"classes={shortened(names)}: must name {least} classes, as many as the targets have.")
    return names


def class_names(data: Any) -> list[str]:
    """Return the classes that data sets name, given as for :func:`dataset_source` or as a LightningDataModule; empty for none."""
    if hasattr(data, "train_dataloader"):
        data = datasets_of_module(data)
    datasets = list(data.values()) if isinstance(data, Mapping) else [data]
    return next((names for names in map(_classes_of, datasets) if names), [])


def _classes_of(dataset: Any) -> list[str]:
    """Return the classes that a data set names, or the one inside a subset."""
    while dataset is not None:
        if isinstance(named := getattr(dataset, "classes", None), (list, tuple)):
            return distinct_names([str(name) for name in named])
        dataset = getattr(dataset, "dataset", None)
    return []


def datasets_of_module(module: Any) -> dict[str, Dataset[Any]]:
    """Return the data sets behind the loaders of a LightningDataModule, by split.

    Its batch sizes, samplers and collate functions are not used: a run makes its own batches.

    Raises:
        UserError: It has no loader for training, several loaders for one split, or a loader without a map-style data set.
    """
    module.prepare_data()
    module.setup("fit")
    module.setup("test")
    found = {}
    for split in SPLITS:
        try:
            loader = getattr(module, f"{split}_dataloader")()
        except Exception as error:  # a hook that is not overridden raises an error of Lightning's own
            if type(error).__name__ != "MisconfigurationException":
                raise
            continue
        hook = f"data: {split}_dataloader of {type(module).__name__}"
        if isinstance(loader, Mapping | list | tuple):
            loaders = list(loader.values()) if isinstance(loader, Mapping) else list(loader)
            if len(loaders) > 1:
                raise UserError(
                    f"{hook} must return one loader. It returns {len(loaders)}. Join their data sets: "
                    "torch.utils.data.ConcatDataset."
                )
            loader = loaders[0] if loaders else None
        if loader is None:  # Lightning takes None and an empty list for no loader
            continue
        dataset = getattr(loader, "dataset", None)
        if dataset is None:
            raise UserError(
                f"{hook} must return a loader with a data set. It returns {type_in_words(loader)}. Give a DataLoader."
            )
        _check_map_style(dataset)
        if len(dataset):
            found[split] = dataset
    if "train" not in found:
        raise UserError(
            f"data: {type(module).__name__} has no train_dataloader with a data set. Give it one, or train by "
            "finetune.FineTuner under a Trainer of your own."
        )
    return found


def channels_of(data: Any) -> int:
    """Return 1 if the first image of a data set is grey, else 3.

    Raises:
        UserError: The data set is empty, or its first item is not an image.
    """
    dataset = next(iter(data.values()), ()) if isinstance(data, Mapping) else data
    _check_map_style(dataset)
    if not len(dataset):
        raise UserError("data: the data set is empty.")
    image, _ = _item(dataset, 0)
    if isinstance(image, Image.Image):
        return 1 if image.mode in ("1", "L", "LA") or image.mode.startswith(("I", "F")) else 3
    shape = tuple(getattr(image, "shape", ()))
    grey = len(shape) == 2 or (len(shape) == 3 and shape[0 if isinstance(image, Tensor) else 2] == 1)
    return 1 if grey else 3

"""Find duplicates: files with identical bytes, and near-duplicate pictures in different splits."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from finetune.data.perceptual_hash import distance
from finetune.input_spec import InputSpec

Rows = npt.NDArray[np.int64]

# up to this many images a band has 8 bits and pairs may differ in up to 12 of 128 bits; above it, 16 bits and 7
_MANY = 50_000

# pictures of one kind, such as X-rays, may all be close to each other, so the number of pairs compared is bounded
_MOST_PAIRS = 100_000

# two thumbnails show the same picture if they correlate at least this much and, apart from brightness, differ by at most this
# many 8-bit values
_LEAST_CORRELATION = 0.97
_MOST_LEVELS = 6.0

# pictures with a smaller range of 8-bit values have no structure to compare
_LEAST_RANGE = 16


def identical(content: npt.NDArray[np.uint64]) -> list[Rows]:
    """Return the groups of two or more rows with the same content, each group ascending."""
    order = np.lexsort((content[:, 1], content[:, 0]))
    starts = np.flatnonzero((np.diff(content[order], axis=0) != 0).any(axis=1)) + 1
    return sorted(
        (np.sort(group) for group in np.split(order, starts) if len(group) > 1), key=lambda group: int(group[0])
    )


def alike_across(
    *,
    looks: npt.NDArray[np.uint64],
    content: npt.NDArray[np.uint64],
    splits: npt.NDArray[np.int8],
    ranges: npt.NDArray[np.uint8],
    read: Callable[[int], Tensor],
) -> list[tuple[int, int]]:
    """Return the pairs of rows in different splits that show the same picture in different bytes.

    Args:
        looks: Perceptual hashes, uint64 (N, 2).
        content: Content hashes; pairs with equal hashes are left out.
        splits: Split of each row, int8 (N,).
        ranges: Difference between the brightest and the darkest pixel of each image, uint8 (N,).
        read: Function that reads the image of a row. Candidates are also compared by their pixels, because similar hashes
            do not prove that two pictures are the same.
    """
    rows = np.flatnonzero(ranges >= _LEAST_RANGE)
    pairs: set[tuple[int, int]] = set()
    most = 12 if len(rows) <= _MANY else 7
    bands = looks[rows].view(np.uint8 if len(rows) <= _MANY else np.uint16)
    for band in bands.T:
        for group in _equal(band):
            members = rows[group]
            for split in np.unique(splits[members])[:-1]:
                ones, others = members[splits[members] == split], members[splits[members] > split]
                # loop over the smaller side, so that a band shared by very many rows needs no large table
                for one in ones if len(ones) <= len(others) else others:
                    if len(pairs) >= _MOST_PAIRS:
                        break
                    across = others if len(ones) <= len(others) else ones
                    near = across[distance(looks[across], looks[one]) <= most]
                    pairs.update((min(int(one), int(other)), max(int(one), int(other))) for other in near)
    thumbnails: dict[int, npt.NDArray[np.float32]] = {}

    def thumbnail(row: int) -> npt.NDArray[np.float32]:
        if row not in thumbnails:
            thumbnails[row] = _thumbnail(read(row))
        return thumbnails[row]

    different = [pair for pair in sorted(pairs) if (content[pair[0]] != content[pair[1]]).any()]
    return [pair for pair in different if _same_picture(thumbnail(pair[0]), thumbnail(pair[1]))]


def _equal(values: npt.NDArray[np.unsignedinteger[Any]]) -> Iterator[Rows]:
    """Yield the groups of positions with equal values."""
    order = np.argsort(values, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(values[order])) + 1):
        if len(group) > 1:
            yield group


def _thumbnail(image_CHW: Tensor) -> npt.NDArray[np.float32]:
    # imported late: torchvision takes two seconds, and few audits need it
    from finetune.data.transforms import eval_view

    view = eval_view(InputSpec(channels=int(image_CHW.shape[0]), size=(32, 32), crop_mode="squash"))
    grey = view(image_CHW).float().mean(dim=0)
    centred: npt.NDArray[np.float32] = (grey - grey.mean()).numpy()
    return centred


def _same_picture(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> bool:
    norm = float(np.sqrt((one**2).sum() * (other**2).sum()))
    correlation = float((one * other).sum()) / norm if norm else 0.0
    return correlation >= _LEAST_CORRELATION and float(np.abs(one - other).mean()) <= _MOST_LEVELS

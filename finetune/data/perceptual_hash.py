"""A perceptual hash: 128 bits that hardly change when a picture is scaled, recompressed or slightly brightened.

It consists of two difference hashes of 64 bits (Neal Krawetz, "Kind of Like That", 2013). Their bits tell whether each
cell of an 8 x 8 grid is darker than its right neighbour, and darker than the cell below it.

The library imagehash has both hashes (``dhash``, ``dhash_vertical``), but its bits compare rounded levels: flat areas, which a
threshold of half a level settles here, are decided by rounding. It takes Pillow images, and needs PyWavelets.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

_GRID = 9


def looks(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Compute the perceptual hash of a grey image.

    Args:
        grey: uint8 (H, W), of any size.

    Returns:
        uint64 (2,): the horizontal and the vertical differences.
    """
    cells = _cells(_cells(grey.astype(np.float32), axis=0), axis=1)
    # a neighbour must be brighter by half a level; otherwise rounding would decide in flat areas
    right = cells[:8, 1:] > cells[:8, :8] + 0.5
    below = cells[1:, :8] > cells[:8, :8] + 0.5
    return np.packbits([right.ravel(), below.ravel()], axis=1).view(np.uint64).ravel()


def distance(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Count how many of the 128 bits differ, over the last axis."""
    bits: npt.NDArray[np.int64] = np.bitwise_count(one ^ other).sum(axis=-1, dtype=np.int64)
    return bits


def _cells(values: npt.NDArray[np.float32], *, axis: int) -> npt.NDArray[np.float32]:
    """Return the means of nine equal parts along an axis; an axis shorter than nine is sampled."""
    length = values.shape[axis]
    if length < _GRID:
        sampled: npt.NDArray[np.float32] = values.take(np.arange(_GRID) * length // _GRID, axis=axis)
        return sampled
    edges, widths = _parts(length)
    sums = np.add.reduceat(values, edges, axis=axis)
    means: npt.NDArray[np.float32] = (sums / (widths[:, None] if axis == 0 else widths)).astype(np.float32, copy=False)
    return means


@lru_cache(maxsize=1024)
def _parts(length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return where nine equal parts of an axis begin, and their widths."""
    edges = np.arange(_GRID) * length // _GRID
    return edges, np.diff(edges, append=length).astype(np.float32)

"""Sources of samples: an index, and a way to read one of its rows from a file or from memory."""

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from finetune.data.assign_splits import arrange, leave_out_unreadable
from finetune.data.color import luma
from finetune.data.decode import DecodeOptions, decode_file, to_tensor
from finetune.data.depth_range import with_ranges
from finetune.data.index import Index
from finetune.data.listing import UNASSIGNED, Listing, Use
from finetune.data.path_table import path_table
from finetune.data.scan import Facts, facts_of_arrays
from finetune.data.scan_cache import cached_facts
from finetune.split_settings import SplitSettings


class Source(Protocol):
    """A data set: the table of its samples, and their pixels. It can be pickled, so that workers can be spawned.

    ``in_memory`` states that reading costs next to nothing; ``many_threads`` that several threads may read at once and
    are faster than one. ``facts`` has one row for each row of the index. ``decode_options`` also holds for files that are
    predicted later; images in memory have the default limits and rules.
    """

    index: Index
    decode_options: DecodeOptions
    in_memory: bool
    many_threads: bool
    facts: Facts | None

    def read(self, row: int, *, min_side: int | None = None) -> torch.Tensor:
        """Read the image of one row.

        Args:
            row: Row of the index.
            min_side: Fewest pixels of the shorter side; the image may be read smaller than it is, down to this. None
                reads the full size.

        Returns:
            uint8 (channels, H, W), whatever the order of its memory; see :func:`finetune.data.decode.to_tensor`.

        Raises:
            UnreadableImage: The file is damaged or missing.
        """
        ...


class FileSource:
    """A source of image files.

    Args:
        index: The table of samples.
        decode_options: How the files become pixels.
        facts: Scan facts of each row; None where they are not known.
    """

    in_memory = False
    many_threads = True

    def __init__(self, *, index: Index, decode_options: DecodeOptions, facts: Facts | None = None) -> None:
        self.index, self.decode_options, self.facts = index, decode_options, facts

    def read(self, row: int, *, min_side: int | None = None) -> torch.Tensor:
        """Decode the file of one row."""
        return to_tensor(decode_file(self.index.path(row), self.decode_options, min_side=min_side))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the facts out: no worker process needs them."""
        return self.__dict__ | {"facts": None}


class ArraySource:
    """A source of images held in memory.

    Args:
        index: The table of samples.
        images: Pixels, uint8 (M, H, W) or (M, H, W, 3).
        channels: Number of channels, 1 or 3; grey becomes three equal channels, colour becomes its luma.
        rows: Position in ``images`` of each row of the index, int64 (N,).
        facts: Scan facts of each row; None where they are not known.
    """

    in_memory = True
    many_threads = False

    def __init__(
        self,
        *,
        index: Index,
        images: npt.NDArray[np.uint8],
        channels: int,
        rows: npt.NDArray[np.int64],
        facts: Facts | None = None,
    ) -> None:
        self.index = index
        self.images = images
        self.decode_options = DecodeOptions(channels=channels)
        self.rows = rows
        self.facts = facts

    def read(self, row: int, *, min_side: int | None = None) -> torch.Tensor:
        """Return a copy of one row's image."""
        image = self.images[self.rows[row]]
        if image.ndim == 3 and self.decode_options.channels == 1:
            image = luma(image)
        pixels = torch.from_numpy(image.copy())
        return (
            pixels.permute(2, 0, 1)
            if image.ndim == 3
            else pixels.expand(self.decode_options.channels, -1, -1).contiguous()
        )


def files_source(
    listing: Listing, *, split: SplitSettings, decode_options: DecodeOptions | None = None, on_unreadable: str = "error"
) -> FileSource:
    """Build a source from listed files: scan them (or ask the cache), drop unreadable ones, make the splits.

    Args:
        listing: The files.
        split: Rule for the splits that the listing lacks.
        decode_options: How the files become pixels; None for the defaults.
        on_unreadable: Treatment of unreadable files, ``error`` or ``skip``.

    Raises:
        UserError: A file is unreadable, or the splits cannot be made; see :mod:`finetune.data.assign_splits`.
    """
    decode_options = DecodeOptions() if decode_options is None else decode_options
    readable, facts, skipped = _scan(listing, decode_options, on_unreadable)
    index, rows = arrange(readable, content=facts.content, split=split, skipped=skipped)
    if listing.use != "test":
        # measured on training data; test data is read with the ranges of the run
        decode_options, notes = with_ranges(decode_options, facts)
        index.notes += notes
    return FileSource(index=index, decode_options=decode_options, facts=facts.take(rows))


def _scan(
    listing: Listing, decode_options: DecodeOptions, on_unreadable: str
) -> tuple[Listing, Facts, list[tuple[str, str]]]:
    """Return the readable files with their facts, and the paths and reasons of the skipped ones."""
    facts = cached_facts(listing.root, listing.paths, max_pixels=decode_options.max_pixels)
    readable, skipped = leave_out_unreadable(listing, facts.unreadable(), on_unreadable=on_unreadable)
    if skipped:
        facts = facts.take(np.flatnonzero(facts.table["problem"] == 0))
    return readable, facts, skipped


def arrays_source(
    *,
    images: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.int64],
    classes: Sequence[str],
    name: str,
    splits: npt.NDArray[np.int8] | None = None,
    given: Sequence[str] = (),
    channels: int,
    split: SplitSettings,
    use: Use = "train",
) -> ArraySource:
    """Build a source from images in memory; a sample is called ``name/`` and its row, with zeros before it to equal length."""
    width = len(str(len(images) - 1))
    listing = Listing(
        origin=f"data.source={name!r}",
        root="",
        classes=tuple(classes),
        paths=path_table(os.path.join(name, f"{row:0{width}}") for row in range(len(images))),
        targets=targets,
        splits=np.full(len(images), UNASSIGNED, np.int8) if splits is None else splits,
        given=tuple(given),
        use=use,
    )
    facts = facts_of_arrays(list(images))
    index, rows = arrange(listing, content=facts.content, split=split)
    return ArraySource(index=index, images=images, channels=channels, rows=rows, facts=facts.take(rows))

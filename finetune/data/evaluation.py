"""An evaluation folder: images that a trained model is tested on, none of them set aside for training."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from finetune.data.assign_splits import leave_out_unreadable
from finetune.data.decode import DecodeOptions
from finetune.data.image_folder import list_folders
from finetune.data.image_source import FileSource
from finetune.data.index import SPLITS, Index
from finetune.data.scan_cache import cached_facts

TEST = SPLITS.index("test")


def evaluation_folder(
    *,
    root: str | Sequence[str],
    decode: DecodeOptions = DecodeOptions(),
    on_unreadable: str = "error",
) -> FileSource:
    """Build a source from an image folder whose images belong to ``test``, unless the folder names its own splits.

    Unlike a folder for training, it may hold a single class, or classes without a training image.

    Raises:
        UserError: There is no such folder, it holds no image, or an image cannot be read.
    """
    listing = list_folders(root)
    facts = cached_facts(listing.root, listing.paths, max_pixels=decode.max_pixels)
    readable, skipped = leave_out_unreadable(listing, facts.unreadable(), on_unreadable=on_unreadable)
    if skipped:
        facts = facts.take(np.flatnonzero(facts.table["problem"] == 0))
    splits = np.where(readable.splits < 0, TEST, readable.splits).astype(np.int8)
    readable = replace(readable, splits=splits)
    index = Index(
        classes=readable.classes,
        root=readable.root,
        paths=readable.paths,
        targets=readable.targets,
        splits=splits,
        content=facts.content,
        skipped=skipped,
        ignored=readable.ignored,
    )
    return FileSource(index=index, decode=decode, facts=facts)

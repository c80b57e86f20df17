"""Read the features that training left in the cache, so that other commands need not compute them again."""

import numpy as np
import numpy.typing as npt
import torch

from finetune.activation_cache.cache import depends_on
from finetune.activation_cache.store import Entry, find_entry
from finetune.data.image_source import Source
from finetune.data.index import SPLITS
from finetune.input_spec import InputSpec
from finetune.models.backbone import Backbone


class CachedFeatures:
    """Reads cached features of the evaluation view by row of the index; it computes nothing.

    Args:
        backbone: Backbone that computed the features.
        input_spec: Input of the network.
        adapt: Method that adapted the images' channels to the stem.
        source: Source of the images.
    """

    def __init__(self, backbone: Backbone, *, input_spec: InputSpec, adapt: str, source: Source) -> None:
        cached_stage, index = backbone.stages[-1], source.index
        # those of a run on a processor in single precision, which are the features that an embedding computes, to the bit
        parts = depends_on(
            backbone,
            input_spec=input_spec,
            adapt=adapt,
            cached_stage=cached_stage,
            source=source,
            dtype=torch.float32,
            autocast=None,
            folded=False,
            device="cpu",
        )
        self._entries: dict[str, Entry] = {}
        self._places = np.zeros(len(index), np.int64)
        self._splits = index.splits
        for split in SPLITS:
            rows = index.rows(split)
            self._places[rows] = np.arange(len(rows))
            entry = find_entry({**parts, "split": split, "view": {"augment": "none"}})
            if entry is not None and entry.layout.rows == len(rows):
                self._entries[split] = entry

    def __call__(self, row: int) -> npt.NDArray[np.float32] | None:
        """Return the features (D,) of a row, or None if they are not cached."""
        entry = self._entries.get(SPLITS[self._splits[row]])
        if entry is None:
            return None
        values: npt.NDArray[np.float32] = entry.read(self._places[row : row + 1]).view(np.float32).reshape(-1)
        return values

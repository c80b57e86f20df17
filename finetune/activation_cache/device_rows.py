"""Rows of cached activations, read from their file or kept in GPU memory if they fit."""

import numpy as np
import torch
from torch import Tensor

from finetune.activation_cache.store import Entry
from finetune.data.sampling import Rows

# fraction of the device's free memory that a phase's activations may take; training needs most of it
_SHARE_OF_FREE = 0.25


def room_on(device: torch.device) -> int:
    """Return the bytes of device memory to spend on activations; 0 on a CPU, where the system caches files in memory."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(_SHARE_OF_FREE * free)


class DeviceRows:
    """Reads the activations of one view, one row per image.

    Args:
        entry: Complete entry.
        shape: Shape of one row.
        dtype: Dtype of the rows.
        device: Device that keeps the rows in memory; None reads them from the file at every use.
    """

    def __init__(
        self, entry: Entry, *, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None
    ) -> None:
        self.entry, self._shape, self._dtype = entry, shape, dtype
        self._held: Tensor | None = None
        if device is not None:
            self._held = torch.empty((entry.layout.rows, *shape), dtype=dtype, device=device)
            for chunk in range(entry.layout.chunks):
                rows = entry.layout.rows_of(chunk)
                self._held[rows.start : rows.stop] = self._read(np.arange(rows.start, rows.stop)).to(device)

    def __call__(self, places: Rows) -> Tensor:
        """Return rows (B, ...) in the given order."""
        if self._held is None:
            return self._read(places)
        return self._held[torch.from_numpy(places).to(self._held.device)]

    def _read(self, places: Rows) -> Tensor:
        return torch.from_numpy(self.entry.read(places)).view(self._dtype).view(-1, *self._shape)

    def close(self) -> None:
        """Release the file and the memory."""
        self._held = None
        self.entry.close()

"""Images behind embeddings, for pages: files by path, or images of an in-memory data set by name."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.data.image_source import Source


class ImageLookup:
    """Reads the images of embeddings.

    Args:
        metadata: Metadata of the embeddings. If it names a data set that is not a folder of files, the images are recreated.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._data = metadata.get("data")
        recorded = metadata.get("reading")
        self._recorded = dict(recorded) if isinstance(recorded, Mapping) else {}

    def __call__(self, path: str) -> "Tensor | None":
        """Return the image, uint8 (C, H, W); None if it is not available."""
        from finetune.data.decode import DecodeOptions, decode_to_show, to_tensor
        from finetune.data.image_file import UnreadableImage
        from finetune.report.thumbnails import SIDE_PX

        try:
            if Path(path).is_file():
                options = DecodeOptions.from_plain(DecodeOptions().to_plain() | self._recorded, channels=3)
                return to_tensor(decode_to_show(path, options, min_side=SIDE_PX))
            row = self._rows.get(path)
            return None if row is None or self._source is None else self._source.read(row, min_side=SIDE_PX)
        except (UnreadableImage, ValueError):  # ValueError: the embeddings file names settings that do not exist
            return None

    @cached_property
    def _source(self) -> "Source | None":
        """The data set, if its images are not files."""
        from finetune.build.data import build_source
        from finetune.config import data_settings
        from finetune.config.schema import Config

        if not isinstance(self._data, dict):
            return None
        try:
            settings, seed = data_settings(self._data["data"]), self._data["seed"]
            if type(seed) is not int:
                raise UserError("seed: must be a whole number.")
            return build_source(Config(seed=seed, data=settings), use="audit")
        except (UserError, KeyError) as error:
            print(f"pictures: the data set that was embedded cannot be opened. {error}")
            return None

    @cached_property
    def _rows(self) -> dict[str, int]:
        if self._source is None or not self._source.in_memory:
            return {}
        index = self._source.index
        return {index.path(row): row for row in range(len(index))}

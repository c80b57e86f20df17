"""What a data source is: its settings, and every rule that holds for it alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.split_settings import SplitSettings

if TYPE_CHECKING:  # a configuration is checked against this table before NumPy and torch are loaded
    from finetune.data.image_source import Source
    from finetune.data.listing import Listing

SPLIT_KEYS = tuple(field.name for field in fields(SplitSettings) if field.name != "seed")
# how more than 8 bits become 8
DEPTH_KEYS = ("high_depth", "bit_depth", "integer_range", "float_range")
FILE_KEYS = ("on_unreadable", "max_pixels", *DEPTH_KEYS)
# of the list of classes
CLASS_KEYS = ("old_classes", "rename")
# settings of images that are given as Python objects
OBJECT_KEYS = (*SPLIT_KEYS, *DEPTH_KEYS)


@dataclass(frozen=True, kw_only=True)
class SourceKind:
    """A value of ``data.source``.

    Args:
        builder: Function that imports and returns the builder of the source. The builder takes the settings of ``specific``,
            ``split``, and for images that are decoded ``decode_options``, ``on_unreadable`` and ``use``, else ``channels``; and
            ``listing`` if ``check`` returns one.
        specific: Settings under ``data`` that this source gives a meaning.
        needs: Specific settings that must be given, each with what to write.
        defaults: Values of specific settings that were not given.
        place: Specific setting with the user's file or folder; None if there is none that must exist.
        recognises: Returns whether a file or folder that the user names without a setting is data of this kind; None for a kind
            that is always named.
        splits: Settings of the splits that it takes.
        classes: Settings of the list of classes that it takes.
        decodes: Whether its images are decoded from files; it then takes ``FILE_KEYS``.
        bands: Whether they may have any number of channels.
        channels: Number of channels of its images where the configuration does not say.
        downloads: Whether it fetches data that is not there; its builder then takes ``download``.
        check: Checks the place without loading torch; takes the specific settings, and ``use``: what the data is for. It may
            return the listing of the data.
        left_out: Returns the files at the place that are pictures but are not read; takes the specific settings.
    """

    builder: "Callable[[], Callable[..., Source]]"
    specific: tuple[str, ...] = ()
    needs: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    place: str | None = None
    recognises: Callable[[Path], bool] | None = None
    splits: tuple[str, ...] = SPLIT_KEYS
    classes: tuple[str, ...] = CLASS_KEYS
    decodes: bool = False
    bands: bool = False
    channels: int = 3
    downloads: bool = False
    check: "Callable[..., Listing | None] | None" = None
    left_out: Callable[..., Sequence[str]] | None = None

    @property
    def settings(self) -> tuple[str, ...]:
        """Return all settings under ``data`` that this source takes."""
        return (*self.specific, *self.splits, *self.classes, *(FILE_KEYS if self.decodes else ()))

    def specific_settings(self, data: object) -> dict[str, Any]:
        """Return the values of the specific settings, from a ``data`` section of the configuration or by default."""
        given = {key: value for key in self.specific if (value := getattr(data, key)) is not None}
        return {**self.defaults, **given}

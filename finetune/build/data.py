"""Build the data of a run: the source that a configuration names, and the data module that feeds the network."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.augment_settings import augment_settings
from finetune.build.augment_lists import build_augment_lists
from finetune.build.user_objects import user_transform
from finetune.config.checks import split_settings
from finetune.config.schema import Config, DataConfig
from finetune.data.sources import source_kind
from finetune.distributed import MOST_LOADERS_PER_CORE, cores
from finetune.errors import UserError

if TYPE_CHECKING:  # imported where they are used, so that a wrong path is reported before torch is loaded
    from finetune.data.color import Range
    from finetune.data.datamodule import ImageDataModule
    from finetune.data.decode import DecodeOptions
    from finetune.data.image_source import Source
    from finetune.data.listing import Listing, Use
    from finetune.data.scan import Facts
    from finetune.models.classifier import Classifier

log = logging.getLogger(__name__)

# keys of `data` that concern the loader, not the source of the images
_OF_THE_LOADER = ("source", "balanced", "batch_size", "eval_batch_size", "num_workers", "augment", "transform")


def decode_options_from(config: Config, *, channels: int | None = None) -> "DecodeOptions":
    """Return how the image files of a configuration become pixels.

    Args:
        config: Checked configuration.
        channels: Number of channels; None for that of the configuration or of its kind of data.

    Raises:
        UserError: ``data.high_depth`` names no rule, or a range or ``data.bit_depth`` is invalid.
    """
    from finetune.data.color import check_high_depth
    from finetune.data.decode import DecodeOptions

    if channels is None:
        channels = config.input.given_channels or source_kind(config.data.source).channels
    options = DecodeOptions(
        channels=channels,
        high_depth=check_high_depth(config.data.high_depth),
        integer_range=_integer_range(config.data),
        float_range=config.data.float_range,  # type: ignore[arg-type] # a list, which the options check
    )
    return options if config.data.max_pixels is None else replace(options, max_pixels=config.data.max_pixels)


def _integer_range(data: DataConfig) -> "Range | None":
    from finetune.data.color import check_range
    from finetune.data.depth_range import BIT_DEPTHS

    given = check_range(data.integer_range, name="data.integer_range")
    if data.bit_depth == "auto":
        return given
    if data.bit_depth not in BIT_DEPTHS:
        raise UserError(f"data.bit_depth={data.bit_depth!r}: must be auto or one of {', '.join(map(str, BIT_DEPTHS))}.")
    if data.high_depth == "stretch":
        raise UserError(f"data.bit_depth={data.bit_depth}: has no effect under data.high_depth=stretch. Leave one out.")
    whole = (0.0, 2.0**data.bit_depth - 1)
    if given not in (None, whole):
        raise UserError(f"data.bit_depth={data.bit_depth}: contradicts data.integer_range. Leave one out.")
    return whole


def build_source(
    config: Config, *, use: "Use" = "train", listing: "Listing | None" = None, download: bool = False
) -> "Source":
    """Build the source of the images.

    Args:
        config: Checked configuration.
        use: Purpose of the data; test data need not be valid for training.
        listing: Listing from :func:`finetune.build.paths.check_paths`, so that the data is not listed again.
        download: Whether data that is not there may be fetched: only where the user typed its name, since what is read from a
            run or another file may decide neither whom this machine contacts nor where it writes.

    Raises:
        UserError: There is no such source, it does not take a setting that is set, or its data cannot be used.
    """
    from finetune.data.class_list import arrange_classes

    data = config.data
    kind = source_kind(data.source)
    specific = kind.specific_settings(data)
    if use != "test":  # a test on other data may keep settings of the run's own data
        refuse_other_settings(data, taken=kind.settings, name=f"data={data.source}")
    decode_options = decode_options_from(config)
    if kind.decodes and not kind.bands and decode_options.channels not in (1, 3):
        raise UserError(
            f"input.channels={decode_options.channels}: data={data.source} reads images as 1 or 3 channels. Use one of these; "
            "files of other channels are read by data=folder and data=manifest."
        )
    pixels = (
        {"decode_options": decode_options, "on_unreadable": data.on_unreadable}
        if kind.decodes
        else {"channels": decode_options.channels}
    )
    meant = ({"use": use} if kind.decodes else {}) | ({"download": download} if kind.downloads else {})
    known = {"listing": listing} if listing is not None else {}
    source = kind.builder()(**specific, split=split_settings(config), **pixels, **meant, **known)
    arrange_classes(source.index, first=data.old_classes or (), rename=data.rename)
    if kind.decodes and source.facts is not None:
        _check_channels(source, source.facts, setting=f"input.channels={config.input.channels}")
    if kind.decodes and config.input.channels == "auto":
        _choose_channels(source)
    return source


def refuse_other_settings(data: DataConfig, *, taken: Sequence[str], name: str) -> None:
    """Refuse settings of images that reach nothing in a kind of data.

    Args:
        data: Settings of the data.
        taken: Settings that the kind takes, beside those of the loader.
        name: Name of the kind, for the message.

    Raises:
        UserError: Another setting is set.
    """
    for key in fields(DataConfig):
        value = getattr(data, key.name)
        if value not in (None, {}, key.default) and key.name not in (*taken, *_OF_THE_LOADER):
            raise UserError(f"data.{key.name}={value!r}: not a setting of {name}, which takes {', '.join(taken)}.")


def _check_channels(source: "Source", facts: "Facts", *, setting: str) -> None:
    """Check that every image can be read with the channels of the source.

    Raises:
        UserError: Some have others; the message names the first.
    """
    from finetune.data.scan import KINDS

    wanted, stored = source.decode_options.channels, facts.table["channels"].astype(int)
    as_stored = wanted not in (1, 3)
    wrong = (stored != wanted if as_stored else facts.bands()).nonzero()[0]
    if len(wrong):
        first, number = source.index.path(int(wrong[0])), int(stored[wrong[0]])
        some = f"{setting}: {len(wrong):,} of {len(facts):,} images have other channels. {first} has {number}"
        if as_stored:
            raise UserError(f"{some}. Files are read as they are stored, alpha included: all must have {wanted}.")
        same = bool((stored == number).all())
        advice = f"Use input=multispectral input.channels={number}" if same else "Give all images the same channels"
        raise UserError(f"{some} that are no colours. {advice}.")
    if as_stored and (facts.table["kind"] == KINDS.index("TIFF")).any() and find_spec("tifffile") is None:
        raise UserError(
            f"{setting}: reading TIFF files as they are stored needs tifffile. Install it with: "
            "pip install 'stagewise-finetune[tiff]'."
        )


def _choose_channels(source: "Source") -> None:
    """Read a data set of grey images as one channel; note this, and a mixture of grey and colour."""
    grey = source.facts.grey() if source.facts is not None else None
    if grey is None or not grey.any():
        return
    if grey.all():
        source.decode_options = replace(source.decode_options, channels=1)
        note = "1, because all images are grey."
    else:
        note = f"3. {grey.sum():,} of {len(grey):,} images are grey and become three equal channels."
    source.index.notes += (f"input.channels=auto: {note}",)


def with_loaders_that_fit(config: Config, *, saved_in: Path) -> Config:
    """Return a saved configuration whose loader processes this machine can hold; else their number is chosen here.

    The run may have been made on a larger machine, or edited, and no result depends on the number.

    Args:
        config: Configuration read from a run.
        saved_in: File it was read from, for the warning.
    """
    most = MOST_LOADERS_PER_CORE * cores()
    if (config.data.num_workers or 0) <= most:
        return config
    log.warning(
        "%s: data.num_workers=%d is more than the %d that this machine is allowed; chosen automatically.",
        saved_in,
        config.data.num_workers,
        most,
    )
    return replace(config, data=replace(config.data, num_workers=None))


def build_data(
    config: Config,
    source: "Source",
    classifier: "Classifier",
    worker_init: Callable[[int], None] | None = None,
    *,
    trusted: bool = False,
) -> "ImageDataModule":
    """Build the data module of a run.

    Args:
        config: Checked configuration.
        source: Source of the images.
        classifier: Model that defines the input of the network.
        worker_init: Function called in each loader process with its number; None for none.
        trusted: Whether the user typed the configuration, or trusts its run; otherwise no user-supplied transform is built.

    Raises:
        UserError: The transform cannot be built.
    """
    from finetune.data.class_weights import balanced_sample_weights
    from finetune.data.datamodule import ImageDataModule

    return ImageDataModule(
        source=source,
        spec=classifier.input_spec,
        seed=config.seed,
        batch_size=config.data.batch_size,
        eval_batch_size=config.data.eval_batch_size,
        num_workers=config.data.num_workers,
        augment=augment_settings(config.data.augment).text,
        augment_lists=build_augment_lists(config, spec=classifier.input_spec, trusted=trusted),
        transform=user_transform(config, spec=classifier.input_spec, trusted=trusted),
        sample_weights=balanced_sample_weights(source.index) if config.data.balanced else None,
        worker_init=worker_init,
    )

"""Test a trained run on its own test split or on other data."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.config.schema import Config
from finetune.data.sources import naming_settings, place_settings, source_kind
from finetune.errors import UserError, shortened
from finetune.run_names import CONFIG
from finetune.runners.bundle_modules import modules_of
from finetune.runners.run_data import data_config, read_as_trained

if TYPE_CHECKING:
    from finetune.data.image_source import Source
    from finetune.data.listing import Use
    from finetune.inference.evaluate import Evaluation
    from finetune.models.classifier import Classifier


def _default_split(source: "Source", *, other_data: bool) -> str:
    """Return ``test``, or ``all`` for other data that lies in a single split."""
    filled = [split for split, images in source.index.split_sizes().items() if images]
    return "all" if other_data and len(filled) == 1 else "test"


def evaluate_run(
    run: str,
    overrides: Sequence[str],
    *,
    split: str | None,
    trust: bool,
    load: "Callable[[], Classifier] | None" = None,
) -> "tuple[Evaluation, Classifier, str]":
    """Test a trained run on its own data or on other data.

    Args:
        run: Run or bundle folder.
        overrides: Checked overrides that name other data, or change the run's own.
        split: ``train``, ``val``, ``test`` or ``all``; None uses ``test``, or ``all`` for data without splits.
        trust: Whether to build user-supplied classes that the run names.
        load: Function that returns the model; None loads it from the run.

    Returns:
        The metrics, the model, and the split.

    Raises:
        UserError: The run, the data or the split cannot be used.
    """
    config = data_config(run, overrides)

    from finetune.bundle import find_bundle, load_bundle

    find_bundle(run)

    import numpy as np

    from finetune.build.data import build_source
    from finetune.build.paths import check_data_is_there, check_paths
    from finetune.inference.decode_options import decode_options_of
    from finetune.inference.evaluate import evaluate
    from finetune.models.modes import evaluating

    other_data = any(word.partition("=")[0] in ("data", *naming_settings()) for word in overrides)
    with _naming_config(run, overrides):
        if not other_data:
            check_data_is_there(config, command=f"finetune evaluate {shlex.quote(run)}")
        listing = check_paths(config, use="test" if other_data else "train")
    classifier = load_bundle(run, modules=modules_of(run, trust=trust)) if load is None else load()
    config.input.channels = classifier.input_spec.channels
    read_as_trained(config, overrides, decode_options_of(run))
    source = _moved_data(run, config, overrides)
    if source is None:
        with _naming_config(run, overrides):
            # all of other data is tested, unless it has its own splits
            use: Use = "test" if other_data else "train"
            source = build_source(config, use=use, listing=listing, download=other_data)
    if not other_data and split != "all":
        _refuse_changed_data(run, source)
    split = split or _default_split(source, other_data=other_data)
    rows = np.arange(len(source.index)) if split == "all" else source.index.rows(split)
    if not len(rows):
        raise UserError(f"--split {split}: has no images. Counts: {source.index.split_sizes()}. Choose another split.")
    place = None if config.data.source == "python" else source_kind(config.data.source).place
    name = "data" if place is None else f"data.{place}={getattr(config.data, place)!r}"
    with evaluating(classifier):
        tested = evaluate(classifier, source, rows, num_workers=config.data.num_workers, name=name)
    return tested, classifier, split


def _refuse_changed_data(run: str, source: "Source") -> None:
    """Refuse the run's own data if it is no longer what the run was trained on, because it would be split anew.

    Raises:
        UserError: The data has changed; the message says what.
    """
    from finetune.bundle import find_bundle, read_model_json
    from finetune.run_folder import RecordedData, differences

    recorded, now = read_model_json(find_bundle(run))["data"], RecordedData.of(source.index)
    if recorded.get("fingerprint") in (None, now.fingerprint):
        return
    plain = {"classes": list(now.classes), "counts": {split: list(counts) for split, counts in now.counts.items()}}
    changed = differences({key: recorded.get(key) for key in plain}, plain)
    raise UserError(
        f"RUN='{run}': the data has changed since the run, so images that it trained on may now be in another split. "
        f"{shortened(changed or ['files were renamed, or their contents or splits changed'])}. Test the run's own test "
        f"images with data=manifest data.path={shlex.quote(str(Path(run) / 'split.csv'))} data.on_unreadable=skip, all images of "
        "a folder with data=DIR, or all of these with --split all."
    )


@contextmanager
def _naming_config(run: str, overrides: Sequence[str]) -> Iterator[None]:
    """Name the run's configuration file if one of its values is wrong, because the user did not type that value.

    Raises:
        UserError: A value is wrong.
    """
    try:
        yield
    except UserError as error:
        if overrides:
            raise
        raise UserError(f"{Path(run).expanduser() / CONFIG}: {error}") from error


def _moved_data(run: str, config: Config, overrides: Sequence[str]) -> "Source | None":
    """Return the run's own data if the overrides only give its new location, else None."""
    from finetune.build.data import build_source
    from finetune.bundle import find_bundle, read_model_json

    if not overrides or not all(word.partition("=")[0] in place_settings() for word in overrides):
        return None
    try:
        source = build_source(config)
    except UserError:
        # other data, which need not be valid for training
        return None
    made_with = read_model_json(find_bundle(run))["data"].get("fingerprint")
    return source if source.index.fingerprint() == made_with else None

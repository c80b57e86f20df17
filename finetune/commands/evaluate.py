"""``finetune evaluate``: test a trained run on its own test split or on other data."""

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.options import Arguments, home_path
from finetune.commands.own_modules import HELP, modules_of
from finetune.config import changed, check_overrides, compose, from_yaml
from finetune.config.overrides import TypedLine
from finetune.config.schema import Config
from finetune.counted import counted
from finetune.data.sources import naming_settings, place_settings, source_kind
from finetune.errors import RunError, UserError
from finetune.run_names import CONFIG
from finetune.safe_files import inside

if TYPE_CHECKING:
    from finetune.data.decode import DecodeOptions
    from finetune.data.image_source import Source
    from finetune.inference.evaluate import Evaluation
    from finetune.models.classifier import Classifier

ABOUT = """\
Test a trained run. Without key=value it is tested on its own test split.
Other data: its folder or table, or data=... key=value; classes are aligned by name. If it has its own splits, its test split is
used, otherwise all of it. With --at-least the exit status is 1 if a metric is below its floor, for pipelines."""


def run(argv: Sequence[str]) -> int:
    """Run ``finetune evaluate`` and return the exit status."""
    parser = Arguments("evaluate", ABOUT)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument(
        "overrides", metavar="DIR | key=value", nargs="*", help="other data, or a change of the run's own"
    )
    parser.add_argument(
        "--split",
        choices=["train", "val", "test", "all"],
        help="default: test; all, for data without splits",
    )
    parser.add_argument("--output", type=home_path, metavar="FILE", help="write the metrics as JSON")
    parser.add_argument(
        "--at-least",
        nargs="+",
        action="extend",
        default=[],
        metavar="METRIC=NUMBER",
        help="floors: acc=0.95 f1=0.9; exit status 1 below one of them",
    )
    parser.add_argument("--trust", action="store_true", help=HELP)
    given = parser.read(argv)
    given.overrides = check_overrides(given.overrides, line=TypedLine("evaluate", (given.run,)))

    from finetune.atomic_files import write_json
    from finetune.inference.floors import read_floors, shortfalls

    floors = read_floors(given.at_least)
    tested, classifier, split = evaluate_run(given.run, given.overrides, split=given.split, trust=given.trust)
    metrics = tested.metrics
    print(f"{counted(tested.images, 'image')} ({split}): {metrics.in_words()}, calibration error {metrics.ece:.4f}")
    width = max(len(name) for name in classifier.classes)
    for name, recall in zip(classifier.classes, metrics.recall, strict=True):
        print(f"  {name:{width}}  recall {'-' if name in tested.missing_classes else f'{recall:.4f}'}")
    if tested.missing_classes:
        print(
            f"classes without an image: {', '.join(tested.missing_classes)}. Each that was predicted all the same counts as 0 in "
            "the macro F1, which is a mean over the classes"
        )
    if given.output:
        write_json(given.output, tested.to_plain())
    if below := shortfalls(floors, metrics.scalars()):
        raise RunError(f"--at-least: not reached on {counted(tested.images, 'image')} ({split}). {'; '.join(below)}.")
    return 0


def _default_split(source: "Source", *, other_data: bool) -> str:
    """Return ``test``, or ``all`` for other data that lies in a single split."""
    filled = [split for split, images in source.index.images().items() if images]
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
        overrides: Words that name other data, or change the run's own.
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
    with _naming_own_config(run, overrides):
        if not other_data:
            check_data_is_there(config, command=f"finetune evaluate {shlex.quote(run)}")
        listing = check_paths(config, use="test" if other_data else "train")
    classifier = load_bundle(run, modules=modules_of(run, trust=trust)) if load is None else load()
    config.input.channels = classifier.input_spec.channels
    read_alike(config, overrides, decode_options_of(run))
    source = _moved_data(run, config, overrides)
    if source is None:
        with _naming_own_config(run, overrides):
            # all of other data is tested, unless it has its own splits
            source = build_source(config, use="test" if other_data else "train", listing=listing)
    split = split or _default_split(source, other_data=other_data)
    rows = np.arange(len(source.index)) if split == "all" else source.index.rows(split)
    if not len(rows):
        raise UserError(f"--split {split}: has no images. Counts: {source.index.images()}. Choose another split.")
    place = None if config.data.source == "python" else source_kind(config.data.source).place
    name = "data" if place is None else f"data.{place}={getattr(config.data, place)!r}"
    with evaluating(classifier):
        tested = evaluate(classifier, source, rows, num_workers=config.data.num_workers, name=name)
    return tested, classifier, split


@contextmanager
def _naming_own_config(run: str, overrides: Sequence[str]) -> Iterator[None]:
    """Name the run's configuration file if one of its values is wrong, because the user did not type that value.

    Raises:
        UserError: A value is wrong.
    """
    try:
        yield
    except UserError as error:
        own = Path(run).expanduser() / CONFIG
        if overrides or str(own) in str(error):
            raise
        raise UserError(f"{own}: {error}") from error


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


def read_alike(config: Config, overrides: Sequence[str], options: "DecodeOptions") -> None:
    """Set how image files are read to what training recorded, unless an override says otherwise."""
    recorded = options.to_plain()
    for key in set(recorded) & set(source_kind(config.data.source).settings):
        if not any(word.startswith(f"data.{key}=") for word in overrides):
            setattr(config.data, key, recorded[key])


def data_config(run: str, overrides: Sequence[str]) -> Config:
    """Return the configuration of the data: the run's own, changed by overrides, or a new one.

    Raises:
        UserError: There is no such folder or no configuration in it, or an override is wrong.
    """
    folder = Path(run).expanduser()
    if not folder.exists():
        raise UserError(f"RUN='{run}': no such folder.")
    own = folder / CONFIG
    if any(word.startswith("data=") for word in overrides):
        return compose(overrides)
    if not os.path.lexists(own):
        raise UserError(f"RUN='{run}': a bundle does not record where its data is. Give data=DIR.")
    from finetune.build.data import with_loaders_that_fit

    saved = with_loaders_that_fit(from_yaml(inside(own.parent, own.name)), saved_in=own)
    return changed(saved, check_overrides(overrides)) if overrides else saved

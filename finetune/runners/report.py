"""Write the report page of a run: at its end, or later again from its files."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.config.schema import Config
from finetune.errors import UserError, first_line
from finetune.file_schema import EVALUATION
from finetune.runners.bundle_modules import modules_of
from finetune.terminal_log import show

if TYPE_CHECKING:
    from torch import nn

    from finetune.data.image_source import Source
    from finetune.data.transforms import View


def report_finished(
    run_dir: Path,
    source: "Source | None",
    *,
    trust: bool,
    views: "Mapping[str, View] | None" = None,
    given: "Mapping[str, nn.Module] | None" = None,
) -> None:
    """Write the page of a run that has just finished; an error here is printed and leaves the run intact.

    Args:
        run_dir: Run folder.
        source: Images of the run; None leaves pictures out.
        trust: Whether to build classes that the run names.
        views: Training views that the run made itself, by name.
        given: User-supplied modules given as objects, by part.
    """
    from finetune.report.run_page import write_report

    given = given or {}
    try:
        modules = {**modules_of(run_dir, trust=trust, given=given), **given}
        show(f"report: {write_report(run_dir, source, modules=modules, views=views)}")
    except Exception as error:
        show(
            f"report: could not be written ({first_line(error, with_type=True)}). The run itself is complete. "
            f"Try again: finetune report {shlex.quote(str(run_dir))}"
        )


def report_from_files(run_dir: Path, config: Config, *, trust: bool = False) -> Path:
    """Write the page of a finished run again, with images if the data can be read.

    Args:
        run_dir: Run folder.
        config: Configuration of its data.
        trust: Whether to build user-supplied classes that the run names.

    Raises:
        UserError: A file is missing or damaged, or the files do not belong together.
    """
    from finetune.build.data import build_source
    from finetune.build.paths import check_paths
    from finetune.report.run_page import write_report

    modules = modules_of(run_dir, trust=trust)
    source: Source | None = None
    why = ""
    try:
        source = build_source(config, listing=check_paths(config))
    except UserError as error:
        why = f"No images are shown. {' '.join(line.strip() for line in str(error).splitlines()[:3])}"
        show(why)
    try:
        views = _list_views(run_dir, config, modules, trust=trust)
        return write_report(run_dir, source, why_no_images=why, modules=modules, views=views)
    except (KeyError, IndexError, TypeError, AttributeError, ZeroDivisionError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        # each file is valid by itself, but the files are not from one run
        raise UserError(
            f"{run_dir}: its files (results.json, plan.json, metrics.csv, predictions.csv, {EVALUATION}, model) do not belong "
            f"together. {type(error).__name__}: {error}. Restore them from a backup, if you have one; else train again."
        ) from error


def _list_views(run_dir: Path, config: Config, modules: "Mapping[str, nn.Module]", *, trust: bool) -> "dict[str, View]":
    """Return the training views that lists of operations make; none where they need ``--trust`` and it was not given."""
    from finetune.build.augment_lists import build_augment_lists, named_lists
    from finetune.bundle import load_bundle
    from finetune.data.transforms import train_view

    if not named_lists(config):
        return {}
    spec = load_bundle(run_dir, modules=modules).input_spec
    try:
        lists = build_augment_lists(config, spec=spec, trusted=trust)
    except UserError as error:
        show(f"No training views are shown. {first_line(error)}")
        return {}
    return {text: train_view(spec, augment=text, lists=lists) for text in lists}

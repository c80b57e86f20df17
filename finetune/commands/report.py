"""``finetune report``: write the report page of a run again."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune.commands.options import Arguments
from finetune.commands.own_modules import HELP, modules_of
from finetune.config.overrides import moved_data
from finetune.config.schema import Config
from finetune.errors import UserError, first_line
from finetune.file_schema import EVALUATION

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from finetune.data.image_source import Source
    from finetune.data.transforms import View

ABOUT = """\
Write report.html in a run's folder again, from the files of the run; nothing is trained or tested.
Images are shown if the run's data is still there. If it has moved, give its folder."""


def run(argv: Sequence[str]) -> int:
    """Run ``finetune report`` and return the exit status."""
    parser = Arguments("report", ABOUT, ending="RUN is a run folder.")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("overrides", metavar="DIR", nargs="*", help="where the data is now; also data.root=DIR")
    parser.add_argument("--trust", action="store_true", help=HELP)
    given = parser.read(argv)

    from finetune.commands.evaluate import data_config
    from finetune.report.run_files import check_run

    folder = check_run(given.run)
    overrides = list(map(moved_data, given.overrides))
    page = write_from_files(folder, data_config(given.run, overrides), trust=given.trust)
    print(f"report: {page}")
    return 0


def write_from_files(run_dir: "Path", config: Config, *, trust: bool = False) -> "Path":
    """Write the page, with images if the data can be read."""
    from finetune.build.data import build_source
    from finetune.build.paths import check_paths
    from finetune.report.run_page import write_report

    modules = modules_of(run_dir, trust=trust)
    source: Source | None = None
    why = ""
    try:
        source = build_source(config, listing=check_paths(config))
    except UserError as error:
        why = f"No images are shown. {first_line(error)}"
        print(why)
    try:
        views = _list_views(run_dir, config, modules, trust=trust)
        return write_report(run_dir, source, why_no_images=why, modules=modules, views=views)
    except (KeyError, IndexError, TypeError, AttributeError, ZeroDivisionError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        # each file is valid by itself, but the files are not from one run
        raise UserError(
            f"{run_dir}: its files (results.json, plan.json, metrics.csv, predictions.csv, {EVALUATION}, model) do not belong "
            f"together. {type(error).__name__}: {error}. Put copies of them back, if there are some; else train again."
        ) from error


def _list_views(
    run_dir: "Path", config: Config, modules: "Mapping[str, nn.Module]", *, trust: bool
) -> "dict[str, View]":
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
        print(f"No training views are shown. {first_line(error)}")
        return {}
    return {text: train_view(spec, augment=text, lists=lists) for text in lists}

"""``finetune report``: write the report page of a run again."""

from collections.abc import Sequence

from finetune.commands.options import TRUST, Arguments
from finetune.config import check_overrides
from finetune.config.overrides import moved_data
from finetune.runners.report import report_from_files
from finetune.runners.run_data import data_config

ABOUT = """\
Write report.html in a run's folder again, from the files of the run; nothing is trained or tested.
Images are shown if the run's data is still there. If it has moved, give its folder."""


def run(argv: Sequence[str]) -> int:
    """Run ``finetune report`` and return the exit status."""
    parser = Arguments("report", ABOUT, ending="RUN is a run folder.")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("overrides", metavar="DIR", nargs="*", help="where the data is now; also data.root=DIR")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    given = parser.read(argv)

    from finetune.report.run_files import check_run

    folder = check_run(given.run)
    overrides = check_overrides(list(map(moved_data, given.overrides)))
    page = report_from_files(folder, data_config(given.run, overrides), trust=given.trust)
    print(f"report: {page}")
    return 0

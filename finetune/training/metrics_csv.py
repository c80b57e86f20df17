"""Write ``metrics.csv``: one row an epoch over all phases, the whole file atomically each time."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from finetune.atomic_files import write_text
from finetune.distributed import is_rank_zero
from finetune.results import EpochRow


class MetricsCsv:
    """Collects the rows of all phases.

    Rows live in the phase's checkpoint and are not read back from the file: epochs that are repeated after an
    interruption do not appear twice.

    Args:
        path: CSV file to write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before: list[EpochRow] = []

    def add(self, rows: Sequence[EpochRow]) -> None:
        """Take the rows of a phase that is over."""
        self._before += rows
        self.write([])

    def write(self, rows: Sequence[EpochRow]) -> None:
        """Write the file with the rows of the current phase behind those of the phases before; the first process does."""
        if not is_rank_zero():
            return
        everything = [row.to_plain() for row in (*self._before, *rows)]
        columns = list(dict.fromkeys(name for row in everything for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(everything)
        write_text(self._path, text.getvalue())

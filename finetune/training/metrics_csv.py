"""Write ``metrics.csv``: one row per epoch over all phases; every write replaces the whole file atomically."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from finetune.atomic_files import write_text
from finetune.distributed import is_rank_zero
from finetune.results import EpochRow


class MetricsCsv:
    """Collects the rows of all phases.

    Rows are stored in the phase's checkpoint and never read back from the file, so epochs that are repeated after an
    interruption appear once.

    Args:
        path: CSV file to write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before: list[EpochRow] = []

    def add(self, rows: Sequence[EpochRow]) -> None:
        """Append the rows of a finished phase, and rewrite the file."""
        self._before += rows
        self.write([])

    def write(self, rows: Sequence[EpochRow]) -> None:
        """Rewrite the file: the rows of finished phases, then those of the current one. Only rank 0 writes."""
        if not is_rank_zero():
            return
        everything = [row.to_plain() for row in (*self._before, *rows)]
        columns = list(dict.fromkeys(name for row in everything for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(everything)
        write_text(self._path, text.getvalue())

"""Search results as rows of a table, a file and a page."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from finetune.atomic_files import write_text
from finetune.errors import UserError
from finetune.terminal import csv_cell, encodable, printable

OUTPUTS = (".csv", ".json")


@dataclass(frozen=True, kw_only=True)
class SearchHit:
    """One neighbour of a query, or one member of a group of near-duplicates.

    Args:
        query: Query image, or number of the group.
        rank: Rank, from 1.
        path: Path of the neighbour or member.
        label: Class of the image; empty for none.
        split: Split of the image; empty for none.
        distance: Distance from the query, or from the nearest other member.
    """

    query: str
    rank: int
    path: str
    label: str
    split: str
    distance: float


def check_hits_output(output: Path | None) -> None:
    """Check that results can be written to ``output``.

    Raises:
        UserError: The suffix is unknown, or the path is a folder.
    """
    if output is None:
        return
    if output.suffix not in OUTPUTS:
        raise UserError(f"--output {output}: the suffix chooses the form. Use one of {', '.join(OUTPUTS)}.")
    if output.is_dir():
        raise UserError(f"--output {output}: must be a file. It is a folder.")


def write_hits(rows: Sequence[SearchHit], output: Path) -> None:
    """Write all rows atomically as CSV or JSON."""
    if output.suffix == ".json":
        values = [
            {key: encodable(value) if isinstance(value, str) else value for key, value in asdict(row).items()}
            for row in rows
        ]
        write_text(output, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SearchHit.__dataclass_fields__)
    for row in rows:
        cells = asdict(row).values()
        writer.writerow([csv_cell(cell) if isinstance(cell, str) else cell for cell in cells])
    write_text(output, text.getvalue())


def format_hits(rows: Sequence[SearchHit], *, most: int) -> str:
    """Format rows below their query, at most ``most`` per query."""
    lines: list[str] = []
    query, shown, left_out = None, 0, 0
    for row in rows:
        if row.query != query:
            lines += [f"  and {left_out} more"] if left_out else []
            lines.append(printable(row.query))
            query, shown, left_out = row.query, 0, 0
        if shown == most:
            left_out += 1
            continue
        shown += 1
        label = f"  {printable(row.label)}" if row.label else ""
        split = f"  [{row.split}]" if row.split else ""
        lines.append(f"  {row.rank:3}  {row.distance:.6f}  {printable(row.path)}{label}{split}")
    lines += [f"  and {left_out} more"] if left_out else []
    return "\n".join(lines)

"""A small table of columns, for results where pandas is not installed; with pandas they are its data frames."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune.errors import did_you_mean
from finetune.html import html_table


class Table:
    """Columns of equal length, by name.

        table["predicted"]        # a column, as a list
        table.rows()              # the rows, as dicts
        table.to_pandas()         # a data frame, where pandas is installed

    Args:
        columns: Values of each column.
    """

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self._columns = {name: list(values) for name, values in columns.items()}
        assert len({len(values) for values in self._columns.values()}) <= 1, "columns must be equally long"

    @property
    def columns(self) -> list[str]:
        """Return the names of the columns."""
        return list(self._columns)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()), []))

    def __getitem__(self, name: str) -> list[Any]:
        if name not in self._columns:
            raise KeyError(
                f"{name!r}: no such column. Columns: {', '.join(self.columns)}.{did_you_mean(name, self.columns)}"
            )
        return list(self._columns[name])

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each row by the names of its columns."""
        for values in zip(*self._columns.values(), strict=True):
            yield dict(zip(self._columns, values, strict=True))

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the columns as plain lists."""
        return {name: list(values) for name, values in self._columns.items()}

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame; pandas must be installed."""
        import pandas

        return pandas.DataFrame(self._columns)

    def __repr__(self) -> str:
        rows = [self.columns, *([_short(value) for value in row.values()] for row in self.rows())]
        shown = rows[:21]
        widths = [max(len(row[at]) for row in shown) for at in range(len(self.columns))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown
        ]
        return "\n".join([*lines, *([f"... {len(rows) - 21:,} more rows"] if len(rows) > 21 else [])])

    def _repr_html_(self) -> str:
        return html_table(self.columns, [list(row.values()) for row in self.rows()])


def frame(columns: Mapping[str, Sequence[Any]], *, shown_first: tuple[str, ...] = ()) -> Any:
    """Return columns as a pandas DataFrame where pandas is installed, else as a :class:`Table`.

    Args:
        columns: Values of each column.
        shown_first: Columns that a data frame shows where it cannot show all.
    """
    try:
        import pandas  # noqa: F401  # what the frame is made of
    except ModuleNotFoundError:
        return Table(columns)
    from finetune.prediction_frame import prediction_frame

    return prediction_frame(dict(columns), shown_first=shown_first)


def _short(value: object) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)

"""A pandas data frame that shows its answers, however many classes follow them; imported where pandas is installed."""

from typing import Any, ClassVar

import pandas

from finetune.errors import shortened

# columns of a table on a page, as pandas has them in a notebook
_MOST_COLUMNS = 20
# of a column of a terminal, in characters
_PATH_WIDTH = 36


class PredictionFrame(pandas.DataFrame):  # type: ignore[misc]  # pandas has no types here
    """Predictions: a data frame in every way but what it shows.

    pandas hides the columns in the middle of a wide table; here those are the answer, and the probability of each class
    stands behind them.
    """

    # attributes that pandas copies to a part of the frame
    _metadata: ClassVar[list[str]] = ["shown_first"]
    shown_first: tuple[str, ...] = ()

    @property
    def _constructor(self) -> Any:
        return PredictionFrame

    def __repr__(self) -> str:
        """Return the answers as text, and the names of the other columns."""
        # long paths are cut, so that the answers beside them fit a terminal
        with pandas.option_context(
            "display.max_colwidth", _PATH_WIDTH, "display.max_columns", None, "display.expand_frame_repr", False
        ):
            return "\n".join([repr(self._answers()), *self._hidden()])

    def _repr_html_(self) -> str:
        most = pandas.get_option("display.max_columns")
        # None is all of them; 0 fits a terminal, whose width a page has not
        if most is None or len(self.columns) <= (most or _MOST_COLUMNS):
            whole: str = pandas.DataFrame(self)._repr_html_()
            return whole
        return "\n".join([self._answers()._repr_html_(), *(f"<p>{line}</p>" for line in self._hidden())])

    def _shown(self) -> list[str]:
        if not self.shown_first or not set(self.shown_first) <= set(self.columns):
            return list(self.columns)
        return [*self.shown_first, *(["error"] if "error" in self.columns and any(self["error"]) else [])]

    def _answers(self) -> Any:
        return pandas.DataFrame(self)[self._shown()]

    def _hidden(self) -> list[str]:
        others = [str(name) for name in self.columns if name not in self._shown()]
        return [f"columns not shown: {shortened(others, 5)}"] if others else []


def prediction_frame(columns: Any, *, shown_first: tuple[str, ...]) -> PredictionFrame:
    """Return columns as a data frame that shows some of them first.

    Args:
        columns: Values of each column.
        shown_first: Names of the columns to show.
    """
    table = PredictionFrame(columns)
    table.shown_first = shown_first
    return table

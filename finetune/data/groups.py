"""Groups: images that belong together, such as those of one patient, plate, camera or video; no split divides them."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import regex

from finetune.data.path_table import PathTable
from finetune.errors import UserError, shortened

# number of an image that belongs to no group
ALONE = -1
# processor time for all paths: a pattern from a foreign run may take years, which the standard library cannot stop
_SECONDS, _SECONDS_PER_PATH = 10.0, 1e-4


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The group of each sample.

    Args:
        numbers: Group of each sample, int64 (N,): a position in ``names``, or ``ALONE``.
        names: Names of the groups, in the order of their first sample.
        setting: Setting that defines them, for messages: ``data.group_column='patient'``.
    """

    numbers: npt.NDArray[np.int64]
    names: tuple[str, ...]
    setting: str

    def take(self, rows: npt.NDArray[np.int64]) -> "Groups":
        """Return the groups of some samples, in their order; the names stay."""
        return Groups(numbers=self.numbers[rows], names=self.names, setting=self.setting)

    def name(self, row: int) -> str:
        """Return the name of one sample's group; empty if it belongs to none."""
        number = int(self.numbers[row])
        return "" if number == ALONE else self.names[number]

    def count(self, rows: npt.NDArray[np.int64]) -> int:
        """Count the groups that some samples belong to; a sample without a group counts as one."""
        numbers = self.numbers[rows]
        alone = numbers == ALONE
        return len(np.unique(numbers[~alone])) + int(alone.sum())


def groups_of_cells(cells: Iterable[object], *, setting: str) -> Groups:
    """Group samples by equal cells of a column; samples with an empty cell belong to no group.

    >>> groups_of_cells(["b", "a", "b", ""], setting="data.group_column='patient'").numbers.tolist()
    [0, 1, 0, -1]
    """
    position: dict[str, int] = {}
    numbers = []
    for cell in cells:
        name = "" if cell is None or cell != cell else str(cell).strip()  # a missing number is not equal to itself
        numbers.append(position.setdefault(name, len(position)) if name else ALONE)
    return Groups(numbers=np.array(numbers, np.int64), names=tuple(position), setting=setting)


def groups_of_paths(paths: PathTable, pattern: str) -> Groups:
    """Group files by what a regular expression matches in their paths.

    Args:
        paths: Paths of the files, relative to the folder of the data, with ``/`` between folders.
        pattern: Regular expression, searched in each path. The text of its group named ``group`` is the key, else that of
            its first group, else the whole match.

    Raises:
        UserError: The pattern is not a regular expression, takes very long, or matches no path.
    """
    setting = f"data.group_pattern={pattern!r}"
    expression = compile_pattern(pattern)
    key: int | str = "group" if "group" in expression.groupindex else min(expression.groups, 1)
    cells: list[str] = []
    allowed = _SECONDS + _SECONDS_PER_PATH * len(paths)
    began = time.process_time()
    try:
        for row in range(len(paths)):
            left = max(allowed - (time.process_time() - began), 1e-6)
            match = expression.search(paths[row].replace("\\", "/"), timeout=left)
            cells.append((match[key] or "") if match else "")
    except TimeoutError:
        raise UserError(
            f"{setting}: must match a path quickly. It took more than {allowed:.0f} s of computing, to {paths[len(cells)]!r}. "
            "Repetitions within repetitions take exponential time: write (a+) in place of (a+)+."
        ) from None
    if not any(cells):
        first = shortened([repr(paths[row]) for row in range(min(len(paths), 3))])
        raise UserError(f"{setting}: must match paths relative to the data folder. It matches none, such as {first}.")
    return groups_of_cells(cells, setting=setting)


def compile_pattern(pattern: str) -> "regex.Pattern[str]":
    """Compile ``data.group_pattern``.

    Raises:
        UserError: It is not a regular expression.
    """
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise UserError(
            f"data.group_pattern={pattern!r}: must be a regular expression. {str(error)[:1].upper()}{str(error)[1:]}. "
            r"Use for example '(patient\d+)'."
        ) from None

"""Guesses from file names which images belong together, such as the frames of one video, where no setting says so."""

import os
import re
from dataclasses import dataclass

import numpy as np

from finetune.data.groups import Groups, groups_of_cells
from finetune.data.index import Index
from finetune.data.path_table import PathTable

# a guess needs groups of at least this many images at the median, over at least this share of all images
_LEAST_IMAGES = 3
_LEAST_SHARE = 0.8
# and at least this many groups per class, because names and folders often repeat the class
_TIMES_CLASSES = 2
# images whose names are examined: enough to decide, and fast for a million
_EXAMINED = 20_000


@dataclass(frozen=True, kw_only=True)
class _Habit:
    """A way in which people name files that belong together.

    Args:
        pattern: Regular expression for ``data.group_pattern``, searched in the path relative to the folder.
        words: Description of a group.
    """

    pattern: str
    words: str


# the name must end in the number of the picture, apart from what is before it: `4711.jpg` and `IMG0012.jpg` only count.
# `cat_12.jpg` matches as well, but then there are no more groups than classes
_HABITS = (
    _Habit(pattern=r"(?P<group>[^/]+)\.rf\.[0-9a-fA-F]{8,}\.\w+$", words="versions of one picture"),
    _Habit(
        pattern=r"(?:^|/)(?P<group>[^/]+?)(?:[-_. (]+(?:[A-Za-z]+[-_. ]?)?|(?<=\d)[A-Za-z]+[-_. ]?)\d+\)?\.\w+$",
        words="numbered frames of one series",
    ),
    _Habit(pattern=r"(?P<group>[^/]+)/[^/]+$", words="pictures of one folder below a class"),
)


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A likely grouping.

    Args:
        groups: Group of each sample.
        pattern: Value for ``data.group_pattern`` that gives these groups.
        words: Description of a group.
    """

    groups: Groups
    pattern: str
    words: str


def guess_groups(index: Index) -> Guess | None:
    """Return the most likely grouping of images by their paths, or None if none is likely.

    It is likely if most images lie in groups of several, and there are clearly more groups than classes.
    """
    step = -(-max(len(index), 1) // _EXAMINED)
    for habit in _HABITS:
        some = _groups_of(index.paths, habit.pattern, range(0, len(index), step))
        # only coverage is judged by some of the names, because they show smaller groups than all do
        if (some.numbers >= 0).mean() < _LEAST_SHARE:
            continue
        groups = _groups_of(index.paths, habit.pattern, range(len(index)))
        sizes = np.bincount(groups.numbers[groups.numbers >= 0], minlength=len(groups.names))
        several = sizes[sizes >= 2].sum() / max(len(index), 1)
        if (
            len(sizes) >= _TIMES_CLASSES * len(index.classes)
            and np.median(sizes) >= _LEAST_IMAGES
            and several >= _LEAST_SHARE
        ):
            return Guess(groups=groups, pattern=habit.pattern, words=habit.words)
    return None


def _groups_of(paths: PathTable, pattern: str, rows: range) -> Groups:
    expression = re.compile(pattern)
    cells = []
    for row in rows:
        match = expression.search(paths[row].replace(os.sep, "/"))
        cells.append(match["group"] if match else "")
    return groups_of_cells(cells, setting="")

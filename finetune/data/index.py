"""The table of samples: path, target, split and content hash of each image."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from finetune.data.groups import Groups
from finetune.data.path_table import PathTable

SPLITS = ("train", "val", "test")

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, kw_only=True)
class DataProblem:
    """Something about a data set, noticed as it was listed, that the user should know.

    Args:
        kind: Stable name, such as ``folders beside the splits``.
        severity: ``error`` forbids training; ``warning`` may make results wrong; ``note`` is for information.
        text: Description, a clause without a full stop.
        remedy: What to do about it, one or more sentences.
        files: Files or names concerned.
    """

    kind: str
    severity: Severity
    text: str
    remedy: str
    files: tuple[str, ...] = ()


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names in natural order: numbers by value, letters without regard to case.

    >>> natural_order(["10", "2", "b1", "1", "B10", "b2"])
    ['1', '2', '10', 'b1', 'b2', 'B10']
    """

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        parts = re.findall(r"[0-9]+|[^0-9]+", name)
        return [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part.casefold()) for part in parts], name

    return sorted(set(names), key=key)


def distinct_names(names: Sequence[str]) -> list[str]:
    """Return the names of a data set's classes; those that several classes share are followed by the class number.

    >>> distinct_names(["crane", "owl", "crane"])
    ['crane (0)', 'owl', 'crane (2)']
    """
    times = Counter(names)
    return [f"{name} ({number})" if times[name] > 1 else name for number, name in enumerate(names)]


class Index:
    """The samples of a data set, as compact arrays that worker processes share.

    Args:
        classes: Class names, one list for all splits; a target is a position in it.
        root: Folder that relative paths start from; empty where the samples are not files.
        paths: Path of each sample relative to ``root``, or absolute, or a stable name such as ``digits/0007``.
        targets: Class of each sample, int64 (N,); in multi-label data uint8 (N, K) of zeros and ones.
        splits: Split of each sample as a position in ``SPLITS``, int8 (N,).
        content: Content hash of each sample, 128 bits as uint64 (N, 2).
        skipped: Path and reason of each file that was left out on purpose.
        notes: Sentences that the user should see before training.
        ignored: Kinds of files beside the images that were not read, and their numbers: ``{"*.txt": 3}``. None for
            none.
        groups: Group of each sample; None where the data has no groups.
        problems: What was noticed as the data was listed.
    """

    def __init__(
        self,
        *,
        classes: Sequence[str],
        root: str,
        paths: PathTable,
        targets: npt.NDArray[np.int64] | npt.NDArray[np.uint8],
        splits: npt.NDArray[np.int8],
        content: npt.NDArray[np.uint64],
        skipped: Sequence[tuple[str, str]] = (),
        notes: Sequence[str] = (),
        ignored: Mapping[str, int] | None = None,
        groups: Groups | None = None,
        problems: Sequence[DataProblem] = (),
    ) -> None:
        assert len(paths) == len(targets) == len(splits) == len(content), "the columns must be equally long"
        assert content.shape[1:] == (2,), "content is 128 bits a sample"
        self.classes = tuple(classes)
        self.root = root
        self.paths = paths
        self.targets = targets
        self.splits = splits
        self.content = content
        self.skipped = tuple(skipped)
        self.notes = tuple(notes)
        self.ignored = dict(ignored or {})
        self.groups = groups
        self.problems = tuple(problems)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def multi_label(self) -> bool:
        """Tell whether an image may show several classes or none; ``targets`` is then (N, K)."""
        return self.targets.ndim == 2

    def path(self, row: int) -> str:
        """Return the absolute path of a file, or the stable name of a sample that is not a file."""
        return os.path.join(self.root, self.paths[row])

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """Return the row numbers of one split, ascending."""
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def take(self, rows: npt.NDArray[np.int64]) -> "Index":
        """Return the index of some rows, in their order; classes, notes and the list of skipped files stay."""
        return Index(
            classes=self.classes,
            root=self.root,
            paths=self.paths.take(rows),
            targets=self.targets[rows],
            splits=self.splits[rows],
            content=self.content[rows],
            skipped=self.skipped,
            notes=self.notes,
            ignored=self.ignored,
            groups=self.groups and self.groups.take(rows),
            problems=self.problems,
        )

    def split_sizes(self) -> dict[str, int]:
        """Count the samples per split; in multi-label data this is not the sum of :meth:`counts`."""
        return {split: len(self.rows(split)) for split in SPLITS}

    def counts(self) -> dict[str, list[int]]:
        """Count the samples per split and class, in the order of ``classes``."""
        return {split: self._count(self.targets[self.rows(split)]) for split in SPLITS}

    def _count(self, targets: npt.NDArray[np.int64] | npt.NDArray[np.uint8]) -> list[int]:
        if self.multi_label:
            counted: list[int] = targets.sum(axis=0, dtype=np.int64).tolist()
        else:
            counted = np.bincount(targets, minlength=len(self.classes)).tolist()
        return counted

    def fingerprint(self) -> str:
        """Return the hex digest of everything that decides what a run sees: classes, paths, targets, splits, contents.

        The folder above the data is not part of it, so a data set keeps its fingerprint when it is moved as a whole.
        """
        digest = hashlib.blake2b(digest_size=16)
        head = {"classes": self.classes, "folders": self.paths.folders, "shape": self.targets.shape}
        digest.update(json.dumps(head).encode())
        for column in (
            self.paths.folder_ids,
            self.paths.ends,
            self.paths.names,
            self.targets,
            self.splits,
            self.content,
        ):
            digest.update(column.tobytes())
        return digest.hexdigest()

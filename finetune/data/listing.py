"""The listing of a data set before any file is opened: paths, classes, and the splits that the data names itself."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from finetune.data.groups import Groups, groups_of_paths
from finetune.data.index import SPLITS, DataProblem, Index, natural_order
from finetune.data.path_table import PathTable, concatenate
from finetune.errors import UserError, shortened

UNASSIGNED = -1

# purpose of a data set: `train` refuses one that cannot be trained on; `audit` reports why; `test` makes no splits, and tests
# everything that the data puts in no split
Use = Literal["train", "audit", "test"]

# rows per part: a million targets are examined in parts, so that the check needs almost no memory
_CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Samples before any file is opened.

    Args:
        origin: Setting that names the data, for messages: ``data.root='pets'``.
        root: Absolute folder that ``paths`` start from.
        classes: Class names in natural order.
        paths: Path of each sample.
        targets: Class of each sample, int64 (N,); in multi-label data uint8 (N, K).
        splits: Split of each sample, int8 (N,): a position in ``SPLITS``, or ``UNASSIGNED`` if the data gives none.
        given: Splits that the data names; the others are made from its training samples.
        ignored: Kinds of files that were left out, and their numbers: ``{"*.txt": 3}``.
        groups: Group of each sample; generated splits never divide a group. None for no groups.
        problems: Problems noticed while the data was listed.
        instead: Contents of the folders of classes that have no image: ``{"owl": "3 x *.heic"}``.
        use: Purpose of the data set.
    """

    origin: str
    root: str
    classes: tuple[str, ...]
    paths: PathTable
    targets: npt.NDArray[np.int64] | npt.NDArray[np.uint8]
    splits: npt.NDArray[np.int8]
    given: tuple[str, ...] = ()
    ignored: dict[str, int] = field(default_factory=dict)
    groups: Groups | None = None
    problems: tuple[DataProblem, ...] = ()
    instead: dict[str, str] = field(default_factory=dict)
    use: Use = "train"

    def __len__(self) -> int:
        return len(self.paths)

    def to_index(
        self,
        *,
        splits: npt.NDArray[np.int8],
        content: npt.NDArray[np.uint64],
        skipped: Sequence[tuple[str, str]] = (),
        notes: Sequence[str] = (),
    ) -> Index:
        """Return the index of these samples, once their splits are assigned and their files are hashed.

        Args:
            splits: Split of each sample as a position in ``SPLITS``, int8 (N,).
            content: Content hash of each sample, uint64 (N, 2).
            skipped: Path and reason of each file that was dropped from the listing.
            notes: Sentences that the user should see before training.
        """
        return Index(
            classes=self.classes,
            root=self.root,
            paths=self.paths,
            targets=self.targets,
            splits=splits,
            content=content,
            skipped=skipped,
            notes=notes,
            ignored=self.ignored,
            groups=self.groups,
            problems=self.problems,
        )


def merge(listings: Sequence[Listing]) -> Listing:
    """Merge several listings into one data set; classes are aligned by name.

    Raises:
        UserError: The listings do not name the same splits, or lie on several drives of Windows.
    """
    if len(listings) == 1:
        return listings[0]
    if len({listing.given for listing in listings}) > 1:
        names_by_root = "; ".join(f"{listing.root}: {', '.join(listing.given) or 'none'}" for listing in listings)
        raise UserError(
            f"data.root: several folders must name the same splits. Found {names_by_root}. Give all of them the same splits."
        )
    classes = natural_order(name for listing in listings for name in listing.classes)
    position = {name: target for target, name in enumerate(classes)}
    roots = [listing.root for listing in listings]
    try:
        root = os.path.commonpath(roots)
    except ValueError:  # two drives of Windows
        raise UserError(
            f"data.root: several folders must lie on one drive. Found {', '.join(roots)}. Copy them onto one."
        ) from None
    ignored: Counter[str] = Counter()
    for listing in listings:
        ignored.update(listing.ignored)
    translate = [np.array([position[name] for name in listing.classes], np.int64) for listing in listings]
    return Listing(
        origin=f"data.root={roots}",
        root=root,
        classes=tuple(classes),
        paths=concatenate([(os.path.relpath(listing.root, root), listing.paths) for listing in listings]),
        targets=np.concatenate([table[listing.targets] for table, listing in zip(translate, listings, strict=True)]),
        splits=np.concatenate([listing.splits for listing in listings]),
        given=listings[0].given,
        ignored=dict(ignored),
        problems=tuple(problem for listing in listings for problem in listing.problems),
        instead={name: what for listing in listings for name, what in listing.instead.items()},
        use=listings[0].use,
    )


def check_classes(listing: Listing) -> Listing:
    """Return the listing if a model can be trained on it; a listing for an audit is returned with the reasons why not.

    Raises:
        UserError: Two classes have one name; or the listing is for training, and there are fewer than two classes, a class has
            no training image, or a class occurs only in val or test.
    """
    if repeated := sorted(name for name, times in Counter(listing.classes).items() if times > 1):
        raise UserError(
            f"{listing.origin}: every class must have a name of its own. Several are called {shortened(repeated)}. Rename them."
        )
    problems = [] if listing.use == "test" else list(_class_problems(listing))
    if problems and listing.use == "train":
        raise UserError(f"{listing.origin}: {problems[0].text}. {problems[0].remedy}")
    kinds = {problem.kind for problem in problems}
    kept = [problem for problem in listing.problems if problem.kind not in kinds]
    return replace(listing, problems=(*kept, *problems)) if problems else listing


def _class_problems(listing: Listing) -> Iterator[DataProblem]:
    in_train = _shown(listing, train=True)
    elsewhere = _shown(listing, train=False)
    without = [target for target in range(len(listing.classes)) if not in_train[target]]
    extra = [listing.classes[target] for target in without if elsewhere[target]]
    empty = [listing.classes[target] for target in without if not elsewhere[target]]
    if extra:
        yield DataProblem(
            kind="classes without a training image",
            severity="error",
            text=f"every class needs a training image. Only in val or test: {shortened(extra)}",
            remedy="Add training images, or remove these classes.",
            files=tuple(extra),
        )
    if empty:
        named = [f"{name} (holds {listing.instead[name]})" if listing.instead.get(name) else name for name in empty]
        yield DataProblem(
            kind="empty classes",
            severity="error",
            text=f"every class needs a training image. Classes without one: {shortened(named)}",
            remedy="Add images, or remove these classes.",
            files=tuple(named),
        )
    if len(listing.classes) < 2 and not any(one.kind == "one folder too high" for one in listing.problems):
        yield DataProblem(
            kind="one class",
            severity="error",
            text=f"must hold at least two classes. Found only {listing.classes[0]!r}",
            remedy="Give the folder above the classes, or add a class.",
        )


def _shown(listing: Listing, *, train: bool) -> npt.NDArray[np.bool_]:
    """Return which classes have an image in train or in no split yet, or, if not ``train``, in val or test: bool (K,)."""
    shown = np.zeros(len(listing.classes), np.bool_)
    for start in range(0, len(listing), _CHUNK):
        rows = slice(start, start + _CHUNK)
        targets = listing.targets[rows][(listing.splits[rows] <= SPLITS.index("train")) == train]
        if targets.ndim == 1:
            shown[targets] = True
        else:
            shown |= targets.any(axis=0)
    return shown


def without_rows(listing: Listing, rows: npt.NDArray[np.int64]) -> Listing:
    """Remove some rows from a listing; the classes stay, so that no class index shifts."""
    keep = np.setdiff1d(np.arange(len(listing)), rows)
    return replace(
        listing,
        paths=listing.paths.take(keep),
        targets=listing.targets[keep],
        splits=listing.splits[keep],
        groups=listing.groups and listing.groups.take(keep),
    )


def grouped_by_path(listing: Listing, pattern: str | None) -> Listing:
    """Return the listing with groups from a regular expression on its paths; unchanged without a pattern.

    Raises:
        UserError: The pattern is not a regular expression, or matches no path.
    """
    return replace(listing, groups=groups_of_paths(listing.paths, pattern)) if pattern else listing

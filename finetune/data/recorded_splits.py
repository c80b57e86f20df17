"""The split that a run recorded: its images are recognised in other data, by content or by path, and keep their splits."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from finetune.counted import counted
from finetune.data.groups import ALONE
from finetune.data.index import SPLITS
from finetune.data.listing import UNASSIGNED, Listing
from finetune.data.manifest import CONTENT
from finetune.data.table_file import open_rows
from finetune.errors import UserError, shortened
from finetune.near_paths import did_you_mean_path
from finetune.run_names import SPLIT
from finetune.safe_files import inside

# set of one split, as a number with a bit for each position in SPLITS -> that position
_ONE = {1 << position: position for position in range(len(SPLITS))}


@dataclass(frozen=True, kw_only=True)
class RecordedSplits:
    """The splits of a run's images.

    Args:
        run: The run, as the user named it.
        by_path: Position in ``SPLITS`` of each path.
        by_content: Splits of each content, by its 16 bytes, as bits; None in a run that recorded no contents.
        images: Number of images.
    """

    run: str
    by_path: Mapping[str, int]
    by_content: Mapping[bytes, int] | None
    images: int


@dataclass(frozen=True, kw_only=True)
class KeptSplits:
    """The splits that samples have from a run.

    Args:
        splits: Position in ``SPLITS`` of each sample, int8 (N,), or ``UNASSIGNED`` for a new one.
        note: What was recognised, in a sentence.
    """

    splits: npt.NDArray[np.int8]
    note: str


def read_recorded_splits(run: str) -> RecordedSplits:
    """Read ``split.csv`` of a run.

    Args:
        run: Run folder.

    Raises:
        UserError: There is no such folder, it has no split, or the table is damaged.
    """
    name = f"data.split_from={run!r}"
    if not os.path.isdir(run):
        raise UserError(
            f"{name}: no such folder.{did_you_mean_path(run, folders=True)} Give the run: data.split_from=RUN."
        )
    if not os.path.lexists(os.path.join(run, SPLIT)):
        raise UserError(f"{name}: has no split. A run folder has one in {SPLIT}; a bundle has none. Give the run.")
    file = inside(run, SPLIT)
    by_path: dict[str, int] = {}
    by_content: dict[bytes, int] = {}
    rows = 0
    with open_rows(file, name=str(file)) as table:
        has_content = CONTENT in table.columns
        chosen = ["path", "split", *([CONTENT] if has_content else [])]
        if missing := [column for column in chosen if table.columns.count(column) != 1]:
            raise UserError(f"{file}: damaged. It needs one column {missing[0]!r}. Restore a copy.")
        for path, split, *content in table.read([table.columns.index(column) for column in chosen]):
            if split not in SPLITS:
                raise UserError(f"{file}: damaged. {path!r} has the split {split!r}. Restore a copy.")
            position = SPLITS.index(split)
            by_path[path] = position
            if has_content:
                key = _key(content[0], path, file=str(file))
                by_content[key] = by_content.get(key, 0) | 1 << position
            rows += 1
    return RecordedSplits(run=run, by_path=by_path, by_content=by_content if has_content else None, images=rows)


def _key(text: str, path: str, *, file: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 16:
        raise UserError(f"{file}: damaged. The content of {path!r} must be 32 hexadecimal digits. Restore a copy.")
    return key


def keep_splits(listing: Listing, *, content: npt.NDArray[np.uint64], recorded: RecordedSplits) -> KeptSplits:
    """Return the splits that a run recorded for these samples; new images of its groups, and copies of them, join them.

    A sample is recognised by its content, wherever it lies now, and else by its path.

    Args:
        listing: The samples.
        content: Content hashes of the samples, uint64 (N, 2).
        recorded: Splits of the run.

    Raises:
        UserError: The data puts an image into another split than the run, or images belong together that the run has in two
            splits; or neither content nor path can tell which images the run had.
    """
    name = f"data.split_from={recorded.run!r}"
    if recorded.by_content is None and not listing.root:
        raise UserError(
            f"{name}: was made by an earlier version, which recorded no contents, and images that are no files have no other "
            "identity. Train it again."
        )
    splits = np.full(len(listing), UNASSIGNED, np.int8)
    by_path, twice = 0, []
    keys = np.ascontiguousarray(content).view(np.uint8).reshape(len(content), 16)
    for row in range(len(listing)):
        key = keys[row].tobytes()
        bits = 0 if recorded.by_content is None else recorded.by_content.get(key, 0)
        there = recorded.by_path.get(os.path.join(listing.root, listing.paths[row])) if listing.root else None
        if not bits:
            if there is not None:
                splits[row] = there
                by_path += 1
            continue
        if bits in _ONE:
            splits[row] = _ONE[bits]
        elif there is not None and bits >> there & 1:
            splits[row] = there
        elif listing.splits[row] != UNASSIGNED and bits >> int(listing.splits[row]) & 1:
            splits[row] = listing.splits[row]
        else:
            twice.append(listing.paths[row])
    if twice:
        raise UserError(
            f"{name}: the run has copies of one image in two splits, so these have no split of their own: {shortened(twice)}. "
            "Remove them, or put each image back where it was."
        )
    _refuse_other_splits(listing, splits, name=name)
    recognised = splits != UNASSIGNED
    joined = _joined_to_groups(listing, content, splits, name=name)
    return KeptSplits(
        splits=joined,
        note=_note(
            recorded, splits=splits, new_in_groups=int((~recognised & (joined != UNASSIGNED)).sum()), by_path=by_path
        ),
    )


def _refuse_other_splits(listing: Listing, splits: npt.NDArray[np.int8], *, name: str) -> None:
    """Refuse data whose own splits differ from those that were recorded; what is made from train may be validation or test."""
    listed = listing.splits
    made = np.array([split not in listing.given for split in SPLITS])
    may_be = (
        (listed == UNASSIGNED) | (listed == splits) | ((listed == SPLITS.index("train")) & made[np.maximum(splits, 0)])
    )
    wrong = np.flatnonzero((splits != UNASSIGNED) & ~may_be)
    if len(wrong):
        lines = [
            f"{listing.paths[row]} (was {SPLITS[splits[row]]}, now {SPLITS[listed[row]]})"
            for row in wrong[:10].tolist()
        ]
        raise UserError(
            f"{name}: {counted(len(wrong), 'image')} of the run would be in another split: {shortened(lines)}. Put them back, or "
            "leave data.split_from out and train from the start."
        )


def _joined_to_groups(
    listing: Listing, content: npt.NDArray[np.uint64], splits: npt.NDArray[np.int8], *, name: str
) -> npt.NDArray[np.int8]:
    """Return the splits with those of new images that are in one group with recorded ones, also through copies."""
    if listing.groups is None or not len(splits):
        return splits
    _, picture = np.unique(content, axis=0, return_inverse=True)
    picture = picture.reshape(-1)
    grouped = np.flatnonzero(listing.groups.numbers != ALONE)
    pictures, groups = int(picture.max()) + 1, int(listing.groups.numbers.max(initial=-1)) + 1
    links = coo_array(
        (np.ones(len(grouped)), (picture[grouped], pictures + listing.groups.numbers[grouped])),
        shape=(pictures + groups, pictures + groups),
    )
    _, component = connected_components(links, directed=False)
    unit = component[picture]
    splits = splits.copy()
    free = splits == UNASSIGNED
    has = np.zeros((component.max() + 1, len(SPLITS)), np.bool_)
    has[unit[~free], splits[~free]] = True
    number = has.sum(axis=1)
    if len(torn := np.flatnonzero(free & (number[unit] > 1))):
        raise UserError(
            f"{name}: the run has images of one group in two splits ({listing.groups.setting}), so new images of that group have "
            f"none: {shortened([listing.paths[row] for row in torn[:10].tolist()])}. Leave these out, or the groups."
        )
    joins = free & (number[unit] == 1)
    splits[joins] = has.argmax(axis=1)[unit[joins]]
    return splits


def _note(recorded: RecordedSplits, *, splits: npt.NDArray[np.int8], new_in_groups: int, by_path: int) -> str:
    known = splits[splits != UNASSIGNED]
    counts = Counter(known.tolist())
    kept = ", ".join(f"{name} {counts[position]}" for position, name in enumerate(SPLITS))
    how = ""
    if recorded.by_content is None:
        how = ", by path alone, since its version recorded no contents"
    elif by_path:
        how = f", {by_path} of them by path, since their contents have changed"
    joined = f" {counted(new_in_groups, 'new image')} joined the groups of these." if new_in_groups else ""
    return (
        f"data.split_from={recorded.run}: {len(known):,} of {counted(len(splits), 'image')} are in its split and keep it "
        f"({kept}){how}. New: {len(splits) - len(known):,}.{joined}"
    )

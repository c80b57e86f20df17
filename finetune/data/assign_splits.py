"""Turn a listing and the content hashes of its files into a run's index: unreadable files, splits, few-shot limit."""

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from finetune.counted import counted
from finetune.data.groups import ALONE
from finetune.data.index import SPLITS, Index
from finetune.data.listing import UNASSIGNED, Listing, check_classes, without_rows
from finetune.data.recorded_splits import KeptSplits, keep_splits, read_recorded_splits
from finetune.data.splits import TEST, TRAIN, VAL, Rows, few_per_class, make_folds, make_splits
from finetune.errors import UserError, did_you_mean, shortened
from finetune.split_settings import SplitSettings

OnUnreadable = Literal["error", "skip"]

# an error lists at most this many paths, then their count; `finetune audit` lists them all
_LISTED = 50


def leave_out_unreadable(
    listing: Listing, unreadable: list[tuple[int, str]], *, on_unreadable: str
) -> tuple[Listing, list[tuple[str, str]]]:
    """Drop the files that cannot be read from a listing, and return it with the paths and reasons of the dropped files.

    Raises:
        UserError: A file is unreadable and ``on_unreadable`` is ``error``, or a class is left without a training image.
    """
    if on_unreadable not in get_args(OnUnreadable):
        choices = get_args(OnUnreadable)
        raise UserError(
            f"data.on_unreadable={on_unreadable!r}: must be one of {', '.join(choices)}."
            f"{did_you_mean(on_unreadable, choices)}"
        )
    if not unreadable:
        return listing, []
    skipped = [(listing.paths[row], reason) for row, reason in unreadable]
    if on_unreadable == "error":
        lines = [f"  {path}: {reason}" for path, reason in skipped[:_LISTED]]
        if len(skipped) > _LISTED:
            lines.append(f"  and {len(skipped) - _LISTED} more; finetune audit lists them all")
        files = counted(len(skipped), "file")
        raise UserError(
            "\n".join(
                [
                    f"{listing.origin}: every image must be readable. {files} cannot be read:",
                    *lines,
                    "Replace or remove them, or train without them: data.on_unreadable=skip.",
                ]
            )
        )
    rows = np.array([row for row, _ in unreadable], np.int64)
    return check_classes(without_rows(listing, rows)), skipped


def arrange(
    listing: Listing,
    *,
    content: npt.NDArray[np.uint64],
    split: SplitSettings,
    skipped: list[tuple[str, str]] | None = None,
) -> tuple[Index, Rows]:
    """Assign a split to every sample.

    Args:
        listing: The readable samples.
        content: Content hashes of the samples, uint64 (N, 2).
        split: Rule for the splits that the listing lacks.
        skipped: Paths and reasons of the files that were already dropped.

    Returns:
        The index, and for each of its rows the row of the listing that it comes from.

    Raises:
        UserError: The settings contradict the listing, or no image could be set aside for validation.
    """
    groups, kept = listing.groups, None
    if listing.use == "test":
        listing = replace(listing, splits=np.where(listing.splits == UNASSIGNED, TEST, listing.splits).astype(np.int8))
        splits = listing.splits
    else:
        if split.split_from is not None:
            kept = keep_splits(listing, content=content, recorded=read_recorded_splits(split.split_from))
        splits = _divide(listing, content, split, kept)
        listing = check_classes(replace(listing, splits=splits))
    if listing.use == "train" and not (splits == VAL).any():
        why = (
            f"data.val_fraction={split.val_fraction} sets no image aside. Raise it"
            if split.val_fraction == 0 and split.folds is None
            else "No image could be set aside: there are too few, or all of a class are copies of one image or belong to "
            "one group, which stay together. Add images"
        )
        raise UserError(f"{listing.origin}: validation needs an image. {why}, or give a validation split.")
    notes = [*([] if kept is None else [kept.note]), *_notes(listing, splits, split, skipped or [])]
    index = listing.to_index(splits=splits, content=content, skipped=skipped or (), notes=notes)
    rows = np.arange(len(index))
    if split.limit_per_class is None or listing.use == "test":
        return index, rows
    train = index.rows("train")
    few = few_per_class(
        targets=index.targets[train],
        content=content[train],
        seed=split.seed,
        limit=split.limit_per_class,
        groups=None if groups is None else groups.numbers[train],
    )
    rows = np.setdiff1d(rows, train[~few])
    return index.take(rows), rows


def _divide(
    listing: Listing, content: npt.NDArray[np.uint64], split: SplitSettings, kept: KeptSplits | None
) -> npt.NDArray[np.int8]:
    """Keep the listing's own splits and those of a run, and make the missing ones from the samples left for training."""
    if split.folds is not None and "val" in listing.given:
        raise UserError(
            f"data.folds={split.folds}: folds are made from training images. {listing.origin} has its own validation split. "
            "Leave data.folds out, or move those images to train."
        )
    splits = np.maximum(listing.splits, TRAIN).astype(np.int8)
    if not len(splits):  # an audit of files that are all unreadable
        return splits
    new = np.ones(len(splits), np.bool_) if kept is None else kept.splits == UNASSIGNED
    if kept is not None:
        splits[~new] = kept.splits[~new]
    rows = np.flatnonzero((splits == TRAIN) & new)
    missing = replace(
        split,
        val_fraction=0.0 if "val" in listing.given or split.folds is not None else split.val_fraction,
        test_fraction=0.0 if "test" in listing.given else split.test_fraction,
    )
    numbers = None if listing.groups is None else listing.groups.numbers
    splits[rows] = make_splits(
        targets=listing.targets[rows],
        content=content[rows],
        split=missing,
        groups=None if numbers is None else numbers[rows],
    )
    if split.folds is not None:
        rows = np.flatnonzero(splits == TRAIN)
        folds = make_folds(
            targets=listing.targets[rows],
            content=content[rows],
            seed=split.seed,
            folds=split.folds,
            groups=None if numbers is None else numbers[rows],
        )
        splits[rows[folds == split.fold]] = VAL
    return splits


def _notes(
    listing: Listing, splits: npt.NDArray[np.int8], split: SplitSettings, skipped: list[tuple[str, str]]
) -> list[str]:
    """Return a sentence for each fact that the user should know before training and the audit does not report."""
    notes = []
    for name, called in (("val", "validation"), ("test", "test")) if listing.use == "train" else ():
        key = f"{name}_fraction"
        share = getattr(split, key)
        if name in listing.given and share not in (0, getattr(SplitSettings(), key)):
            notes.append(f"data.{key}={share}: has no effect. The data has its own {called} split.")
    if listing.use == "train" and not (splits == TEST).any():
        notes.append("No test split: no metrics on unseen images.")
    if skipped:
        first = f"{skipped[0][0]}: {skipped[0][1]}"
        which = "are skipped, the first of them" if len(skipped) > 1 else "is skipped:"
        notes.append(f"{counted(len(skipped), 'unreadable file')} {which} {first}")
    if listing.groups is not None:
        by_split = ", ".join(
            f"{name} {listing.groups.count(np.flatnonzero(splits == number))}" for number, name in enumerate(SPLITS)
        )
        alone = int((listing.groups.numbers == ALONE).sum())
        without = f" {alone} images have no group, so each stands alone." if alone else ""
        notes.append(f"{listing.groups.setting}: {len(listing.groups.names)} groups; {by_split}.{without}")
    if listing.ignored:
        parts = [f"{count} x {what}" for what, count in sorted(listing.ignored.items(), key=lambda item: -item[1])]
        notes.append(f"Not read: {shortened(parts, 5)}.")
    return notes

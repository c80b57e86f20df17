"""The audit of a data set before training: its counts, sizes and problems."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from finetune.data.borders import border_of
from finetune.data.class_shortcuts import class_shortcuts, classes_by_border, some_of_each_class
from finetune.data.duplicates import alike_across, identical
from finetune.data.folder_walk import UNREAD_SUFFIXES
from finetune.data.groups import Groups
from finetune.data.guess_groups import guess_groups
from finetune.data.image_file import FORMAT_OF_SUFFIX
from finetune.data.image_source import Source
from finetune.data.index import SPLITS, Index, Severity
from finetune.data.loading import threads_here
from finetune.data.near_duplicates import LEAST_SIDE, MOST_PICTURES, READ_AT_LEAST, near_duplicates, small_copies
from finetune.data.scan import KINDS, MODES, upright_sizes
from finetune.html import html_table, html_text
from finetune.plain import Json

# a data set is imbalanced when its largest class has this many times the images of the smallest
IMBALANCED = 10
# an image is tiny when its shorter side is below this share of the median shorter side
TINY_SHARE = 0.25
# the network sees only the middle of an image whose longer side exceeds this many times the shorter
LONG = 5
# most pictures that are opened to look for borders
_MOST_BORDERS = 4000


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of problem or fact that the audit reports.

    Args:
        kind: Stable name, such as ``leakage``.
        severity: ``error`` makes results wrong; ``warning`` may make them wrong; ``note`` is for information.
        text: Description of the finding.
        remedy: Advice on what to do about it.
        files: Files concerned; files that belong together are in one group.
        rows: Rows of those files in the index, in the same groups; empty if they have none.
    """

    kind: str
    severity: Severity
    text: str
    remedy: str
    files: tuple[tuple[str, ...], ...] = ()
    rows: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Counts, sizes and findings of a data set.

    Args:
        images: Number of readable samples.
        classes: Class names.
        split_images: Number of samples per split.
        counts: Number of samples per split and class.
        sizes: Smallest, median and largest width and height, in pixels.
        modes: Number of samples per format and mode.
        findings: Findings, the most severe first.
    """

    images: int
    classes: tuple[str, ...]
    split_images: dict[str, int]
    counts: dict[str, list[int]]
    sizes: dict[str, list[int]]
    modes: dict[str, int]
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> bool:
        """Tell whether any finding is an error."""
        return any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Json]:
        """Return the audit as plain JSON values."""
        return asdict(self)

    def _repr_html_(self) -> str:
        splits = ", ".join(f"{split} {count:,}" for split, count in self.split_images.items())
        rows = [(finding.severity, finding.kind, finding.text, finding.remedy) for finding in self.findings]
        caption = f"{self.images:,} images in {len(self.classes)} classes: {splits}"
        if not rows:
            return html_text(f"{caption}\nNothing wrong was found.")
        return html_table(["", "kind", "finding", "what to do"], rows, caption=caption)


def audit(source: Source, *, left_out: Sequence[str] = (), look_alikes: bool = True) -> Audit:
    """Audit a data set whose unreadable files were skipped.

    Args:
        source: Data set with scan facts for every row of its index.
        left_out: Paths of pictures beside the images that are not read.
        look_alikes: Whether to search also for near-duplicates (the same picture in other bytes), which opens files again.
    """
    index, facts = source.index, source.facts
    assert facts is not None, "an audit needs a scan of every row"
    table = facts.table
    findings = [*_listed(index), *_unreadable(index)]
    if len(index):
        findings += [
            *_duplicates(source),
            *_groups(index),
            *(_look_alikes(source) if look_alikes else ()),
            *_unlike_their_names(index, table),
            *_odd_pictures(index, table),
            *_class_shortcuts(index, table),
            *(_borders(source) if look_alikes else ()),
            *_classes(index),
        ]
    findings += _left_out(index, left_out)
    order = ("error", "warning", "note")
    sides = dict(zip(("width", "height"), upright_sizes(table), strict=True))
    modes = Counter(zip(table["kind"].tolist(), table["mode"].tolist(), strict=True))
    return Audit(
        images=len(index),
        classes=index.classes,
        split_images=index.split_sizes(),
        counts=index.counts(),
        sizes={name: _range(side) for name, side in sides.items()},
        modes={f"{KINDS[kind]} {MODES[mode]}".strip(): count for (kind, mode), count in modes.most_common()},
        findings=tuple(sorted(findings, key=lambda finding: order.index(finding.severity))),
    )


def _range(side: np.ndarray[Any, Any]) -> list[int]:
    return [int(side.min()), int(np.median(side)), int(side.max())] if len(side) else [0, 0, 0]


def _listed(index: Index) -> Iterable[Finding]:
    for problem in index.problems:
        yield Finding(
            kind=problem.kind,
            severity=problem.severity,
            text=problem.text,
            remedy=problem.remedy,
            files=tuple((name,) for name in problem.files),
        )


def _unreadable(index: Index) -> Iterable[Finding]:
    if index.skipped:
        yield Finding(
            kind="unreadable",
            severity="error",
            text=f"unreadable: {_files(len(index.skipped))}",
            remedy="Replace or remove them, or train without them: data.on_unreadable=skip.",
            files=tuple((f"{path}: {reason}",) for path, reason in index.skipped),
        )


def _duplicates(source: Source) -> Iterable[Finding]:
    index = source.index
    conflicts, leaks, copies = [], [], []
    for rows in identical(index.content):
        contradicts = len(np.unique(index.targets[rows], axis=0)) > 1
        leaks_out = len(np.unique(index.splits[rows])) > 1
        group = tuple(rows.tolist())
        if contradicts:
            conflicts.append(group)
        if leaks_out:
            leaks.append(group)
        if not contradicts and not leaks_out:
            copies.append(group)
    if conflicts:
        yield Finding(
            kind="conflicting labels",
            severity="error",
            text=f"under different labels, byte for byte the same: {_pictures(len(conflicts))}",
            remedy="Keep each under its correct label.",
            files=_named_groups(index, conflicts),
            rows=tuple(conflicts),
        )
    if leaks:
        yield Finding(
            kind="leakage",
            severity="error",
            text=f"in more than one split, so test images were seen in training: {_pictures(len(leaks))}",
            remedy="Remove the copies, or give all images without splits: splits made here never separate copies.",
            files=_named_groups(index, leaks),
            rows=tuple(leaks),
        )
    if copies:
        yield Finding(
            kind="duplicates",
            severity="warning",
            text=f"more than once in one split, counting more than others: {_pictures(len(copies))}",
            remedy="Remove the copies.",
            files=_named_groups(index, copies),
            rows=tuple(copies),
        )


def _groups(index: Index) -> Iterable[Finding]:
    if index.groups is not None:
        divided = _in_several_splits(index, index.groups)
        if divided:
            yield Finding(
                kind="groups in several splits",
                severity="error",
                text=f"{index.groups.setting}: in more than one split, so test images were seen in training: "
                f"{len(divided):,} group{'s' * (len(divided) != 1)}",
                remedy="Put each group into one split, or give all images without splits: splits made here keep groups whole.",
                files=tuple(
                    (f"{index.groups.name(rows[0])!r}", *(_named(index, row) for row in rows)) for rows in divided
                ),
            )
        return
    if any(problem.kind == "one folder too high" for problem in index.problems):
        return  # the folders below are the classes, and a guess compares the number of groups with that of classes
    guess = guess_groups(index)
    if guess is None:
        return
    divided = _in_several_splits(index, guess.groups)
    yield Finding(
        kind="likely groups",
        severity="warning" if divided else "note",
        text=f"by their names, {guess.words}: {len(guess.groups.names):,} groups, {len(divided):,} of them in several splits",
        remedy=f"If they belong together, keep each in one split: data.group_pattern='{guess.pattern}'",
        files=_named_groups(index, divided),
        rows=tuple(divided),
    )


def _in_several_splits(index: Index, groups: Groups) -> list[tuple[int, ...]]:
    """Return for each group that lies in several splits its first row in each of them."""
    grouped = np.flatnonzero(groups.numbers >= 0)
    pairs, first = np.unique(
        groups.numbers[grouped] * len(SPLITS) + index.splits[grouped].astype(np.int64), return_index=True
    )
    group_of_pair = pairs // len(SPLITS)
    rows = grouped[first]
    return [
        tuple(rows[group_of_pair == group].tolist())
        for group in np.unique(group_of_pair[1:][np.diff(group_of_pair) == 0])
    ]


def _look_alikes(source: Source) -> Iterable[Finding]:
    index, facts = source.index, source.facts
    assert facts is not None, "checked by audit"
    table = facts.table
    _, first = np.unique(index.content, axis=0, return_index=True)
    of_one_kind = 0
    rows = np.sort(first)
    rows = rows[np.minimum(table["width"], table["height"])[rows] >= LEAST_SIDE]
    if len(rows) > MOST_PICTURES:
        yield Finding(
            kind="near-duplicates in part",
            severity="note",
            text=f"too many images to compare all pairs (more than {MOST_PICTURES:,}): only pairs in different splits were "
            f"compared, and mirrored, turned and cropped copies are missed: {_pictures(len(rows))}",
            remedy="Audit parts of at most that many pictures to find more.",
        )
    if len(rows) <= MOST_PICTURES:
        threads = threads_here(source)
        small = small_copies(rows, partial(source.read, min_side=64), threads=threads)
        copies = near_duplicates(rows, small, partial(source.read, min_side=READ_AT_LEAST), threads=threads)
        alike, of_one_kind = copies.pairs, copies.of_one_kind
        if copies.uncertain:
            yield Finding(
                kind="copies uncertain",
                severity="note",
                text="the images are so similar that about half the copies, mostly cropped and turned ones, are missed, and a "
                f"pair may show different, similar objects: {_pictures(len(rows))}",
                remedy="If they come in series, keep each series in one split with data.group_column or data.group_pattern.",
            )
        others = np.setdiff1d(first, rows)
    else:
        alike, others = [], np.sort(first)
    # small pictures, and pictures too many for the comparison of all pairs, are compared only as a whole and across splits
    alike += [
        (int(others[one]), int(others[other]))
        for one, other in alike_across(
            looks=np.ascontiguousarray(table["looks"][others]),
            content=index.content[others],
            splits=index.splits[others],
            ranges=(table["brightest"] - table["darkest"])[others],
            read=lambda position: source.read(int(others[position]), min_side=64),
        )
    ]
    across = [pair for pair in alike if index.splits[pair[0]] != index.splits[pair[1]]]
    unlike = [pair for pair in alike if (index.targets[pair[0]] != index.targets[pair[1]]).any()]
    reported = {*across, *unlike}
    within = [pair for pair in alike if pair not in reported]
    for kind, pairs, where, remedy in (
        ("near-duplicates", across, "in different splits",
         "if a pair shows the same scene, put both into one split with a manifest that has a split column."),
        ("near-duplicates under different labels", unlike, "under different labels",
         "if a pair shows the same scene, keep it under its correct label."),
        ("near-duplicates within a split", within, "in one split, counting more than others",
         "if a pair shows the same scene, remove one of them."),
    ):  # fmt: skip
        if pairs:
            yield Finding(
                kind=kind,
                severity="warning",
                text=f"visually alike {where}: {len(pairs):,} pair{'s' * (len(pairs) != 1)} of pictures",
                remedy=f"Look at them; {remedy}",
                files=_named_groups(index, pairs),
                rows=tuple(pairs),
            )
    if of_one_kind:
        yield Finding(
            kind="pictures of one kind",
            severity="note",
            text=f"so similar that copies cannot be distinguished from others, so none is reported: {_pictures(of_one_kind)}",
            remedy="If they come in series, keep each series in one split with data.group_column or data.group_pattern.",
        )


def _unlike_their_names(index: Index, table: np.ndarray[Any, Any]) -> Iterable[Finding]:
    files, rows = [], []
    for row in np.flatnonzero(table["kind"]).tolist():
        expected = FORMAT_OF_SUFFIX.get(os.path.splitext(index.paths[row])[1].lower())
        if expected is not None and expected != KINDS[table["kind"][row]]:
            files.append((f"{_named(index, row)}: {KINDS[table['kind'][row]]}",))
            rows.append((row,))
    if rows:
        yield Finding(
            kind="other format than the name says",
            severity="note",
            text=f"of another format than their suffix states, read by their content: {_files(len(rows))}",
            remedy="No action is needed here; other programs may refuse them.",
            files=tuple(files),
            rows=tuple(rows),
        )


def _odd_pictures(index: Index, table: np.ndarray[Any, Any]) -> Iterable[Finding]:
    short = np.minimum(table["width"], table["height"]).astype(np.int64)
    long = np.maximum(table["width"], table["height"]).astype(np.int64)
    deep = table["deep"] > 0
    kinds: list[tuple[str, Severity, Any, str, str]] = [
        ("constant", "warning", table["darkest"] == table["brightest"],
         "of a single colour", "Remove them, or check how they were made."),
        ("tiny", "warning", short < TINY_SHARE * np.median(short),
         f"tiny, the shorter side below {TINY_SHARE:.0%} of the median", "Check that they are not thumbnails."),
        ("long", "warning", long > LONG * short,
         f"more than {LONG} times as long as wide, so that the network sees only their middle",
         "Cut them into pieces, or use input.crop_mode=squash."),
        ("several pictures", "note", table["several"],
         "of several frames or pages, of which the first is used", "Split them if the others matter."),
        ("turned", "note", table["orientation"] > 1, "turned upright as their Exif data says", "Nothing to do."),
        ("colour profile", "note", table["profile"], "with a colour profile, which is followed to sRGB",
         "Nothing to do."),
        ("high bit depth", "note", deep, "of more than 8 bits, scaled by the range of the data set",
         "If they look too dark or too flat, set data.bit_depth or data.integer_range, or try data.high_depth=stretch."),
    ]  # fmt: skip
    for kind, severity, applies, text, remedy in kinds:
        rows = np.flatnonzero(applies).tolist()
        if rows:
            yield Finding(
                kind=kind,
                severity=severity,
                text=f"{text}: {_pictures(len(rows))}",
                remedy=remedy,
                files=_named_groups(index, [(row,) for row in rows]),
                rows=tuple((row,) for row in rows),
            )


def _class_shortcuts(index: Index, table: np.ndarray[Any, Any]) -> Iterable[Finding]:
    if index.multi_label:
        return
    for fact, classes in class_shortcuts(index.targets, table).items():
        names = [index.classes[target] for target in classes]
        yield Finding(
            kind=f"class identifiable by {fact}",
            severity="warning",
            text=f"identifiable by the {fact} of their files alone: {len(names)} of {len(index.classes)} classes",
            remedy="Bring all classes into one format and size, or a network may learn that instead of the content.",
            files=tuple((name,) for name in names),
        )


def _borders(source: Source) -> Iterable[Finding]:
    index = source.index
    if index.multi_label:
        return
    rows = some_of_each_class(index.targets.astype(np.int64), most=_MOST_BORDERS)

    def border(row: int) -> int:
        pixels_CHW = source.read(row).numpy()
        return border_of((pixels_CHW.sum(axis=0, dtype=np.uint16) // len(pixels_CHW)).astype(np.uint8))

    with ThreadPoolExecutor(threads_here(source)) as pool:
        borders = np.fromiter(pool.map(border, rows.tolist()), np.int64, len(rows))
    framed = classes_by_border(index.targets[rows].astype(np.int64), borders)
    if framed:
        yield Finding(
            kind="class identifiable by border",
            severity="warning",
            text=f"identifiable by a frame or bars around their pictures alone: {len(framed)} of {len(index.classes)} classes",
            remedy="Cut the borders off, or a network may learn them instead of the content.",
            files=tuple((index.classes[target],) for target in framed),
        )


def _classes(index: Index) -> Iterable[Finding]:
    counts = index.counts()
    train = counts["train"]
    if max(train) >= IMBALANCED * max(1, min(train)):
        most, least = int(np.argmax(train)), int(np.argmin(train))
        yield Finding(
            kind="imbalance",
            severity="warning",
            text=f"{index.classes[most]!r} has {max(train)} training images, {index.classes[least]!r} {min(train)}",
            remedy="Judge by macro F1, and try loss.class_weights=balanced, data.balanced=true or loss.name=focal.",
        )
    for split in ("val", "test"):
        absent = [name for name, count in zip(index.classes, counts[split], strict=True) if not count]
        if absent and sum(counts[split]):
            yield Finding(
                kind=f"classes missing from {split}",
                severity="warning",
                text=f"{split} has no image of {len(absent)} of {len(index.classes)} classes",
                remedy="Add images; the metrics say nothing about these classes.",
                files=tuple((name,) for name in absent),
            )
    folded = Counter(map(_folded, index.classes))
    alike = [name for name in index.classes if folded[_folded(name)] > 1]
    if alike:
        yield Finding(
            kind="class names alike",
            severity="warning",
            text="some class names differ only in capitals or blanks",
            remedy="Merge them if they mean the same.",
            files=tuple((name,) for name in alike),
        )


def _folded(name: str) -> str:
    """Return a class name in a form that ignores capitals, blanks and Unicode's compatible forms."""
    return "".join(unicodedata.normalize("NFKC", name).split()).casefold()


def _left_out(index: Index, left_out: Sequence[str]) -> Iterable[Finding]:
    if left_out:
        yield Finding(
            kind="pictures not read",
            severity="warning",
            text=f"in a format or with a suffix that is not read: {_files(len(left_out))}",
            remedy="Convert them to JPEG or PNG, and give them that suffix.",
            files=tuple((path,) for path in left_out),
        )
    loose = index.ignored.get("images outside a class folder", 0)
    if loose:
        yield Finding(
            kind="images outside a class folder",
            severity="warning",
            text=f"beside the class folders, so without a class: {_pictures(loose)}",
            remedy="Move them into the folder of their class.",
        )
    others = {
        what: count
        for what, count in index.ignored.items()
        if what != "images outside a class folder" and not what.lower().endswith(UNREAD_SUFFIXES)
    }
    if others:
        yield Finding(
            kind="other files",
            severity="note",
            text="not images, not read: " + ", ".join(f"{count} x {what}" for what, count in sorted(others.items())),
            remedy="Nothing to do.",
        )


def _named(index: Index, row: int) -> str:
    return f"{SPLITS[index.splits[row]]}: {index.paths[row]}"


def _named_groups(index: Index, groups: Iterable[tuple[int, ...]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(_named(index, row) for row in group) for group in groups)


def _files(count: int) -> str:
    return f"{count:,} file" + "s" * (count != 1)


def _pictures(count: int) -> str:
    return f"{count:,} picture" + "s" * (count != 1)

"""Proposes settings to start from by looking at the data, each with its reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.data.audit import IMBALANCED, Audit
from finetune.data.column_names import likely_column
from finetune.data.guess_groups import guess_groups
from finetune.data.image_source import Source
from finetune.data.input_size import proposed_size
from finetune.data.joined_labels import separator_of

# a run should have this many steps per epoch, or batch statistics and the learning-rate schedule become coarse
_STEPS = 8
_USUAL_BATCH = 32
# names of columns that say which images belong together
_GROUPS = ("patient", "subject", "video", "plate", "slide", "animal", "case", "group", "site", "donor", "person")

# settings that name a column of a table
_COLUMNS = ("data.path_column", "data.label_column", "data.split_column", "data.group_column")


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A setting to start from.

    Args:
        key: Dotted path of the setting.
        value: Proposed value.
        reason: What in the data speaks for it, a sentence.
    """

    key: str
    value: Any
    reason: str


def settings_of_table(columns: Mapping[str, Sequence[str]], *, given: Mapping[str, Any] = {}) -> list[Proposal]:
    """Propose how a table is read: its columns of labels and of groups.

    Args:
        columns: Cells of each column.
        given: Settings that the user gave, by dotted key; a column that they name is not proposed for something else.

    >>> [p.key for p in settings_of_table({"path": ["a", "b"], "label": ["cat;dog", "cat"]})]
    ['data.label_separator']
    """
    proposals: list[Proposal] = []
    named = [given[key] for key in _COLUMNS if given.get(key)]
    taken = {
        "path",
        "split",
        *(name for name in named if isinstance(name, str)),
        *(given.get("data.label_columns") or ()),
    }
    path = given.get("data.path_column") or likely_column(
        "path_column", [n for n in columns if n not in taken - {"path"}]
    )
    taken.add(path)
    if path not in (None, "path", given.get("data.path_column")):
        reason = f"there is no column path; {path} looks like one."
        proposals.append(Proposal(key="data.path_column", value=path, reason=reason))
    label = given.get("data.label_column", "label")
    if label not in columns and not given.get("data.label_columns"):
        flags = [name for name, cells in columns.items() if set(cells) <= {"0", "1"} and name not in taken]
        near = likely_column("label_column", [name for name in columns if name not in (*taken, *flags)])
        if len(flags) > 1:
            reason = f"there is no column label, and {len(flags)} columns hold only 0 and 1: several labels per image."
            proposals.append(Proposal(key="data.label_columns", value=flags, reason=reason))
            taken.update(flags)
        elif near is not None:
            reason = f"there is no column label; {near} looks like one."
            proposals.append(Proposal(key="data.label_column", value=near, reason=reason))
            label = near
    taken.add(label)
    texts = set() if given.get("data.label_columns") else set(columns.get(label, ()))
    if separator := separator_of(texts):
        reason = f"some cells of the column {label} hold several labels, such as {_example(texts, separator)!r}."
        proposals.append(Proposal(key="data.label_separator", value=separator, reason=reason))
    for name, cells in columns.items():
        if (
            name not in taken
            and any(word in name.lower() for word in _GROUPS)
            and 1 < len(set(cells)) <= len(cells) / 2
        ):
            reason = (
                f"the column {name} names {len(set(cells)):,} groups of {len(cells):,} images. Images of one group lie in one "
                "split, or the test measures what was trained on."
            )
            proposals.append(Proposal(key="data.group_column", value=name, reason=reason))
            break
    return proposals


def settings_of_images(source: Source, found: Audit) -> list[Proposal]:
    """Propose settings other than the defaults by the sizes and counts of the images.

    Args:
        source: Data set with scan facts, of which unreadable files were skipped.
        found: Its audit.
    """
    index = source.index
    proposals: list[Proposal] = []
    if (size := proposed_size(found.sizes)) is not None:
        proposals.append(Proposal(key="input.size", value=size[0], reason=size[1]))
    train = found.split_images["train"]
    if train < _STEPS * _USUAL_BATCH:
        batch = max(2, 1 << max(train // _STEPS, 1).bit_length() - 1)
        steps = -(-train // _USUAL_BATCH)
        reason = f"{train} training images make {steps} step{'s' * (steps != 1)} of {_USUAL_BATCH}; {batch} makes more of them."
        proposals.append(Proposal(key="data.batch_size", value=batch, reason=reason))
    counts = found.counts["train"]
    if max(counts) >= IMBALANCED * max(1, min(counts)) and not index.multi_label:
        least, most = index.classes[int(np.argmin(counts))], index.classes[int(np.argmax(counts))]
        reason = f"{most!r} has {max(counts)} training images, {least!r} {min(counts)}."
        proposals.append(
            Proposal(
                key="loss.class_weights",
                value="balanced",
                reason=f"{reason} Rare classes count as much as frequent ones.",
            )
        )
        proposals.append(
            Proposal(
                key="monitor",
                value="val/f1_macro",
                reason="accuracy hides the rare classes; the best epoch is chosen by the mean F1 of the classes.",
            )
        )
    if any(finding.kind == "unreadable" for finding in found.findings):
        reason = f"{len(index.skipped)} files cannot be read. They are left out, and listed in skipped.csv; better replace them."
        proposals.append(Proposal(key="data.on_unreadable", value="skip", reason=reason))
    long = [finding for finding in found.findings if finding.kind == "long"]
    if long and len(long[0].rows) > len(index) / 2:
        reason = "most images are many times as long as wide: a crop would show only their middle."
        proposals.append(Proposal(key="input.crop_mode", value="squash", reason=reason))
    guess = guess_groups(index) if index.groups is None else None
    if guess is not None:
        reason = (
            f"by their names, {guess.words}: {len(guess.groups.names):,} groups. Each lies in one split, or the test measures "
            "what was trained on. Check that the pattern is right."
        )
        proposals.append(Proposal(key="data.group_pattern", value=guess.pattern, reason=reason))
    return proposals


def _example(cells: set[str], separator: str) -> str:
    return min((cell for cell in cells if separator in cell), key=lambda cell: (len(cell), cell))

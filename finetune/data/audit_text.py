"""Formats an audit as text: a table for the terminal, and a few lines for the start of a run."""

from collections import Counter

import numpy as np

from finetune.data.audit import Audit
from finetune.data.index import SPLITS
from finetune.data.input_size import proposed_size
from finetune.errors import shortened

# above this number of classes the table shows only the largest and the smallest
_ALL_CLASSES = 24
_EITHER_END = 8
# Pillow's modes; those that are not here are unknown
_PIXELS = {
    **dict.fromkeys(("L", "LA"), "grey of 8 bits"),
    **dict.fromkeys(("P", "PA"), "palette of 8 bits"),
    **dict.fromkeys(("RGB", "RGBX", "YCbCr", "LAB", "HSV"), "colour of 8 bits"),
    "RGBA": "colour of 8 bits with transparency",
    "RGB;16": "colour of 16 bits",
    "RGBA;16": "colour of 16 bits with transparency",
    "LA;16": "grey of 16 bits",
    "CMYK": "CMYK of 8 bits",
    "1": "black and white",
    **dict.fromkeys(("I;16", "I;16B", "I;16L", "I;16N"), "grey of 16 bits"),
    "I": "grey of 32 bits",
    "F": "grey of floating-point numbers",
    "bands": "bands of 8 bits",
    "bands;16": "bands of 16 bits",
    "bands;32": "bands of more bits or floating-point numbers",
}
# class names at the start of a run
_NAMED = 10
_MARKS = {"error": "ERROR", "warning": "warning", "note": "note"}


def as_text(audit: Audit, *, show_files: int = 3) -> str:
    """Format counts per class and split, sizes, modes, and every finding with its remedy and first files."""
    parts = [_class_table(audit), "", *_about_images(audit), ""]
    if not audit.findings:
        parts.append("Nothing wrong was found.")
    for finding in audit.findings:
        parts.append(f"{_MARKS[finding.severity]}: {finding.text}.")
        if finding.severity != "note":
            parts += [f"    {' = '.join(group)}" for group in finding.files[:show_files]]
            if len(finding.files) > show_files:
                parts.append(f"    and {len(finding.files) - show_files:,} more")
            parts.append(f"    {finding.remedy}")
    return "\n".join(parts)


def short(audit: Audit) -> list[str]:
    """Return what a run prints before it starts: one line about the images, and one per error or warning."""
    splits = ", ".join(f"{split} {audit.split_images[split]:,}" for split in SPLITS)
    lines = [
        f"{audit.images:,} images in {len(audit.classes)} classes: {splits}. {_sizes(audit)}.",
        f"classes: {shortened(audit.classes, _NAMED)}.",
        f"{pixel_kinds(audit)}.",
    ]
    for finding in audit.findings:
        if finding.severity != "note":
            first = f": {shortened([' = '.join(group) for group in finding.files], 1)}" if finding.files else ""
            # the reason of a file ends as a sentence
            told = f"{finding.text}{first}".removesuffix(".")
            lines.append(f"{_MARKS[finding.severity]}: {told}. {finding.remedy}")
    return lines


def pixel_kinds(audit: Audit) -> str:
    """Return channels and bits of the images, the most frequent first.

    >>> from types import SimpleNamespace
    >>> pixel_kinds(SimpleNamespace(modes={"JPEG RGB": 8, "PNG RGB": 1, "TIFF I;16": 2}))
    'channels: colour of 8 bits 9, grey of 16 bits 2'
    """
    counts: Counter[str] = Counter()
    for name, count in audit.modes.items():
        counts[_PIXELS.get(name.rpartition(" ")[2], "unknown")] += count
    return "channels: " + ", ".join(f"{kind} {count:,}" for kind, count in counts.most_common())


def _class_table(audit: Audit) -> str:
    counts = np.array([audit.counts[split] for split in SPLITS])
    order = list(range(len(audit.classes)))
    left_out = 0
    if len(order) > _ALL_CLASSES:
        by_size = np.argsort(-counts.sum(axis=0), kind="stable").tolist()
        order = sorted(by_size[:_EITHER_END]) + sorted(by_size[-_EITHER_END:])
        left_out = len(audit.classes) - len(order)
    rows: list[tuple[str, ...]] = [("class", *SPLITS, "all")]
    for place, target in enumerate(order):
        if left_out and place == _EITHER_END:
            rows.append((f"... {left_out} classes between these", "", "", "", ""))
        numbers = counts[:, target].tolist()
        rows.append((audit.classes[target], *(f"{number:,}" for number in [*numbers, sum(numbers)])))
    totals = [audit.split_images[split] for split in SPLITS]
    rows.append(("all", *(f"{number:,}" for number in [*totals, sum(totals)])))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def _about_images(audit: Audit) -> list[str]:
    modes = ", ".join(f"{name or 'in memory'} {count:,}" for name, count in audit.modes.items())
    size = proposed_size(audit.sizes)
    proposal = [] if size is None else [f"input.size={size[0]} to start from: {size[1]}"]
    return [_sizes(audit), *proposal, f"formats: {modes}"]


def _sizes(audit: Audit) -> str:
    width, height = audit.sizes["width"], audit.sizes["height"]
    if width[0] == width[2] and height[0] == height[2]:
        return f"size: {width[1]} x {height[1]} pixels"
    return (
        f"size: {width[1]} x {height[1]} pixels at the median, width {width[0]} to {width[2]}, "
        f"height {height[0]} to {height[2]}"
    )

"""The audit as an HTML page: each finding with thumbnails of its files, and training views on request."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from finetune.data.audit import Audit, Finding
from finetune.data.image_source import Source
from finetune.data.sampling import key
from finetune.report.pages import render_page
from finetune.report.thumbnails import data_url, source_thumbnail

if TYPE_CHECKING:  # without views on the page, an audit does without torchvision
    from finetune.data.transforms import View

# most groups of thumbnails per finding, and views per class
_GROUPS = 12
_VIEWS = 16


@dataclass(frozen=True, kw_only=True)
class ClassViews:
    """Training views of one class.

    Args:
        name: Name of the class.
        images: Data URLs.
    """

    name: str
    images: list[str]


@dataclass(frozen=True, kw_only=True)
class ShownFile:
    """A file of a finding.

    Args:
        name: Name of the file.
        image: Data URL of its thumbnail; None if there is none.
    """

    name: str
    image: str | None


@dataclass(frozen=True, kw_only=True)
class ShownFinding:
    """A finding with thumbnails.

    Args:
        severity: How bad it is.
        text: What was found.
        remedy: What to do.
        groups: Its first groups of files.
        more: Number of the other groups.
    """

    severity: str
    text: str
    remedy: str
    groups: list[list[ShownFile]]
    more: int


def audit_page(audit: Audit, source: Source, *, name: str, view: "View | None" = None, view_words: str = "") -> str:
    """Render the audit as HTML with its images embedded.

    Args:
        audit: Findings and class counts to show.
        source: Source that the images are read from.
        name: Name of the audited data, for the title.
        view: Training view to show; None shows none.
        view_words: Description of the view.
    """
    most = max(1, *(sum(numbers) for numbers in zip(*audit.counts.values(), strict=True)))
    classes = [
        {"name": name_, "train": train, "val": val, "test": test, "share": round((train + val + test) / most, 4)}
        for name_, train, val, test in zip(audit.classes, *audit.counts.values(), strict=True)
    ]
    return render_page(
        "audit.html",
        name=name,
        audit=audit,
        findings=[_shown(finding, source) for finding in audit.findings],
        classes=classes,
        views=training_views(source, view) if view else [],
        view_words=view_words,
    )


def training_views(
    source: Source, view: "View", *, most_classes: int | None = None, views: int = _VIEWS
) -> list[ClassViews]:
    """Return training views of each class, made from its first training images.

    Args:
        source: Data set that gives the images.
        view: Training view.
        most_classes: Number of classes to show, from the first on; None shows all.
        views: Number of views of each class.
    """
    index = source.index
    rows = index.rows("train")
    shown = []
    before = torch.get_rng_state()
    for target, name in enumerate(index.classes[:most_classes]):
        class_rows = rows[index.targets[rows, target] > 0] if index.multi_label else rows[index.targets[rows] == target]
        images = []
        for number in range(views if len(class_rows) else 0):
            row = int(class_rows[number % len(class_rows)])
            torch.manual_seed(key("audit", name, number))
            images.append(data_url(view(source.read(row, min_side=view.min_side))))
        shown.append(ClassViews(name=name, images=images))
    torch.set_rng_state(before)
    return shown


def _shown(finding: Finding, source: Source) -> ShownFinding:
    """Return a finding with thumbnails of its first groups."""
    groups = []
    for number, files in enumerate(finding.files[:_GROUPS]):
        rows = finding.rows[number] if finding.rows else (None,) * len(files)
        groups.append(
            [ShownFile(name=file, image=source_thumbnail(source, row)) for file, row in zip(files, rows, strict=True)]
        )
    return ShownFinding(
        severity=finding.severity,
        text=finding.text,
        remedy=finding.remedy,
        groups=groups,
        more=len(finding.files) - len(groups),
    )

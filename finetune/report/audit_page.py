"""The audit as a page: every finding with small pictures of the files concerned, and training views on request."""

from typing import Any

import torch

from finetune.data.audit import Audit, Finding
from finetune.data.image_source import Source
from finetune.data.sampling import key
from finetune.data.transforms import in_words, train_view
from finetune.input_spec import InputSpec
from finetune.report.pages import render_page
from finetune.report.thumbnails import data_url, source_thumbnail

# groups of pictures shown for one finding, and views shown for one class
_GROUPS = 12
_VIEWS = 16


def audit_page(
    audit: Audit, source: Source, *, name: str, view_spec: InputSpec | None = None, augment: str = "standard"
) -> str:
    """The page as HTML, with its pictures inside.

    Args:
        audit: What was found.
        source: Where the pictures come from.
        name: What was audited, for the title.
        view_spec: Show training views for this input; None for none.
        augment: Their preset.
    """
    most = max(1, *(sum(numbers) for numbers in zip(*audit.counts.values(), strict=True)))
    classes = [
        {"name": name_, "train": train, "val": val, "test": test, "width": round(20 * (train + val + test) / most, 2)}
        for name_, train, val, test in zip(audit.classes, *audit.counts.values(), strict=True)
    ]
    return render_page(
        "audit.html",
        name=name,
        audit=audit,
        findings=[_shown(finding, source) for finding in audit.findings],
        classes=classes,
        views=training_views(source, view_spec, augment=augment) if view_spec else [],
        view_words=in_words(view_spec, augment=augment) if view_spec else "",
    )


def training_views(source: Source, spec: InputSpec, *, augment: str) -> list[dict[str, Any]]:
    """Sixteen training views a class, of its first training images, each as a data URL."""
    index = source.index
    view = train_view(spec, augment=augment)
    rows = index.rows("train")
    shown = []
    before = torch.get_rng_state()
    for target, name in enumerate(index.classes):
        mine = rows[index.targets[rows, target] > 0] if index.multi_label else rows[index.targets[rows] == target]
        images = []
        for number in range(_VIEWS if len(mine) else 0):
            row = int(mine[number % len(mine)])
            torch.manual_seed(key("audit", name, number))
            images.append(data_url(view(source.read(row, at_least=view.at_least))))
        shown.append({"name": name, "images": images})
    torch.set_rng_state(before)
    return shown


def _shown(finding: Finding, source: Source) -> dict[str, Any]:
    """A finding with pictures of its first groups."""
    groups = []
    for number, files in enumerate(finding.files[:_GROUPS]):
        rows = finding.rows[number] if finding.rows else (None,) * len(files)
        groups.append(
            [{"name": file, "image": source_thumbnail(source, row)} for file, row in zip(files, rows, strict=True)]
        )
    return {
        "severity": finding.severity,
        "text": finding.text,
        "remedy": finding.remedy,
        "groups": groups,
        "more": len(finding.files) - len(groups),
    }

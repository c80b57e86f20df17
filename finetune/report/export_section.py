"""The model card's section on exports: how well each agrees with the trained model, and how fast it is."""

from pathlib import Path

from finetune.atomic_files import write_text
from finetune.errors import UserError
from finetune.export.parity_report import ParityReport
from finetune.plain import from_plain
from finetune.safe_files import read_json, read_text
from finetune.terminal import markdown

_BEGIN, _END = "<!-- exports: begin -->", "<!-- exports: end -->"


def tell_card(card: Path, exports: Path, *, weights: str) -> bool:
    """Write or update the section on exports in a model card.

    Args:
        card: ``README.md`` of a bundle; left alone if it does not exist or cannot be written.
        exports: Folder with the parity reports of exports, perhaps of other models too.
        weights: Hash of the bundle's weights; reports of other weights are left out.

    Returns:
        Whether the card was written.
    """
    found = [report for path in sorted(exports.glob("*.parity.json")) if (report := _report(path))]
    reports = [report for report in found if report.weights == weights]
    if not reports or not card.is_file():
        return False
    text = read_text(card)
    before, _, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2] if rest else ""
    section = "\n".join([_BEGIN, *_section(reports), _END])
    try:
        write_text(card, before.rstrip("\n") + "\n\n" + section + (after or "\n"))
    except OSError:
        return False
    return True


def _report(path: Path) -> ParityReport | None:
    """Return the report of a sound ONNX export; None for any other file."""
    try:
        report = from_plain(ParityReport, read_json(path, dict), name=str(path))
    except UserError:
        return None
    return report if report.passed and report.speed is not None and report.from_pixels is not None else None


def _section(reports: list[ParityReport]) -> list[str]:
    lines = [
        "## Exports",
        "",
        "| export | accuracy | of the trained model | same answers | batch 1, ms | of PyTorch | batch 32, images/s | "
        "of PyTorch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        assert report.speed is not None
        assert report.from_pixels is not None
        ways, accuracy = report.speed.ways, report.accuracy
        exported, eager = ways[report.precision], ways["pytorch"]
        accuracies = ["not labelled"] * 2
        if accuracy is not None:
            accuracies = [f"{accuracy.exported:.4f}", f"{accuracy.trained:.4f}"]
        cells = [
            f"{markdown(report.format)} {markdown(report.precision)}",
            *accuracies,
            f"{report.from_pixels.agreement:.1%}",
            f"{exported.batch_1_ms:.1f}",
            f"{eager.batch_1_ms:.1f}",
            f"{exported.images_per_second:.1f}",
            f"{eager.images_per_second:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    first = reports[0].speed
    assert first is not None
    height, width = first.pixels
    compared = {markdown(report.images) for report in reports}
    lines += [
        "",
        f"Compared on {' and '.join(sorted(compared))}. Times are from the pixels of images of {height} x {width} to "
        f"probabilities, measured once while exporting ({first.threads} thread(s), {markdown(first.processor)}), the "
        "two taking turns; they differ on other machines and under other load.",
    ]
    return lines

"""Summary of a run for the terminal: a table of its phases, and its metrics."""

from collections.abc import Sequence

from finetune.results import Results
from finetune.terminal import printable

_FIGURES = {
    "acc": "accuracy",
    "f1_macro": "macro F1",
    "f1_micro": "micro F1",
    "map": "mean average precision",
    "loss": "loss",
    "ece": "calibration error",
}


def result_table(results: Results) -> str:
    """Return plain text, the same for a terminal, a pipe and a log.

    Args:
        results: Results of the run.
    """
    phases = [["phase", "trains", "epochs", "steps", "best", "seconds"]]
    for phase in results.phases:
        (name, value), *_ = phase.best.items()
        stages = phase.train
        trains = ", ".join(stages) if len(stages) < 4 else f"{stages[0]} ... {stages[-1]} ({len(stages)} stages)"
        kept = "; start kept" if phase.restored == "start" else ""
        best = f"{name} {value:.4f} (epoch {phase.best_epoch + 1}{kept})"
        cells = [phase.name, trains, str(phase.epochs), f"{phase.steps:,}", best, f"{phase.seconds:.0f}"]
        phases.append([printable(cell) for cell in cells])
    figures = [["", "val", "test"]]
    val, test = results.val.scalars(), results.test.scalars()
    for key, label in _FIGURES.items():
        if key in test:
            # for multi-label, an image counts as right only if every label is right
            label = "exact match" if key == "acc" and "map" in test else label
            figures.append([label, f"{val[key]:.4f}", f"{test[key]:.4f}"])
    for key, value in (results.test.own or {}).items():
        figures.append([printable(key), f"{val[key]:.4f}" if key in val else "-", f"{value:.4f}"])
    return "\n".join([*aligned(phases, left=2), "", *aligned(figures, left=1)])


def aligned(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Return rows of cells as lines with straight columns, the first ``left`` of them flush left, the others flush right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]

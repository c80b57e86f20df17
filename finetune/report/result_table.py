"""Summary of a run for the terminal: a table of its phases, and its metrics."""

from finetune.results import Results
from finetune.terminal import printable
from finetune.wrapping import aligned

_FIGURES = {
    "acc": "accuracy",
    "f1_macro": "macro F1",
    "f1_micro": "micro F1",
    "map": "mean average precision",
    "loss": "loss",
    "ece": "calibration error",
}


def result_table(results: Results) -> str:
    """Return plain text of 80 columns, the same for a terminal, a pipe and a log.

    Args:
        results: Results of the run.
    """
    monitored = next((name for phase in results.phases for name in phase.best), "best")
    phases = [["phase", "trains", "epochs", "steps", printable(monitored), "best epoch", "seconds"]]
    for phase in results.phases:
        stages = phase.train
        trains = ", ".join(stages) if len(stages) < 4 else f"{stages[0]} ... {stages[-1]}"
        best = f"{next(iter(phase.best.values())):.4f}"
        epoch = f"{phase.best_epoch + 1}{', start kept' if phase.restored == 'start' else ''}"
        cells = [phase.name, trains, str(phase.epochs), f"{phase.steps:,}", best, epoch, f"{phase.seconds:.0f}"]
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

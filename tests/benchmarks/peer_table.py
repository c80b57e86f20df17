"""Runs of the comparison as a table: medians, spreads, ratios in the same round, accuracy, memory, failures."""

from collections.abc import Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

Record = Mapping[str, Any]


def summary(records: Sequence[Record], *, modes: Sequence[str], programs: Sequence[str]) -> list[dict[str, Any]]:
    """One row a mode and program that was tried, in the order given; a run tried twice counts as its last try."""
    last = {(r["mode"], r["program"], r["round"]): r for r in records}
    rows = []
    for mode in modes:
        ours = {
            r["round"]: r["wall_s"] for r in last.values() if (r["mode"], r["program"]) == (mode, "ours") and r["ok"]
        }
        for program in programs:
            tried = [r for r in last.values() if (r["mode"], r["program"]) == (mode, program)]
            if tried:
                rows.append(_row(mode, program, tried, ours))
    return rows


def _row(mode: str, program: str, tried: Sequence[Record], ours: Mapping[int, float]) -> dict[str, Any]:
    good = [r for r in tried if r["ok"]]
    row: dict[str, Any] = {"mode": mode, "program": program, "runs": len(good), "failed": len(tried) - len(good)}
    if len(good) < len(tried):
        row["last_lines"] = next(r["tail"] for r in reversed(tried) if not r["ok"])
    if not good:
        return row
    ratios = [r["wall_s"] / ours[r["round"]] for r in good if r["round"] in ours]
    accuracies = [r["accuracy"] for r in good]
    return row | {
        "wall_s": _spread([r["wall_s"] for r in good]),
        "train_s": _spread([r["train_s"] for r in good]),
        "ratio": _spread(ratios) if ratios else None,
        "accuracy": mean(accuracies),
        "accuracy_se": stdev(accuracies) / len(accuracies) ** 0.5 if len(accuracies) > 1 else None,
        "peak_mb": _most(r["peak_mb"] for r in good),
        "peak_own_mb": _most(r["peak_own_mb"] for r in good),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def _most(values: Any) -> float | None:
    return max((value for value in values if value is not None), default=None)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as one Markdown table a mode."""
    lines: list[str] = []
    for mode in dict.fromkeys(row["mode"] for row in rows):
        lines += [f"### {mode}", ""]
        lines += [
            "| program | process, s | times ours | training, s | accuracy | peak MB | without mapped files | runs |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|"]
        mine = [row for row in rows if row["mode"] == mode]
        lines += [f"| {' | '.join(_cells(row))} |" for row in mine]
        for row in mine:
            if row["failed"]:
                lines += ["", f"{row['program']} failed {row['failed']} times. Its last lines:", "", "```"]
                lines += [*row["last_lines"], "```"]
        lines += [""]
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    if not row["runs"]:
        return [row["program"], "failed", *["–"] * 5, f"0 of {row['failed']}"]
    error = "" if row["accuracy_se"] is None else f" ± {row['accuracy_se']:.3f}"
    return [
        row["program"],
        _text(row["wall_s"], 1),
        _text(row["ratio"], 2) if row["ratio"] else "–",
        _text(row["train_s"], 1),
        f"{row['accuracy']:.3f}{error}",
        *("–" if row[key] is None else f"{row[key]:.0f}" for key in ("peak_mb", "peak_own_mb")),
        f"{row['runs']} of {row['runs'] + row['failed']}",
    ]


def _text(spread: Mapping[str, float], digits: int) -> str:
    return f"{spread['median']:.{digits}f} ({spread['min']:.{digits}f} to {spread['max']:.{digits}f})"

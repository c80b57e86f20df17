"""What ``finetune plan`` says a phase will take, against what it took.

    python tests/benchmarks/plan_time.py [--root FOLDER --rounds 3 --json FILE]

Each case: the plan's forecast in a process of its own, then the training in another, from an empty cache. With ``--root``, a
folder of photographs is trained on at 224 px too. Printed is the time foretold over the time taken, phase by phase.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

DIGITS = ["data=digits", "backbone.weights=embedded", "input.size=32"]
CASES = {
    "digits frozen": [*DIGITS, "schedule=frozen"],
    "digits gradual": [*DIGITS, "schedule=gradual"],
    "digits full": [*DIGITS, "schedule=full", "schedule.phases.0.epochs=2"],
    "digits probe": [*DIGITS, "schedule=probe"],
}
ONE_EACH = [f"schedule.phases.{number}.epochs=1" for number in range(3)]
UNIT_S = {"s": 1.0, "min": 60.0, "h": 3600.0}


def finetune(words: list[str], cache: Path) -> str:
    """Output of a command, with a cache of its own."""
    environment = {**os.environ, "FINETUNE_CACHE": str(cache)}
    command = [sys.executable, "-m", "finetune", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def foretold(words: list[str], cache: Path) -> list[float]:
    """Seconds of each phase."""
    lines = re.findall(r"^  time: about ([\d.]+) (s|min|h)", finetune(["plan", *words], cache), flags=re.MULTILINE)
    return [float(value) * UNIT_S[unit] for value, unit in lines]


def taken(words: list[str], folder: Path) -> dict[str, float]:
    """Seconds of each phase, by name."""
    finetune(["train", *words, f"run_dir={folder / 'run'}", "report=false", "logger=none"], folder / "cache")
    results = json.loads((folder / "run" / "results.json").read_text(encoding="utf-8"))
    return {phase["name"]: phase["seconds"] for phase in results["phases"]}


def main() -> None:
    """Print a line a phase."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="a folder of photographs, as data=folder takes it")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    cases = dict(CASES)
    if told.root:
        photographs = ["data=folder", f"data.root={told.root}"]
        at_224 = [*photographs, "backbone.weights=embedded", "input.size=224"]
        few = [*photographs, "backbone.weights=none", "input.size=224", "data.limit_per_class=40"]
        cases |= {
            "photographs frozen": [*at_224, "schedule=frozen"],
            "photographs staged": [*at_224, "schedule=gradual", *ONE_EACH],
            "ResNet-50 staged": [*few, "backbone=resnet50", "schedule=gradual", *ONE_EACH],
            "ConvNeXt lp_ft": [*few, "backbone=timm", "backbone.name=convnext_atto", "schedule=lp_ft", ONE_EACH[1]],
            "ResNet-34 frozen": [
                *photographs,
                "backbone=resnet34",
                "backbone.weights=none",
                "input.size=128",
                "schedule=frozen",
            ],
        }
    rows = []
    for number in range(told.rounds):
        for case, words in cases.items():
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                before = foretold(words, folder / "planned")
                for (phase, after), said in zip(taken(words, folder).items(), before, strict=True):
                    rows.append({"round": number, "case": case, "phase": phase, "foretold": said, "taken": after})
                    print(
                        f"{case:20} {phase:8} foretold {said:7.1f} s  taken {after:7.1f} s  {said / after:.2f}",
                        flush=True,
                    )
    if told.json:
        told.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

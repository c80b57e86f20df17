"""This project beside other ways to do the same: one process a run, in turn, the same images, weights, epochs and views.

    uv run python tests/benchmarks/against_peers.py --rounds 3

makes what is missing (images, weights, an environment for each library), runs every program of every mode once a round,
and prints a table. Each run is added to ``--out`` when it ends, so the same command goes on after an interruption;
``--table`` prints what is there. ``--smoke`` runs everything on forty images, to see that it runs. Peaks of memory are read
every other second so that times stay right, and are too low then: ``--memory`` is for them.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer_environments import LIBRARIES, interpreter
from peer_images import CLASSES, make_images
from peer_process import OFTEN_S, SAMPLE_S, run_watched
from peer_table import markdown, summary
from peer_weights import embedded_weights, make_weights

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEFAULT_FOLDER = Path.home() / ".cache" / "finetune-peers"
HEAD_LR, TOP_LR, ALL_LR = 3e-3, 5e-4, 3e-4


@dataclass(frozen=True, kw_only=True)
class Program:
    """A file in ``peers/``, the environment it runs in, the modes that it can do, and further words for it."""

    file: str
    environment: str
    modes: tuple[str, ...]
    words: tuple[str, ...] = ()


MODES = ("frozen", "frozen_plain", "staged", "full")
FROZEN = ("frozen", "frozen_plain")
PROGRAMS = {
    "ours": Program(file="ours.py", environment="ours", modes=MODES),
    "plain": Program(file="plain.py", environment="", modes=MODES),
    "tuned": Program(file="plain.py", environment="", modes=MODES, words=("tuned",)),
    "tuned_eval": Program(
        file="plain.py", environment="", modes=("frozen", "frozen_plain", "staged"), words=("tuned", "eval")
    ),
    "lightning": Program(file="with_lightning_callback.py", environment="lightning", modes=MODES),
    "fastai": Program(file="with_fastai.py", environment="fastai", modes=MODES),
    "finetuning_scheduler": Program(
        file="with_finetuning_scheduler.py", environment="finetuning_scheduler", modes=("staged",)
    ),
    "transformers": Program(file="with_transformers.py", environment="transformers", modes=(*FROZEN, "full")),
    "timm_script": Program(file="with_timm.py", environment="timm", modes=("full",)),
    "limit": Program(file="limit.py", environment="", modes=("frozen_plain",)),
}


def phases(mode: str, *, smoke: bool) -> list[dict[str, Any]]:
    """What trains, for how many epochs, at which rate."""
    head = {"train": "head", "epochs": 1, "lr": HEAD_LR}
    whole = {"train": "all", "epochs": 1, "lr": ALL_LR}
    if mode in FROZEN:
        return [head | {"epochs": 1 if smoke else 5}]
    if mode == "staged":
        return [head, {"train": "top", "epochs": 1, "lr": TOP_LR}, whole]
    return [whole]


def run_once(
    name: str, *, mode: str, number: int, options: argparse.Namespace, data: Path, weights: Path
) -> dict[str, Any]:
    """One run of one program: its record."""
    program = PROGRAMS[name]
    record: dict[str, Any] = {"mode": mode, "program": name, "round": number, "at": time.strftime("%Y-%m-%dT%H:%M:%S")}
    record["commit"] = commit()
    try:
        python = interpreter(program.environment, options.env_folder)
    except RuntimeError as error:
        return record | {"ok": False, "tail": str(error).splitlines()[-12:]}
    scratch = options.folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    output, log = scratch.with_name("answer.json"), scratch.with_name("program.log")
    output.unlink(missing_ok=True)
    job = {
        "data": str(data),
        "weights": str(weights),
        "mode": mode,
        "phases": phases(mode, smoke=options.smoke),
        "augment": mode != "frozen_plain",
        "seed": number,
        "batch": 8 if options.smoke else options.batch,
        "workers": options.workers,
        "classes": CLASSES,
        "scratch": str(scratch),
        "output": str(output),
    }
    words = [*program.words, *(options.override if name == "ours" else [])]
    # threads are each library's own choice, as they are on a machine where nobody set them
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment["PYTHONPATH"] = str(ROOT) if name == "ours" else ""
    finished = run_watched(
        [str(python), str(HERE / "peers" / program.file), json.dumps(job), *words],
        cwd=scratch,
        environment=environment,
        log=log,
        timeout_s=options.timeout,
        sample_s=OFTEN_S if options.memory else SAMPLE_S,
    )
    ok = finished.code == 0 and output.is_file()
    record |= {"ok": ok, "wall_s": round(finished.wall_s, 3), "code": finished.code, "tail": finished.tail}
    record |= {"peak_mb": finished.peak_mb, "peak_own_mb": finished.peak_own_mb}
    if ok:
        record |= json.loads(output.read_text(encoding="utf-8"))
    shutil.rmtree(scratch, ignore_errors=True)
    return record


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = [line for line in _cpu_lines() if line.startswith("model name")]
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": model[0].partition(":")[2].strip() if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "libraries": LIBRARIES,
    }


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def commit() -> str:
    """Of the checkout, with a word where files differ from it; empty where there is no git."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def read_records(path: Path) -> list[dict[str, Any]]:
    """The runs so far, without a last line that was cut off."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def add_record(path: Path, record: dict[str, Any]) -> None:
    """One more line, after what is whole."""
    before = read_records(path)
    whole = "".join(json.dumps(entry) + "\n" for entry in [*before, record])
    part = path.with_suffix(".part")
    part.write_text(whole, encoding="utf-8")
    part.replace(path)


def report(options: argparse.Namespace) -> None:
    """Print the table and write its rows as JSON beside the runs."""
    rows = summary(read_records(options.out), modes=MODES, programs=list(PROGRAMS))
    target = options.out.with_suffix(".json")
    target.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(markdown(rows))
    print(f"runs: {options.out}\nrows: {target}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--programs", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--train", type=int, default=1000, help="training images")
    parser.add_argument("--valid", type=int, default=250, help="validation images")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="loader workers of all but ours, which chooses itself")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds a run may take")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="images, weights and scratch")
    parser.add_argument("--env-folder", type=Path, help="environments; default: environments in --folder")
    parser.add_argument("--out", type=Path, help="runs, a JSON line each; default: a file in --folder")
    parser.add_argument("--override", nargs="*", default=[], help="further key=value words for ours")
    parser.add_argument(
        "--memory", action="store_true", help="read memory twenty times as often; times do not count then"
    )
    parser.add_argument("--smoke", action="store_true", help="forty images, one epoch a phase")
    parser.add_argument("--table", action="store_true", help="print the table of what is there and stop")
    options = parser.parse_args()
    if options.smoke:
        options.train, options.valid, options.rounds = 30, 10, min(options.rounds, 1)
    options.env_folder = options.env_folder or options.folder / "environments"
    kind = "_smoke" if options.smoke else "_memory" if options.memory else ""
    options.out = options.out or options.folder / f"against_peers{kind}.jsonl"
    return options


def main() -> None:
    """Run what is missing, then print the table."""
    options = arguments()
    if options.table:
        report(options)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    data = options.folder / f"images_{options.train}_{options.valid}"
    make_images(data, train=options.train, valid=options.valid)
    if options.smoke:
        weights = options.folder / "embedded.safetensors"
        embedded_weights(weights)
    else:
        weights = options.folder / "taught.safetensors"
        make_weights(weights)
    done = {(r["mode"], r["program"], r["round"]) for r in read_records(options.out) if r["ok"]}
    for number in range(options.rounds):
        # another first one in every round
        turn = number % len(options.programs)
        for mode in options.modes:
            for name in options.programs[turn:] + options.programs[:turn]:
                if mode not in PROGRAMS[name].modes or (mode, name, number) in done:
                    continue
                record = run_once(name, mode=mode, number=number, options=options, data=data, weights=weights)
                add_record(options.out, record)
                said = f"{record['wall_s']:.1f} s, accuracy {record['accuracy']:.3f}" if record["ok"] else "failed"
                print(f"round {number} {mode} {name}: {said}", file=sys.stderr, flush=True)
    report(options)


if __name__ == "__main__":
    main()

"""Many random kills and signals over all schedules and ways to train; every end must be the same to the bit.

    uv run python tests/kill_and_resume.py --kills 200 --seed 0

Each run is struck at a random event (a step, a validation batch, a moment of a write) or at a random moment of the clock, by
SIGKILL or by a signal that stops it; then it is resumed, some with another number of loader processes, and its end compared with
that of the run nobody struck: weights, checkpoints, metrics, predictions, results. No stray file may be left, and no training
step may be done twice where signals alone struck. Prints a row for each run and a table of all; ends with status 1 where one
differs. A lean, fixed subset is in tests/training/test_resume.py and tests/training/test_interruption.py.
"""

import argparse
import csv
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from finetune.file_lock import LOCK
from finetune.runners.resume import resume
from tests.conftest import TINY_RESNET10T, make_pets
from tests.runs import outcome, train_tiny
from tests.training.killing import Events, Strike, run_killed, run_whole, steps_of
from tests.training.ranks import TWO, forked_ranks, said

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# torchrun's agent gives the other processes so long after one has failed
AGENT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One way to train.

    Args:
        words: Overrides.
        workers: Loader processes, at the start and after each strike in turn.
        processes: That train together.
    """

    words: tuple[str, ...]
    workers: tuple[int, ...] = (0,)
    processes: int = 1


def phases(*epochs: int) -> list[str]:
    """Overrides of the number of epochs of each phase."""
    return [f"schedule.phases.{number}.epochs={count}" for number, count in enumerate(epochs)]


CONFIGURATIONS = {
    "frozen, cache": Configuration(
        words=("schedule=frozen", *phases(3), "data.augment=standard", "head.drop_rate=0.5")
    ),
    "frozen, no cache": Configuration(
        words=(
            "schedule=frozen",
            *phases(3),
            "schedule.cache=off",
            "data.augment=standard",
            "checkpoint.every_n_steps=2",
        ),
        workers=(0, 2, 1),
    ),
    "gradual, 2 views": Configuration(
        words=(
            "schedule=gradual",
            "schedule.phases.0.solver=gradient",
            *phases(2, 2, 1),
            "schedule.cache=2",
            "data.augment=rand_augment",
        ),
        workers=(0, 1),
    ),
    "gradual, its head solved": Configuration(
        words=(
            "schedule=gradual",
            "schedule.phases.1.epochs=2",
            "schedule.phases.2.epochs=2",
            "data.augment=standard",
            "checkpoint.every_n_steps=2",
        )
    ),
    "head_then_all, mixup, EMA": Configuration(
        words=(
            "schedule=head_then_all",
            *phases(1, 3),
            "schedule.phases.1.carry_optimizer=true",
            "schedule.phases.1.batch_norm=train",
            "schedule.phases.1.mixup=0.4",
            "schedule.phases.1.cutmix=1.0",
            "schedule.phases.1.ema_decay=0.9",
            "schedule.phases.1.lr_schedule=one_cycle",
            "schedule.phases.1.gradient_clip=1.0",
            "data.augment=trivial_augment",
            "head.drop_rate=0.3",
            "checkpoint.every_n_steps=1",
        ),
        workers=(2, 0),
    ),
    "full, accumulation, plateau": Configuration(
        words=(
            "schedule=full",
            *phases(5),
            "schedule.phases.0.lr=0.05",
            "schedule.phases.0.patience=4",
            "schedule.phases.0.accumulate=2",
            "schedule.lr_schedule=plateau",
            "schedule.label_smoothing=0.1",
            "optimizer=sgd",
            "monitor=val/loss",
        )
    ),
    "full, max_steps": Configuration(words=("schedule=full", *phases(4), "schedule.phases.0.max_steps=13")),
    "probe": Configuration(words=("schedule=probe", "data.augment=none")),
    "lp_ft": Configuration(words=("schedule=lp_ft", "schedule.phases.1.epochs=2", "data.augment=standard")),
    "lr_trials, then all": Configuration(
        words=(
            "schedule=head_then_all",
            *phases(3, 1),
            "schedule.phases.0.lr_trials=[1e-4,1e-2,3e-2]",
            "head.drop_rate=0.3",
        )
    ),
    "norm_only": Configuration(words=("schedule=norm_only", *phases(3), "data.augment=standard"), workers=(1, 2)),
    "gates": Configuration(words=("schedule=gates", *phases(3), "backbone=gated")),
    "multi-label": Configuration(words=("schedule=head_then_all", *phases(1, 2), "data=manifest")),
    "two processes": Configuration(
        words=("schedule=head_then_all", *phases(1, 2), "data.augment=standard", "head.drop_rate=0.3", *TWO),
        processes=2,
    ),
}


def make_table(folder: Path) -> Path:
    """40 images, each bright in the channels of its labels."""
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = []
    for number in range(40):
        shown = [number >> bit & 1 for bit in range(3)]
        pixels = random.integers(0, 100, (24, 24, 3)) + 150 * np.array(shown)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        rows.append((f"{number}.png", "|".join(name for name, yes in zip("rgb", shown, strict=True) if yes)))
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return folder / "table.csv"


class Campaign:
    """The uninterrupted runs, and how a struck one is compared with its own.

    Args:
        root: Folder for everything.
        draw: Draws what is struck.
        names: Names of the configurations that run.
    """

    def __init__(self, root: Path, draw: random.Random, names: Sequence[str]) -> None:
        self._root, self._draw = root, draw
        pets, table = make_pets(root / "pets"), make_table(root / "table")
        self._words, self._events, self._seconds = {}, {}, {}
        for name in names:
            configuration = CONFIGURATIONS[name]
            data = ["data=folder", f"data.root={pets}"]
            if "data=manifest" in configuration.words:
                data = [f"data.path={table}", "data.label_separator=|"]
            network = [word for word in configuration.words if word.startswith("backbone=")]
            tiny = [
                word
                for word in TINY_RESNET10T
                if not network or word not in ("backbone=timm", "backbone.name=resnet10t")
            ]
            self._words[name] = [*data, *tiny, *configuration.words]
            if configuration.workers != (0,):
                self._words[name].remove("data.num_workers=0")
                self._words[name].append(f"data.num_workers={configuration.workers[0]}")
            os.environ["FINETUNE_CACHE"] = str(self._cache(name))
            began = time.monotonic()
            run_dir = self._whole(name)
            if configuration.processes == 1:
                run_whole(self._words[name], run_dir)
            else:
                self._together(name, run_dir)
            self._seconds[name] = time.monotonic() - began
            self._events[name] = run_dir.with_suffix(".events").read_text().splitlines()
            print(f"uninterrupted: {name}, {len(self._events[name])} events, {self._seconds[name]:.1f} s", flush=True)

    def _whole(self, name: str) -> Path:
        return self._root / f"whole-{list(CONFIGURATIONS).index(name)}"

    def _cache(self, name: str) -> Path:
        return self._root / "caches" / self._whole(name).name

    def _together(self, name: str, run_dir: Path, strike: Strike | None = None, rank: int = 0) -> list[int]:
        """Start or resume a run of two processes, one of which is struck."""
        begun = (run_dir / "run.json").is_file()

        def job() -> None:
            mine = int(os.environ["LOCAL_RANK"])
            log = run_dir.with_suffix(".events") if mine == 0 else None
            Events(strike=strike if mine == rank else None, log=log).install()
            resume(run_dir) if begun else train_tiny(self._words[name], run_dir)

        # before they have found each other, only what started them can end the one that waits
        return forked_ranks(job, run_dir.with_suffix(".rank"), world=2, agent_s=AGENT_S)

    def strikes(self, name: str, count: int) -> list[Strike]:
        """What strikes a run: half of them kills; a third of all at a moment of the clock."""
        events = len(self._events[name])
        found = []
        for number in range(count):
            signal_number = self._draw.choice([*[signal.SIGKILL] * 3, *SIGNALS])
            # the second strike is counted from the resume, when less is left
            at = self._draw.randrange(events if number == 0 else max(events // 2, 1))
            by_clock = CONFIGURATIONS[name].processes == 1 and self._draw.random() < 1 / 3
            after = self._draw.uniform(0, self._seconds[name]) if by_clock else None
            found.append(Strike(at, signal_number, after_s=after))
        return found

    def run(self, number: int, name: str, strikes: list[Strike]) -> tuple[int, str]:
        """Strike a run; returns how many struck, and what is wrong with its end."""
        configuration = CONFIGURATIONS[name]
        run_dir = self._root / f"struck-{number}"
        # every other run fills a cache of its own, and is struck in doing so
        cache = self._cache(name) if number % 2 else self._root / "caches" / str(number)
        os.environ["FINETUNE_CACHE"] = str(cache)
        if configuration.processes == 1:

            def resumed(folder: Path) -> None:
                """Resume with the next number of loader processes."""
                count = configuration.workers[(1 + self._resumes(folder)) % len(configuration.workers)]
                resume(folder, overrides=[f"data.num_workers={count}"] if len(configuration.workers) > 1 else [])

            struck = run_killed(self._words[name], run_dir, kills=strikes, resume_with=resumed)
        else:
            struck = 0
            for strike in strikes:
                statuses = self._together(name, run_dir, strike, rank=self._draw.randrange(2))
                struck += statuses != [0, 0]
                if not (run_dir / "run.json").is_file():
                    for stale in run_dir.glob("*"):
                        stale.unlink()
            if statuses := [status for status in self._together(name, run_dir) if status]:
                return struck, f"resumed: {statuses} {said(run_dir.with_suffix('.rank'))}"
        wrong = self._wrong(name, run_dir, cache, signals=all(s.number != signal.SIGKILL for s in strikes))
        if not wrong:
            # what is left of a run that ended otherwise is kept to be looked at
            for folder in {run_dir, cache} - {self._cache(name)}:
                shutil.rmtree(folder, ignore_errors=True)
        return struck, wrong

    def _resumes(self, run_dir: Path) -> int:
        """How often a run has been resumed before this time."""
        return run_dir.with_suffix(".out").read_text().count("resuming:")

    def _wrong(self, name: str, run_dir: Path, cache: Path, *, signals: bool) -> str:
        then, now = outcome(self._whole(name)), outcome(run_dir)
        wrong = [key for key in then if then[key] != now[key]]
        # the lock file of a run stays and says who had it last; parts of interrupted writes must be gone
        hidden = [path.name for folder in (run_dir, cache) for path in folder.rglob("*") if path.name.startswith(".")]
        stray = [name for name in hidden if name != LOCK]
        files = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*")}
        expected = {str(path.relative_to(self._whole(name))) for path in self._whole(name).rglob("*")}
        wrong += [f"stray {stray}"] if stray else []
        wrong += [f"files {sorted(files ^ expected)}"] if files - {"error.log"} != expected else []
        if signals and (steps := steps_of(run_dir)) != (once := steps_of(self._whole(name))):
            wrong.append(f"steps {steps}, not {once}")
        return ", ".join(wrong)


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="TEXT", help="configurations whose name holds this")
    given = parser.parse_args()
    names = [name for name in CONFIGURATIONS if given.only in name]
    if not names:
        parser.error(f"--only {given.only}: no such configuration. Configurations: {', '.join(CONFIGURATIONS)}.")
    draw = random.Random(given.seed)
    root = Path(tempfile.mkdtemp(prefix="kill-and-resume-"))
    campaign = Campaign(root, draw, names)
    kills: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    print(f"{'kills':>5}  {'configuration':27} {'s':>5}  end, strikes")
    number = 0
    while kills.total() < given.kills:
        # every configuration in turn; every fourth run is struck twice
        name = names[number % len(names)]
        strikes = campaign.strikes(name, 2 if number % 4 == 3 else 1)
        began = time.monotonic()
        struck, wrong = campaign.run(number, name, strikes)
        kills[name], runs[name], number = kills[name] + struck, runs[name] + 1, number + 1
        failed[name] += bool(wrong)
        moments = "; ".join(
            f"{signal.Signals(s.number).name} "
            + (f"at event {s.at}" if s.after_s is None else f"after {s.after_s:.1f} s")
            for s in strikes
        )
        end = f"DIFFERENT: {wrong}" if wrong else "same"
        print(f"{kills.total():5}  {name:27} {time.monotonic() - began:5.1f}  {end}, {moments}", flush=True)
    print(f"\n{'configuration':27} {'runs':>4} {'kills':>5} {'different':>9}")
    for name in names:
        print(f"{name:27} {runs[name]:4} {kills[name]:5} {failed[name]:9}")
    print(f"{'all':27} {runs.total():4} {kills.total():5} {failed.total():9}")
    if failed.total():
        print(f"What they left is in {root}.")
        return 1
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())

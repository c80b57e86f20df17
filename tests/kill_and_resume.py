"""Many random kills over schedules that mix phases, workers and augmentation; every end must be the same to the bit.

    uv run python tests/kill_and_resume.py --kills 40 --seed 0

Prints a table: schedule, workers, the event at which the run was killed, and whether the final state is identical. Ends with
status 1 where one is not. A lean, fixed subset of it is in tests/training/test_resume.py.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.conftest import TINY, make_pets
from tests.runs import outcome
from tests.training.killing import run_killed, run_whole

# name -> overrides; each is run with 0 and with 2 workers
SCHEDULES = {
    "frozen": ["schedule=frozen", "schedule.phases.0.epochs=3", "data.augment=standard", "head.drop_rate=0.5"],
    "gradual": [
        "schedule=gradual",
        *[f"schedule.phases.{n}.epochs=2" for n in range(3)],
        "schedule.phases.2.batch_norm=train",
        "data.augment=rand_augment",
        "checkpoint.every_n_steps=2",
    ],
    # the first phase trains on the view that the second one looks at
    "shared": [
        "schedule=gradual",
        *[f"schedule.phases.{n}.epochs=1" for n in range(3)],
        "data.augment=standard",
        "checkpoint.every_n_steps=2",
    ],
    "mixed": [
        "schedule=head_then_all",
        "schedule.phases.0.epochs=2",
        "schedule.phases.1.epochs=3",
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
    ],
    "plateau": [
        "schedule=full",
        "schedule.phases.0.epochs=6",
        "schedule.phases.0.lr=0.05",
        "schedule.phases.0.patience=4",
        "schedule.phases.0.accumulate=2",
        "schedule.lr_schedule=plateau",
        "schedule.label_smoothing=0.1",
        "optimizer=sgd",
        "monitor=val/loss",
        "checkpoint.every_n_steps=2",
    ],
}


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    root = Path(tempfile.mkdtemp(prefix="kill-and-resume-"))
    pets = make_pets(root / "pets")
    wholes = {}
    for name, settings in SCHEDULES.items():
        for workers in (0, 2):
            words = ["data=folder", f"data.root={pets}", *TINY, *settings, f"data.num_workers={workers}"]
            run_dir = root / f"{name}-{workers}"
            wholes[name, workers] = (words, run_whole(words, run_dir), run_dir)
    failures = kills = 0
    print(f"{'kill':>4}  {'schedule':9} {'workers':>7}  {'same bits':9}  {'s':>5}  killed at")
    while kills < given.kills:
        name, workers = draw.choice(list(wholes))
        words, total, whole = wholes[name, workers]
        # every fourth run is killed twice, the second time after it was resumed
        at = [draw.randrange(total)] + ([draw.randrange(total // 2)] if kills % 4 == 3 else [])
        events = whole.with_suffix(".events").read_text().splitlines()
        run_dir = root / f"killed-{kills}"
        began = time.monotonic()
        struck = run_killed(words, run_dir, kills=at)
        same = outcome(run_dir) == outcome(whole) and not list(run_dir.rglob("*.part"))
        failures += not same
        kills += struck
        moment = f"{at[0]}/{total} {events[at[0]]}" + (f", then its event {at[1]}" if len(at) > 1 else "")
        seconds = time.monotonic() - began
        print(f"{kills:4}  {name:9} {workers:7}  {'yes' if same else 'NO':9}  {seconds:5.1f}  {moment}", flush=True)
    print(f"{kills} kills, {failures} runs that ended otherwise than the uninterrupted one")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""The whole campaign as a table; ends with status 1 where a case is not as it must be."""

import argparse
import collections
import random
import sys
import time
from pathlib import Path

from tests.hostile.campaign import Campaign, cases, lean


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--command", help="of this command alone")
    parser.add_argument("--file", default="", help="of files whose path holds this")
    parser.add_argument("--kind", default="", help="of kinds whose name holds this")
    parser.add_argument("--sample", type=int, help="so many, drawn at random")
    parser.add_argument("--part", default="0/1", help="K/N: every N-th case from the K-th on")
    parser.add_argument("--lean", action="store_true", help="the part that runs with the tests")
    parser.add_argument("--root", type=Path, help="keep the good files there, and take them from there")
    parser.add_argument("--verbose", action="store_true", help="what each case printed")
    given = parser.parse_args()
    part, parts = map(int, given.part.split("/"))
    chosen = [
        case
        for case in (lean() if given.lean else cases())
        if given.command in (None, case.target.command)
        and given.file in case.target.file
        and given.kind in case.kind.name
    ][part::parts]
    if given.sample is not None:
        chosen = random.Random(0).sample(chosen, min(given.sample, len(chosen)))
    began = time.monotonic()
    bad = []
    by_command: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    with Campaign.begun(given.root) as campaign:
        for case in chosen:
            outcome = campaign.run(case)
            counts = by_command[case.target.command]
            counts["cases"] += 1
            counts[f"status {outcome.status}"] += 1
            counts["bad"] += bool(outcome.problems)
            if outcome.problems:
                bad.append(outcome)
                print(f"BAD  {case.name}: {'; '.join(outcome.problems)}", flush=True)
            if given.verbose:
                print(
                    f"{case.name}: {outcome.status}, {outcome.bytes / 1e6:.0f} MB, {outcome.cpu_s:.1f} s\n{outcome.text}",
                    flush=True,
                )
    print(f"\n{'command':10} {'cases':>6} {'0':>6} {'1':>6} {'2':>6} {'bad':>6}")
    for command, counts in by_command.items():
        row = [counts["cases"], *(counts[f"status {status}"] for status in (0, 1, 2)), counts["bad"]]
        print(f"{command:10} " + " ".join(f"{number:6}" for number in row))
    files = {(case.target.file, case.kind.name) for case in chosen}
    print(
        f"{len(files)} hostile files, {len(chosen)} pairs of a file and a command, {len(bad)} not as they must be, "
        f"{time.monotonic() - began:.0f} s"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

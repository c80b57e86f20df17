"""Processor time of the first scan of a folder of small JPEG files, and of listing it again from the cache.

    uv run python tests/benchmarks/scan_speed.py [--files 20000] [--times 3]

Each measurement runs in a process of its own with an empty cache, and counts user and system time from after the imports. The
files are 96 x 64 pixels and differ, a thousand to a class folder; the time for 300,000 is extrapolated.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

PER_CLASS = 1000
MANY = 300_000


def make(folder: Path, files: int) -> None:
    """Write JPEG files of soft noise into class folders."""
    random = np.random.default_rng(0)
    for number in range(files):
        if number % PER_CLASS == 0:
            parent = folder / f"class{number // PER_CLASS:04}"
            parent.mkdir()
        coarse = Image.fromarray(random.integers(0, 256, (8, 12, 3), np.uint8))
        coarse.resize((96, 64), Image.Resampling.BICUBIC).save(parent / f"{number:07}.jpg", quality=85)


def measure(folder: str) -> None:
    """Build the source of a folder, and print the seconds of processor time that it took."""
    from finetune.data.image_folder import list_training_folders
    from finetune.data.image_source import files_source
    from finetune.data.splits import SplitSettings

    before = cpu_seconds()
    listing = list_training_folders(folder)
    listed = cpu_seconds()
    source = files_source(listing, split=SplitSettings())
    print(json.dumps({"files": len(source.index), "list": listed - before, "scan": cpu_seconds() - listed}))


def cpu_seconds() -> float:
    """User and system time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print the median processor time of the first and the second scan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure)
        return
    taken: dict[str, list[float]] = {"first": [], "again": []}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), args.files)
        for _ in range(args.times):
            with tempfile.TemporaryDirectory() as cache:
                for turn, seconds in taken.items():
                    # the cache keeps no file that was changed in the last two seconds; all are older here
                    out = subprocess.check_output(
                        [sys.executable, __file__, "--measure", folder],
                        text=True,
                        env={**os.environ, "FINETUNE_CACHE": cache},
                    )
                    result = json.loads(out.splitlines()[-1])
                    assert result["files"] == args.files, (turn, result)
                    seconds.append(result["list"] + result["scan"])
    for turn, seconds in taken.items():
        middle = statistics.median(seconds)
        print(
            f"{turn}: {middle:.2f} s for {args.files:,} files ({min(seconds):.2f} to {max(seconds):.2f}), "
            f"{middle * MANY / args.files:.0f} s for {MANY:,}"
        )


if __name__ == "__main__":
    main()

"""Seconds and memory to index a million image files, against torchvision's ImageFolder.

    python tests/benchmarks/index_speed.py [FILES]

The files are empty, a thousand to a class folder; each measurement runs in a process of its own, the two take turns, and
each figure is the median. Memory is what the process gained at its peak over what it held after its imports.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sized
from pathlib import Path

ROUNDS = 5
PER_CLASS = 1000


def measure(way: str, folder: str) -> None:
    """Index once and print seconds, bytes gained and the number of files."""
    if way == "ours":
        from finetune.data.image_folder import list_training_folders

        index: Callable[[str], Sized] = list_training_folders
    else:
        from torchvision.datasets import ImageFolder

        index = ImageFolder
    # the imports' own peak must not hide ours: start the high-water mark anew where the system can
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    start = time.perf_counter()
    found = index(folder)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "memory": _peak() - before, "files": len(found)}))


def _peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(files: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number in range(files // PER_CLASS):
            parent = os.path.join(folder, f"n{number:08}")
            os.mkdir(parent)
            for place in range(PER_CLASS):
                os.close(os.open(os.path.join(parent, f"n{number:08}_{place:06}.JPEG"), os.O_CREAT | os.O_WRONLY))
        results: dict[str, list[dict[str, float]]] = {"ours": [], "ImageFolder": []}
        for turn in range(ROUNDS + 1):
            for way, taken in results.items():
                # in front of the class it measures, so that both see the same state of the file system's cache
                out = subprocess.check_output([sys.executable, __file__, way, folder], text=True)
                if turn:
                    taken.append(json.loads(out))
        medians = {
            way: {key: statistics.median(result[key] for result in taken) for key in taken[0]}
            for way, taken in results.items()
        }
        for way, result in medians.items():
            print(f"{way}: {result['files']:,.0f} files, {result['seconds']:.2f} s, {result['memory'] / 1e6:.0f} MB")
        ours, theirs = medians["ours"], medians["ImageFolder"]
        print(f"time {ours['seconds'] / theirs['seconds']:.2f} of ImageFolder's, "
              f"memory {ours['memory'] / theirs['memory']:.2f}")  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 2:
        measure(sys.argv[1], sys.argv[2])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)

"""Peak memory of ``finetune predict`` on 2,000 and on 20,000 files, and its output after ten kills at random.

    python -m tests.benchmarks.predict_scale [FILES]

The files are small pictures of several formats and sizes; a few are damaged. Each run is a process of its own; its peak is
the largest resident set that the system saw. The kills are SIGKILL, each after a random number of further rows; the same
command goes on, and what it writes at last is compared with the output of the run that was let alone, byte for byte. The
bounds are 1.3 times the memory, and equality; outside them it ends with status 1.

Measured: 2,000 files 881 MB, 20,000 files 884 MB (ratio 1.004); killed ten times, the output the same.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from finetune.inference.job_store import job_path
from tests.bundles import small_bundle
from tests.export.odd_files import write_files

KILLS, FACTOR = 10, 1.3


def command(bundle: Path, images: Path, output: Path) -> list[str]:
    return [sys.executable, "-m", "finetune", "predict", str(bundle), str(images), "--output", str(output)]


def peak_megabytes(words: list[str]) -> tuple[float, float]:
    """Peak resident set of a command, and its seconds."""
    began = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: status {process.returncode}")
    return used.ru_maxrss / 1024, time.monotonic() - began


def rows(output: Path) -> int:
    """Bytes of the stored rows, those in SQLite's write-ahead log included."""
    path = job_path(output)
    return sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))


def killed(words: list[str], output: Path, further: int) -> bool:
    """Run until the stored rows have grown by so many bytes, then kill; False where it ended first."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    while not rows(output) and process.poll() is None:
        time.sleep(0.01)
    # going on begins by reading what is there; growth is what is new
    before = rows(output)
    while process.poll() is None and rows(output) < before + further:
        time.sleep(0.005)
    process.kill()
    process.wait()
    return process.returncode == -signal.SIGKILL


def main() -> None:
    """Measure, print and judge."""
    many = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    few, chance = many // 10, random.Random(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = small_bundle(folder / "bundle", size=(32, 32))
        images = folder / "images"
        images.mkdir()
        files = write_files(images, many, smallest=24, largest=64)
        for at in range(7, many, 997):
            Path(files[at]).write_bytes(b"damaged")
        (folder / "few.txt").write_text("\n".join(files[:few]))
        small, seconds_few = peak_megabytes(command(bundle, folder / "few.txt", folder / "few.csv"))
        large, seconds = peak_megabytes(command(bundle, images, folder / "whole.csv"))
        print(f"{few} files: peak {small:.0f} MB, {seconds_few:.0f} s; {many} files: {large:.0f} MB, {seconds:.0f} s")
        print(f"ratio {large / small:.3f} (allowed {FACTOR})")
        words, output = command(bundle, images, folder / "parts.csv"), folder / "parts.csv"
        size = (folder / "whole.csv").stat().st_size
        kills = sum(killed(words, output, chance.randint(1, 2 * size // KILLS)) for _ in range(KILLS))
        left = rows(output)
        peak_megabytes(words)
        same = output.read_bytes() == (folder / "whole.csv").read_bytes()
        print(f"killed {kills} times, the last with {left} bytes of rows; the output is the same: {same}")
        if large > FACTOR * small or not same or kills < KILLS or job_path(output).exists():
            raise SystemExit(1)


if __name__ == "__main__":
    main()

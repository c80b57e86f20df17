"""A program run as a user runs it, timed from outside, with the memory of it and of all its children."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# how often memory is read, which takes up to a twentieth of a second of kernel time; a shorter peak is missed
SAMPLE_S = 2.0
# where memory is what is asked for: a loop that frees every batch is at its peak for tenths of a second
OFTEN_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What was seen of a process.

    Args:
        code: Exit status.
        wall_s: From its start to its end.
        peak_mb: Largest sum over its processes, pages shared by several counted once (PSS), 10^6 bytes.
        peak_own_mb: The same without pages of mapped files, which the system may drop; libraries are among them.
        tail: Its last lines.
    """

    code: int
    wall_s: float
    peak_mb: float | None
    peak_own_mb: float | None
    tail: list[str]


def run_watched(
    command: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    log: Path,
    timeout_s: float,
    sample_s: float = SAMPLE_S,
) -> Finished:
    """Run a command to its end, or kill it and all its children at the time limit or at Ctrl-C."""
    peak = own = 0.0
    began = time.perf_counter()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=cwd, env=dict(environment), stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while process.poll() is None:
                total, without_files = _memory_mb(process.pid)
                peak, own = max(peak, total), max(own, without_files)
                if time.perf_counter() - began > timeout_s:
                    raise TimeoutError
                try:
                    process.wait(sample_s)
                except subprocess.TimeoutExpired:
                    continue
        except TimeoutError:
            stream.write(f"\nkilled after {timeout_s:.0f} s\n".encode())
        finally:
            wall = time.perf_counter() - began
            if process.poll() is None:
                # loader workers too: the session is the program's own
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lines = [line.split("\r")[-1] for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return Finished(
        code=process.returncode,
        wall_s=wall,
        peak_mb=round(peak, 1) or None,
        peak_own_mb=round(own, 1) or None,
        tail=[line for line in lines if line.strip()][-12:],
    )


def _memory_mb(root: int) -> tuple[float, float]:
    """PSS of a process and its descendants, with and without pages of files; zeros where the system has no ``/proc``."""
    total = files = 0
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text(encoding="ascii").split())
        except (OSError, ValueError):
            # it has ended since it was listed
            continue
        for line in rollup.splitlines():
            name, _, rest = line.partition(":")
            if name == "Pss":
                total += int(rest.split()[0])
            elif name == "Pss_File":
                files += int(rest.split()[0])
    return total * 1024 / 1e6, (total - files) * 1024 / 1e6

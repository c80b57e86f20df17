"""The memory that this process may use: the machine's, or what its container or job is given of it."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def memory_bytes() -> float:
    """Return the bytes of memory that this process may use; infinity where the system does not tell, as Windows.

    It is the machine's memory, or the smallest limit of the control groups that Linux holds the process in, as a container and a
    job of SLURM do.
    """
    if not hasattr(os, "sysconf"):
        return math.inf
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits()])


def _limits() -> Iterator[int]:
    """Yield the limits of this process's control group and of those around it, of both versions of control groups."""
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # a system without control groups
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (_GROUPS / "memory", "memory.limit_in_bytes") if controllers else (_GROUPS, "memory.max")
        folder = top / group.strip("/")
        # a container sees its own group as the top one
        for place in (folder, *folder.parents):
            if not place.is_relative_to(top):
                break
            try:
                limit = (place / name).read_text(encoding="utf-8").strip()
            except OSError:
                continue
            if limit.isdecimal():  # else "max"
                yield int(limit)

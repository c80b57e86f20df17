"""A process may use what its container or job is given of the machine's memory."""

import os
from pathlib import Path

import pytest

from finetune import machine_memory
from finetune.machine_memory import memory_bytes

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {}, MACHINE),
        ("0::/\n", {"memory.max": "4000"}, 4000),
        # the limit of a group around it is the smaller one
        ("0::/job/step\n", {"job/memory.max": "3000", "job/step/memory.max": "max"}, 3000),
        ("3:cpu:/a\n2:memory:/b\n", {"memory/b/memory.limit_in_bytes": "2000", "cpu/a/memory.max": "1"}, 2000),
        # a container of the first version does not see its own path
        ("2:memory:/docker/1\n", {"memory/memory.limit_in_bytes": "1000"}, 1000),
        ("2:memory:/\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, MACHINE),
    ],
)
def test_the_smallest_limit_around_a_process_counts(
    groups: str, limits: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    (tmp_path / "own").write_text(groups)
    monkeypatch.setattr(machine_memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(machine_memory, "_OWN_GROUPS", tmp_path / "own")
    assert memory_bytes() == expected

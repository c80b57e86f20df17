"""A power cut loses nothing that was finished, and a file operation that fails ends in one message; a few of many of both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash_states import Disk, digest
from tests.file_layer import Operation

PROGRAM = Path(__file__).parents[1] / "power_loss.py"


def campaign(*more: str, folder: Path) -> dict[str, dict[str, object]]:
    """The counts that the hand-run program prints; it ends with status 0 where nothing was wrong."""
    environment = {**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *more], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.partition(": ") for line in done.stdout.splitlines()]
    return {what: json.loads(counts) for what, _, counts in lines if counts.startswith("{")}


def test_a_run_goes_on_from_what_a_power_cut_leaves_and_from_operations_that_fail(tmp_path: Path) -> None:
    counts = campaign("--lean", "12", folder=tmp_path)
    assert counts["power"]["writes that were not durable when they returned"] == 0
    assert counts["power"]["tried"] == counts["power"]["identical"] == 12
    assert counts["failures"]["tried"] == counts["failures"]["identical"] != 0


def test_the_same_is_seen_without_a_compiler(tmp_path: Path) -> None:
    counts = campaign("--lean", "2", "--only", "power", "--python-layer", folder=tmp_path)
    assert counts["power"]["writes that were not durable when they returned"] == 0
    assert counts["power"]["tried"] == counts["power"]["identical"] == 2


def disk_after(*operations: Operation) -> Disk:
    disk = Disk()
    for operation in operations:
        disk.apply(operation)
    return disk


WRITTEN = (Operation("create", "a.part", 1), Operation("write", "a.part", 1, data=b"12345678"))
RENAMED = Operation("rename", "a.part", 1, "a")
SYNCED, FOLDER_SYNCED = Operation("sync", "a.part", 1), Operation("sync", "")


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        # a rename that is ahead of the contents: nothing, zeros, half of them
        ((*WRITTEN, RENAMED), {None, b"", bytes(8), b"1234" + bytes(4), b"12345678"}),
        ((*WRITTEN, SYNCED, RENAMED), {None, b"12345678"}),
        ((*WRITTEN, RENAMED, FOLDER_SYNCED), {b"", bytes(8), b"1234" + bytes(4), b"12345678"}),
        ((*WRITTEN, SYNCED, RENAMED, FOLDER_SYNCED), {b"12345678"}),
    ],
)
def test_what_is_not_synced_may_be_there_or_not(operations: tuple[Operation, ...], expected: set[bytes | None]) -> None:
    trees = [tree for _, tree in disk_after(*operations).states()]
    assert {None if tree.get("a") is None else tree["a"].data for tree in trees} == expected


def test_a_file_in_a_folder_that_is_not_synced_may_be_gone_with_it() -> None:
    disk = disk_after(
        Operation("mkdir", "run"),
        Operation("create", "run/a", 1),
        Operation("write", "run/a", 1, data=b"1"),
        Operation("sync", "run/a", 1),
        Operation("sync", "run"),
    )
    assert {"run/a" in tree for _, tree in disk.states()} == {True, False}
    disk.apply(FOLDER_SYNCED)
    assert {"run/a" in tree for _, tree in disk.states()} == {True}


def test_states_that_differ_in_unfinished_files_alone_are_one() -> None:
    whole, torn = disk_after(*WRITTEN), disk_after(WRITTEN[0])
    assert digest(whole.tree(whole.names)) == digest(torn.tree(torn.names))

"""Processes that nobody on this machine watches tell each other that they live; one that does not is named."""

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.build import assemble
from finetune.errors import RunError, UserError
from finetune.file_lock import FolderLock
from finetune.run_folder import wait_for_run_record
from finetune.training.heartbeats import Heartbeats
from finetune.training.interruption import Interruption
from finetune.training.rank_monitor import RankMonitor
from tests.runs import train_tiny
from tests.test_file_lock import FORK
from tests.training.ranks import TWO, forked_ranks, free_port, said
from tests.training.test_rank_monitor import stuck

Words = Callable[..., list[str]]
HOST = socket.gethostname()


def watched(work: Callable[[int], None], *, timeout_s: float = 1.0) -> Callable[[], None]:
    """Return a job of a process of two that works while the other one is listened to."""
    port = free_port()

    def job() -> None:
        rank = int(os.environ["LOCAL_RANK"])
        beats = Heartbeats(rank=rank, world=2, address=("127.0.0.1", port), timeout_s=timeout_s)
        with RankMonitor(resume_hint="Continue.", interruption=Interruption(""), patience_s=0.1, heartbeats=beats):
            work(rank)

    return job


@pytest.mark.parametrize("silent", [0, 1])
def test_a_process_of_a_machine_that_is_cut_off_is_named_with_its_host(silent: int, tmp_path: Path) -> None:
    def work(rank: int) -> None:
        if rank == silent:
            time.sleep(1)
            # its connections stay open, and nothing comes through them
            os.kill(os.getpid(), signal.SIGSTOP)
        stuck()

    statuses = forked_ranks(watched(work), tmp_path / "out", agent_s=0.1)
    assert statuses[1 - silent] == 1
    text = said(tmp_path / "out")[1 - silent]
    assert f"process {1 - silent}: Not heard of for 1 s: process {silent} of 2 (on {HOST})." in text
    assert text.endswith("Continue.\n")


def test_a_process_that_has_done_its_part_is_not_missed(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        if rank == 0:
            time.sleep(4)

    assert forked_ranks(watched(work), tmp_path / "out") == [0, 0]
    assert said(tmp_path / "out") == ["", ""]


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "process 0: Not heard of for 2 s: process 1 of 2 (which never came)."),
        (1, "Not heard of for 2 s: process 0 of 2 (on 127.0.0.1:"),
    ],
)
def test_a_process_that_never_came_ends_the_wait_of_the_other(
    rank: int, message: str, words: Words, tmp_path: Path
) -> None:
    asked = words("schedule=full", "epochs=1", *TWO, "trainer.timeout_s=2")
    alone = {"WORLD_SIZE": "2", "NODE_RANK": "0"}

    def job() -> None:
        os.environ["LOCAL_RANK"] = str(rank)
        train_tiny(asked, tmp_path / "run")

    assert forked_ranks(job, tmp_path / "out", world=1, environment=alone) == [1]
    assert message in said(tmp_path / "out", world=1)[0]


def test_what_one_process_prepares_alone_ends_nothing_however_long(words: Words, tmp_path: Path) -> None:
    asked = words("schedule=frozen", "epochs=1", *TWO, "trainer.timeout_s=1.5")

    def job() -> None:
        def slowly(*arguments: Any, **settings: Any) -> Any:
            time.sleep(3 if os.environ["LOCAL_RANK"] == "0" else 0)
            return assemble(*arguments, **settings)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("finetune.runners.train.assemble", slowly)
            train_tiny(asked, tmp_path / "run")

    assert forked_ranks(job, tmp_path / "out") == [0, 0], said(tmp_path / "out")


def test_a_run_that_is_started_again_waits_in_each_of_its_processes_for_the_one_that_still_writes(
    words: Words, tmp_path: Path
) -> None:
    asked, run_dir, left = words("schedule=probe", "resume=auto"), tmp_path / "run", tmp_path / "left"
    train_tiny(asked, run_dir)
    (run_dir / "results.json").unlink()
    locked = FORK.Event()

    def writes() -> None:
        with FolderLock(run_dir, name="RUN"):
            locked.set()
            time.sleep(2)
            left.touch()

    def job() -> None:
        def alone(*arguments: Any, **settings: Any) -> Any:
            assert left.exists()
            return assemble(*arguments, **settings)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("finetune.build.assemble", alone)
            train_tiny([*asked, *TWO], run_dir)

    writer = FORK.Process(target=writes)
    writer.start()
    assert locked.wait(30)
    assert forked_ranks(job, tmp_path / "out") == [0, 0], said(tmp_path / "out")
    writer.join()
    # lines are wrapped
    first, second = (" ".join(text.split()) for text in said(tmp_path / "out"))
    assert first.startswith(f"RUN='{run_dir}': in use. process {writer.pid} on {HOST} is writing there, since ")
    assert first.count("Waiting up to 300 s for it to end") == 1
    assert second == ""


def test_a_record_that_process_0_wrote_elsewhere_is_missed_by_the_name_of_its_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RunError, match=r"run\.json: process 0 of 2 \(on node7\) has not written it for 0\.1 s\."):
        wait_for_run_record(tmp_path, patience_s=0.1, first="process 0 of 2 (on node7)")


@pytest.mark.parametrize("seconds", [0, -1, "soon", True])
def test_the_time_is_a_number_above_zero(seconds: object, words: Words, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer.timeout_s=.*: must be a number of seconds above 0"):
        train_tiny(words(f"trainer.timeout_s={seconds}"), tmp_path / "run")

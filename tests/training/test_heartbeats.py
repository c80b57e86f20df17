"""Processes that nobody on this machine watches tell each other that they live; one that does not is named."""

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.errors import UserError
from finetune.training.heartbeats import Heartbeats
from finetune.training.interruption import Interruption
from finetune.training.rank_monitor import RankMonitor
from tests.runs import train_tiny
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
        (1, "run.json: process 0 of the run has not written it for 2 s."),
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


@pytest.mark.parametrize("seconds", [0, -1, "soon", True])
def test_the_time_is_a_number_above_zero(seconds: object, words: Words, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer.timeout_s=.*: must be a number of seconds above 0"):
        train_tiny(words(f"trainer.timeout_s={seconds}"), tmp_path / "run")

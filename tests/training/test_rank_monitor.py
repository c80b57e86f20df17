"""The processes of a run end together: those that Lightning starts, those of a cluster, and the jobs of a sweep."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest

from finetune.distributed import STARTED_BY
from finetune.runners.resume import resume
from finetune.training.interruption import Interruption
from finetune.training.rank_monitor import RankMonitor
from tests.conftest import TINY
from tests.runs import outcome, train_tiny
from tests.training.ranks import DIE, PATIENCE_S, SIGNAL, TWO, cluster, forked_ranks, free_port, recorded, said

Words = Callable[..., list[str]]

SHORT = ("schedule=head_then_all", "schedule.phases.0.epochs=1", "schedule.phases.1.epochs=2", "data.augment=standard")
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of two processes that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    asked = ["data=folder", f"data.root={pets}", *TINY, *SHORT, *TWO]
    assert forked_ranks(lambda: train_tiny(asked, folder / "run"), folder / "out") == [0, 0]
    return folder / "run"


@contextmanager
def command(words: list[str], *, output: IO[str], folder: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """The program as a user starts it; what is left of it and of all that it started dies with the block."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **variables}
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune", *words],
        env=environment,
        cwd=folder,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def alive(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(process: int) -> bool:
    """Wait until a process is gone; False where it stays."""
    deadline = time.monotonic() + PATIENCE_S
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(process)


def children_of(process: int) -> list[int]:
    """Processes that another one started."""
    listed = Path(f"/proc/{process}/task/{process}/children")
    return [int(number) for number in listed.read_text().split()] if listed.exists() else []


def stuck() -> None:
    """Wait as a collective operation does: for ever."""
    while True:
        time.sleep(60)


def test_a_process_that_waits_for_a_dead_one_is_ended_with_a_message(tmp_path: Path) -> None:
    def job() -> None:
        failing = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
        waiting = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (tmp_path / "waiting").write_text(str(waiting.pid))
        with RankMonitor(
            resume_hint="Continue with: finetune resume here", interruption=Interruption(""), patience_s=0.2
        ) as rank_monitor:
            rank_monitor.watch(SimpleNamespace(procs=[failing, waiting]))
            stuck()

    assert forked_ranks(job, tmp_path / "out", world=1) == [1]
    (text,) = said(tmp_path / "out", world=1)
    assert "Process 1 of the run has failed (status 3), so the others cannot continue." in text
    assert "Continue with: finetune resume here" in text
    assert gone(int((tmp_path / "waiting").read_text()))


def test_a_process_whose_starter_was_killed_ends_though_it_waits(tmp_path: Path) -> None:
    def job() -> None:
        os.environ[STARTED_BY] = str(os.getpid())
        child = os.fork()
        if child:
            (tmp_path / "child").write_text(str(child))
            while not (tmp_path / "watching").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        with RankMonitor(resume_hint="Continue.", interruption=Interruption(""), patience_s=0.2):
            (tmp_path / "watching").touch()
            stuck()

    assert forked_ranks(job, tmp_path / "out", world=1) == [-signal.SIGKILL]
    assert gone(int((tmp_path / "child").read_text()))
    assert "The first process of the run has ended before the others." in said(tmp_path / "out", world=1)[0]


@pytest.mark.slow
def test_a_killed_process_ends_a_run_on_two_devices_and_resume_gives_the_bits_of_the_uninterrupted_one(
    words: Words, whole: Path, tmp_path: Path
) -> None:
    asked = words(*SHORT, *TWO)
    recorder = ["callbacks.rows._target_=tests.training.ranks.RecordRows", f"callbacks.rows.folder='{tmp_path}'"]
    # the command's name left out, and a blank in the folder's; one line starts the run and goes on with it
    line = [*asked, *recorder, "run_dir=a b", "resume=auto"]
    with (
        (tmp_path / "log").open("w") as log,
        command(line, output=log, folder=tmp_path, **{DIE: "1:7"}) as run,
    ):
        assert run.wait(PATIENCE_S) == 1, (tmp_path / "log").read_text()
    text = (tmp_path / "log").read_text()
    assert "Process 1 of the run was killed by SIGKILL, so the others cannot continue." in text
    assert "Continue with: finetune resume 'a b'" in text
    assert "Traceback" not in text
    assert not (tmp_path / "a b/results.json").exists()
    with (tmp_path / "log").open("w") as log, command(line, output=log, folder=tmp_path) as again:
        assert again.wait(PATIENCE_S) == 0, (tmp_path / "log").read_text()
    # blank lines stand around the table of results
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if line]
    assert lines[0] == "resuming: a b"
    assert len(lines) == len(set(lines))
    assert outcome(tmp_path / "a b") == outcome(whole)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(
    rank: int, words: Words, whole: Path, tmp_path: Path
) -> None:
    asked = words(*SHORT, *TWO)
    seen = tmp_path / "seen"
    stopped = forked_ranks(
        lambda: train_tiny([*asked, *recorded(seen)], tmp_path / "run"),
        tmp_path / "stopped",
        environment={SIGNAL: f"{rank}:7:{signal.SIGTERM}"},
    )
    assert stopped == [143, 143]
    first, second = said(tmp_path / "stopped")
    assert f"stopped at step 3 of 10 in phase 2 (all); continue with: finetune resume {tmp_path / 'run'}" in first
    assert "Traceback" not in first + second
    assert forked_ranks(lambda: resume(tmp_path / "run", trust=True), tmp_path / "resumed") == [0, 0]
    assert outcome(tmp_path / "run") == outcome(whole)
    for number in (0, 1):
        places = [line.split("[")[0] for line in (seen / f"rows.{number}").read_text().splitlines()]
        assert len(places) == len(set(places)) == 15


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes of a run in /proc")
@pytest.mark.slow
def test_a_signal_to_the_second_process_outside_training_ends_the_command_as_stopped(
    words: Words, tmp_path: Path
) -> None:
    stopping = ["callbacks.stop._target_=tests.training.ranks.SignalAfterFit", "callbacks.stop.rank=1"]
    asked = [*words(*SHORT, *TWO), *stopping, "run_dir=run"]
    with (tmp_path / "log").open("w") as log, command(asked, output=log, folder=tmp_path) as run:
        assert run.wait(PATIENCE_S) == 143, (tmp_path / "log").read_text()
    text = (tmp_path / "log").read_text()
    assert "stopped in phase 1 (head); continue with: finetune resume run" in text
    assert "Traceback" not in text


@pytest.mark.slow
def test_a_sweep_on_two_devices_runs_each_job_once(words: Words, tmp_path: Path) -> None:
    once = ["schedule=frozen", "schedule.phases.0.epochs=1", "hydra.sweep.dir=sweep"]
    asked = ["-m", *words(*once, *TWO), "seed=1,2"]
    with (tmp_path / "log").open("w") as log, command(asked, output=log, folder=tmp_path) as sweep:
        assert sweep.wait(PATIENCE_S) == 0, (tmp_path / "log").read_text()
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line for line in lines if line.startswith("run: ")] == [f"run: {tmp_path}/sweep/{n}" for n in (0, 1)]
    assert len([line for line in lines if line.startswith("test: ")]) == 2
    assert not [line for line in lines if "warning" in line]
    for job, seed in enumerate((1, 2)):
        run = tmp_path / "sweep" / str(job)
        assert json.loads((run / "results.json").read_text())["seed"] == seed
        assert json.loads((run / "run.json").read_text())["config"]["trainer"]["devices"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"log", "sweep"}


@pytest.mark.slow
def test_two_nodes_train_as_two_processes_do(words: Words, whole: Path, tmp_path: Path) -> None:
    asked = words(*SHORT)
    # the documented command, once on each node; torchrun sets the variables
    nodes = ["trainer.num_nodes=2", "trainer.devices=1", "trainer.strategy=ddp", "trainer.accelerator=cpu"]
    port = free_port()
    with ExitStack() as stack:
        started = []
        for node in (0, 1):
            variables = {**cluster(port, 2), "RANK": str(node), "NODE_RANK": str(node), "GROUP_RANK": str(node)}
            variables |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "two"}
            log = stack.enter_context((tmp_path / f"log{node}").open("w"))
            run = command(["train", *asked, *nodes, "run_dir=run"], output=log, folder=tmp_path, **variables)
            started.append(stack.enter_context(run))
        for node, process in enumerate(started):
            assert process.wait(PATIENCE_S) == 0, (tmp_path / f"log{node}").read_text()
    assert (tmp_path / "log1").read_text() == ""
    assert "bundle: run/model" in (tmp_path / "log0").read_text()
    assert outcome(tmp_path / "run") == outcome(whole)

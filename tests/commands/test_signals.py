"""A signal before the first phase or after the last one ends a command with one line, and requeues its job of SLURM."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.cli import main
from tests.training.ranks import forked_ranks, said

Words = Callable[..., list[str]]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Variables of a job of SLURM, and its commands; returns the file in which they note how they were called."""
    calls = tmp_path / "calls"
    for name, answer in {"scontrol": "", "squeue": "RUNNING"}.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {calls}\necho {answer}\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return calls


def signalled(words: list[str], output: Path, *, at: str, number: int, times: int = 1) -> int:
    """Run a command that sends itself a signal when it calls a function for the first time; return its exit status."""
    module, name = at.rsplit(".", 1)

    def job() -> None:
        with pytest.MonkeyPatch.context() as patched:

            def struck(*arguments: object, **settings: object) -> object:
                for _ in range(times):
                    os.kill(os.getpid(), number)
                raise AssertionError("the signal did nothing")

            patched.setattr(f"{module}.{name}", struck)
            os._exit(main(words))

    return forked_ranks(job, output, world=1)[0]


def lines(output: Path) -> list[str]:
    return said(output, world=1)[0].splitlines()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_while_the_parts_of_a_run_are_built_requeues_its_job(
    number: int, words: Words, slurm: Path, tmp_path: Path
) -> None:
    asked = words("schedule=frozen", f"run_dir={tmp_path / 'run'}", "resume=auto")
    status = signalled(asked, tmp_path / "out", at="finetune.runners.train.assemble", number=number)
    assert status == 128 + number
    assert slurm.read_text().splitlines()[-1] == "scontrol requeue 7"
    assert lines(tmp_path / "out") == [
        "job 7 of SLURM: requeued, and goes on with this run",
        "stopped outside training; the same command goes on",
    ]


def test_a_signal_while_the_report_is_written_does_not_requeue_the_job_of_a_finished_run(
    words: Words, slurm: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    asked = words("schedule=probe", "report=true", f"run_dir={run_dir}", "resume=auto")
    status = signalled(asked, tmp_path / "out", at="finetune.runners.execute._report", number=signal.SIGUSR1)
    assert status == 128 + signal.SIGUSR1
    assert (run_dir / "results.json").is_file()
    assert not slurm.exists()
    assert lines(tmp_path / "out")[-2:] == [
        "job 7 of SLURM: not requeued. Its run has finished",
        "stopped outside training; the same command goes on",
    ]
    # and so does finetune resume, which writes the report that is missing
    at = "finetune.runners.resume.report_from_files"
    assert signalled(["resume", str(run_dir)], tmp_path / "again", at=at, number=signal.SIGTERM) == 143
    assert lines(tmp_path / "again")[-1] == "stopped outside training; the same command goes on"


def test_a_run_that_is_not_to_go_on_by_itself_says_how_to_and_requeues_nothing(
    words: Words, slurm: Path, tmp_path: Path
) -> None:
    at = "finetune.runners.train.assemble"
    asked = words("schedule=frozen", f"run_dir={tmp_path / 'run'}")
    # the agent of torchrun and the scheduler may both send it
    assert signalled(asked, tmp_path / "out", at=at, number=signal.SIGTERM, times=2) == 143
    assert lines(tmp_path / "out") == [
        "stopped outside training; if it named its run folder, continue with finetune resume; else start it again"
    ]
    assert not slurm.exists()

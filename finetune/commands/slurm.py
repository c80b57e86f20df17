"""Jobs of SLURM: requeue one that was stopped by a signal, and know those of a sweep that have ended.

Lightning's own handler of the signal is off (:func:`finetune.training.interruption.disable_lightning_signal_handlers`): it writes
another checkpoint, ``hpc_ckpt_1.ckpt``, which the next phase then takes for its own (lightning#10601).
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

from finetune.distributed import is_rank_zero
from finetune.errors import Interrupted, RunError, first_line

# states of squeue in which a job has ended
_ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
# a job that squeue no longer lists
_GONE = "GONE"


def requeue_this_job(stopped: Interrupted, *, finished: bool) -> None:
    """Requeue the batch job of SLURM that this process belongs to, after a signal has stopped its run.

    Nothing happens outside SLURM, in a job that submitit requeues, and on Ctrl-C. A job that SLURM is ending already, as scancel
    does, no longer counts as running and is left alone.

    Args:
        stopped: How the run was stopped.
        finished: Whether its results are written, so that nothing is left to compute.
    """
    job = _this_job()
    if job is None or "SUBMITIT_EXECUTOR" in os.environ or not is_rank_zero():
        return
    if stopped.number in (signal.SIGINT, signal.SIGHUP):
        return
    if finished:
        print(f"job {job} of SLURM: not requeued. Its run has finished", file=sys.stderr, flush=True)
        return
    if is_ending():
        return
    answer = _output_of("scontrol", "requeue", job) or "requeued, and goes on with this run"
    print(f"job {job} of SLURM: {answer}", file=sys.stderr, flush=True)


def is_ending() -> bool:
    """Tell whether this process belongs to a job of SLURM that is being ended, as by scancel, and starts anew if requeued."""
    if (job := _this_job()) is None:
        return False
    state = _output_of("squeue", "--noheader", "--jobs", job, "--states", "all", "--format", "%T")
    if state == "RUNNING":
        return False
    print(f"job {job} of SLURM: not requeued. Its state is {state}", file=sys.stderr, flush=True)
    return True


def _this_job() -> str | None:
    """Return the id of this process's job of SLURM; None outside one."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def _output_of(*command: str) -> str:
    """Return what a command of SLURM prints, on either stream; the reason where it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return first_line(error)
    return (done.stdout + done.stderr).strip()


def requeue_by_submitit() -> Callable[[int], None] | None:
    """Return submitit's function of a signal's number that requeues this job and exits; None in a process of another kind."""
    for name in ("SIGUSR1", "SIGUSR2"):
        handler = signal.getsignal(getattr(signal, name)) if hasattr(signal, name) else None
        if callable(handler) and getattr(handler, "__name__", "") == "checkpoint_and_try_requeue":
            return lambda number: handler(number, None)
    return None


def know_ended_jobs() -> None:
    """Let submitit's launcher know when a job has ended without a result, and wait for the others before it says so.

    By itself it asks ``sacct``, which knows nothing on a cluster without accounting, and it would wait for ever.
    """
    from hydra.core.utils import JobReturn, JobStatus
    from submitit.core import core
    from submitit.core.utils import UncompletedJobError
    from submitit.slurm import slurm

    class QueueWatcher(slurm.SlurmInfoWatcher):
        def _make_command(self) -> list[str] | None:
            waiting = self._registered - self._finished
            return (
                ["squeue", "--me", "--noheader", "--array", "--states", "all", "--format", "%i|%T"] if waiting else None
            )

        def read_info(self, string: str | bytes) -> dict[str, dict[str, str]]:
            lines = (string.decode() if isinstance(string, bytes) else string).split()
            states = dict(line.split("|") for line in lines)
            found = {job: states.get(job, _GONE) for job in self._registered}
            return {job: {"State": state} for job, state in found.items()}

        def is_done(self, job_id: str, mode: str = "standard") -> bool:
            return self.get_state(job_id, mode=mode) in {*_ENDED, _GONE}

    def results(job: slurm.SlurmJob[JobReturn]) -> list[JobReturn]:
        try:
            return core.Job.results(job)
        except UncompletedJobError:
            lost = JobReturn()
            lost.status = JobStatus.FAILED
            lost.return_value = RunError(
                f"job {job.job_id} of SLURM ended without a result (state {job.state}). Its output: {job.paths.stderr}"
            )
            # a sweeper raises only the first of them
            print(lost._return_value, flush=True)
            return [lost]

    # of this class are the jobs of an array, whatever class their executor names
    slurm.SlurmJob.watcher = QueueWatcher(delay_s=60)
    slurm.SlurmJob.results = results  # type: ignore[assignment]  # of a job of this class

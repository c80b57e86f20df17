"""SLURM for real: one node on loopback, on which runs and sweeps are signalled, requeued and go on to the same bits.

Debian's packages are unpacked, not installed (an installed ``srun`` changes what Lightning does), and everything runs in
network and process namespaces of its own, which end with this script; that needs root.

    apt-get download slurmctld slurmd slurm-client slurm-wlm-basic-plugins libmunge2 libhwloc15 liblua5.1-0
    for package in *.deb; do dpkg-deb -x $package ROOT; done
    OMP_NUM_THREADS=1 uv run python tests/cluster/slurm.py --slurm ROOT --folder DIR [run | cancel | sweep | lost ...]

run: a run of two phases, five times signalled at a random moment and requeued. cancel: a job that scancel ends for good.
sweep: four jobs with two preemptions and a failure of the node. lost: jobs that leave no result. Ends with status 1 where a
result differs. By hand; docs/scaling.md has date and result. DIR must be new.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.conftest import TINY_RESNET10T
from tests.runs import outcome

PATIENCE_S = 900.0
_INSIDE = "FINETUNE_TEST_SLURM_INSIDE"
_RUN = [
    "data=digits",
    *(word for word in TINY_RESNET10T if not word.startswith("data.batch_size")),
    "data.batch_size=32",
    "schedule=head_then_all",
    "schedule.cache=off",
    "schedule.phases.0.epochs=2",
    "schedule.phases.1.epochs=2",
    "head.drop_rate=0.3",
    "data.augment=standard",
]
_LAUNCHER = [
    "sweep=submitit_slurm",
    *("hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null"),
]


class Cluster:
    """A cluster of this one machine.

    Args:
        root: Folder with the unpacked packages.
        folder: Gets the state and the logs.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self._folder = root, folder
        self._libraries = root / "usr/lib/x86_64-linux-gnu"
        self._conf = folder / "slurm.conf"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Write the configuration and start both daemons."""
        for name in ("state", "spool"):
            (self._folder / name).mkdir(parents=True)
        host = socket.gethostname()
        self._conf.write_text(
            f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/none
CredType=cred/none
# a requeued job waits so long, two minutes by default
AuthInfo=cred_expire=5
PluginDir={self._libraries}/slurm-wlm
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldPidFile={self._folder}/slurmctld.pid
SlurmdPidFile={self._folder}/slurmd.pid
StateSaveLocation={self._folder}/state
SlurmdSpoolDir={self._folder}/spool
SlurmctldLogFile={self._folder}/slurmctld.log
SlurmdLogFile={self._folder}/slurmd.log
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdTimeout=10
KillWait=60
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes=node Default=YES MaxTime=INFINITE State=UP
"""
        )
        os.environ |= {
            "SLURM_CONF": str(self._conf),
            "LD_LIBRARY_PATH": f"{self._libraries}:{self._libraries}/slurm-wlm",
            "PATH": f"{self._root}/usr/bin:{os.environ['PATH']}",
        }
        self._daemon("slurmctld", "-D", "-c")
        self.start_node()

    def start_node(self) -> None:
        """Start the node's daemon, and wait until it takes jobs."""
        self._daemon("slurmd", "-D", "-N", "node", "-d", str(self._root / "usr/sbin/slurmstepd-wlm"))
        wait_for(lambda: output("sinfo", "-h", "-o", "%T") in ("idle", "mixed", "allocated"), "the node is up")

    def fail_node(self) -> None:
        """Kill the node's daemon and all of its jobs without a word, as a power cut does."""
        self.daemons.pop("slurmd").kill()
        for process in Path("/proc").glob("[0-9]*"):
            # one that has just ended has no file, and is no process any more
            with suppress(FileNotFoundError, ProcessLookupError):
                line = (process / "cmdline").read_bytes()
                if b"slurmstepd" in line or b"submitit.core._submit" in line:
                    os.kill(int(process.name), signal.SIGKILL)
        output("scontrol", "update", "nodename=node", "state=down", "reason=power")
        # as after a restart of the machine
        for left in (self._folder / "spool").glob("job*"):
            shutil.rmtree(left)

    def _daemon(self, name: str, *options: str) -> None:
        log = (self._folder / f"{name}.out").open("ab")
        program = self._root / f"usr/sbin/{name}-wlm"
        self.daemons[name] = subprocess.Popen([program, *options], stdout=log, stderr=log)

    def stop(self) -> None:
        """End both daemons."""
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()


def output(*command: str) -> str:
    """Return what a command prints; empty where it fails."""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def wait_for(done: Callable[[], bool], what: str) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.25)


def state(job: str) -> str:
    """Return the state of a job; empty for one that SLURM has forgotten."""
    return output("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")


def submit(folder: Path, run_dir: Path) -> str:
    """Submit the script that people write: start the run, or go on with it."""
    script = folder / f"{run_dir.name}.sh"
    words = " ".join(map(repr, [*_RUN, f"run_dir={run_dir}", "resume=auto"]))
    script.write_text(
        f"#!/bin/bash\n#SBATCH --requeue --open-mode=append --output={folder}/{run_dir.name}.log\n"
        f"srun {sys.executable} -m finetune {words}\n"
    )
    return output("sbatch", "--parsable", str(script))


def strike_runs(folder: Path, draw: random.Random) -> bool:
    """Signal a run five times at random moments, each of its own start; compare it with one that nobody signals."""
    whole = folder / "whole"
    job = submit(folder, whole)
    wait_for(lambda: (whole / "run.json").is_file(), "the run has begun")
    began = time.monotonic()
    wait_for(lambda: state(job) in ("COMPLETED", "FAILED"), "the undisturbed run ends")
    seconds, expected, right = time.monotonic() - began, outcome(whole), True
    for number in range(5):
        name, run_dir = ("USR1", "TERM")[number % 2], folder / f"signalled{number}"
        job = submit(folder, run_dir)
        wait_for((run_dir / "run.json").is_file, "the run has begun")
        after = draw.uniform(0.05, 0.85) * seconds
        time.sleep(after)
        output("scancel", "--signal", name, job)
        wait_for(lambda job=job: state(job) in ("COMPLETED", "FAILED", "CANCELLED", ""), "the run ends")
        log = (folder / f"{run_dir.name}.log").read_text()
        stopped = [line for line in log.splitlines() if line.startswith("stopped ")]
        same = (run_dir / "results.json").is_file() and outcome(run_dir) == expected
        right &= same and len(stopped) == 1
        restarts = output("scontrol", "show", "job", job).partition("Restarts=")[2].split(" ")[0]
        print(
            f"SIG{name} after {after:.1f} s: restarts {restarts}, {stopped}, {'identical' if same else 'DIFFERENT'}",
            flush=True,
        )
    return right


def cancel_run(folder: Path) -> bool:
    """Cancel a job for good: it saves its step, and is not requeued."""
    run_dir = folder / "cancelled"
    job = submit(folder, run_dir)
    wait_for((run_dir / "run.json").is_file, "the run has begun")
    time.sleep(3)
    output("scancel", job)
    wait_for(lambda: state(job) in ("CANCELLED", ""), "the job ends")
    time.sleep(15)
    ended, log = state(job), (folder / "cancelled.log").read_text()
    print(
        f"scancel: {ended}; {[line for line in log.splitlines() if 'stopped ' in line or 'SLURM' in line]}", flush=True
    )
    return ended == "CANCELLED" and "resuming" not in log


def table(sweep: Path) -> list[dict[str, str]]:
    """Return the table of a sweep without what depends on the clock and the folder."""
    with (sweep / "sweep.csv").open(newline="") as file:
        return [
            {key: value for key, value in row.items() if key not in ("seconds", "run")} for row in csv.DictReader(file)
        ]


@contextmanager
def swept(folder: Path, name: str, *more: str) -> Iterator[subprocess.Popen[str]]:
    """Start a sweep of jobs of SLURM."""
    words = [*_RUN, *_LAUNCHER, "seed=0,1,2,3", f"hydra.sweep.dir={folder / name}", *more]
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "finetune", "-m", *words], stdout=log, stderr=log, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _job_of(sweep: Path, number: int) -> str:
    """Return the id of a job of a sweep: they are an array."""
    return next((sweep / ".submitit").glob(f"[0-9]*_{number}")).name


def strike_sweep(folder: Path, cluster: Cluster) -> bool:
    """Preempt two jobs of a sweep and let the node fail once; compare the table with that of a sweep that nobody disturbs."""
    with swept(folder, "calm") as process:
        process.wait(PATIENCE_S)
    sweep = folder / "struck"
    with swept(folder, "struck") as process:
        for number, name in ((0, "USR2"), (1, "TERM")):
            wait_for(
                lambda number=number: bool(list(sweep.glob(f"{number}/phases/*/last.ckpt"))), f"job {number} trains"
            )
            output("scancel", "--signal", name, _job_of(sweep, number))
            print(f"job {number} signalled by SIG{name}", flush=True)
        wait_for(lambda: bool(list(sweep.glob("2/phases/*/last.ckpt"))), "job 2 trains")
        cluster.fail_node()
        time.sleep(3)
        cluster.start_node()
        print("the node has failed, and is back", flush=True)
        status = process.wait(PATIENCE_S)
    records = [json.loads(path.read_text())["status"] for path in sorted((sweep / "jobs").glob("*.json"))]
    same = table(sweep) == table(folder / "calm") and len(table(sweep)) == 4
    bits = all(outcome(sweep / str(n)) == outcome(folder / "calm" / str(n)) for n in range(4)) if same else False
    print(
        f"sweep: status {status}, jobs {records}, table {'the same' if same else 'DIFFERENT'}, bits {bits}", flush=True
    )
    return same and bits and status == 0


def lose_job(folder: Path) -> bool:
    """Cancel a job that runs and one that waits: the launcher ends, and names both."""
    sweep = folder / "lost"
    with swept(folder, "lost", "seed=0,1,2") as process:
        wait_for(lambda: bool(list(sweep.glob("0/phases/*/last.ckpt"))), "job 0 trains")
        for number in (0, 2):
            output("scancel", _job_of(sweep, number))
        status = process.wait(PATIENCE_S)
    said = (folder / "lost.log").read_text()
    print(f"lost: status {status}\n{said[-1500:]}", flush=True)
    records = [json.loads(path.read_text())["status"] for path in sorted((sweep / "jobs").glob("*.json"))]
    named = [number for number in range(3) if f"_{number} of SLURM ended without a result" in said]
    return status == 1 and records == ["stopped", "finished"] and named == [0, 2]


def main(argv: Sequence[str]) -> int:
    """Try what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slurm", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("trials", nargs="*", default=["run", "cancel", "sweep", "lost"])
    given = parser.parse_args(argv)
    if _INSIDE not in os.environ:
        inside = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
        os.environ[_INSIDE] = "1"
        os.execvp(inside[0], [*inside, sys.executable, __file__, *argv])
    # SLURM asks the resolver for addresses as on a machine with a network (AI_ADDRCONFIG)
    for command in ("link set lo up", "address add 10.99.0.1/32 dev lo"):
        subprocess.run(["ip", *command.split()], check=True)
    folder = given.folder.absolute()
    folder.mkdir(parents=True)
    cluster = Cluster(given.slurm.absolute(), folder / "slurm")
    cluster.start()
    trials = {
        "run": lambda: strike_runs(folder, random.Random(given.seed)),
        "sweep": lambda: strike_sweep(folder, cluster),
        "cancel": lambda: cancel_run(folder),
        "lost": lambda: lose_job(folder),
    }
    try:
        results = [trials[name]() for name in given.trials]
        return 0 if all(results) else 1
    finally:
        cluster.stop()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""Two hosts on one machine: torchrun in two network namespaces.

    OMP_NUM_THREADS=1 uv run python tests/cluster/two_hosts.py --folder DIR [cut | restart ...]

cut: the link is cut, which each host tells; then the run goes on with one process and with three. restart: a process is killed,
and torchrun's agents start all of them again, to the bits of a run in which none was. Ends with status 1 where that fails. Needs
root. By hand; docs/scaling.md has date and result. DIR must be new.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.conftest import TINY_RESNET10T
from tests.runs import outcome

HOSTS = {"finetune-a": "10.98.0.1", "finetune-b": "10.98.0.2"}
TIMEOUT_S = 20
_RUN = [
    "data=digits",
    *TINY_RESNET10T,
    "schedule=head_then_all",
    "schedule.cache=off",
    "epochs=1",
    "trainer.accelerator=cpu",
]


def ip(*words: str) -> None:
    """Run a command of iproute2."""
    subprocess.run(["ip", *words], check=True)


def build() -> None:
    """Make two hosts with a cable between them."""
    for name in HOSTS:
        ip("netns", "add", name)
    ip("link", "add", "ab0", "netns", "finetune-a", "type", "veth", "peer", "name", "ab0", "netns", "finetune-b")
    for name, address in HOSTS.items():
        for words in (f"address add {address}/24 dev ab0", "link set ab0 up", "link set lo up"):
            ip("-n", name, *words.split())


def torchrun(
    host: int, folder: Path, *words: str, nodes: int = 2, each: int = 1, restarts: int = 0
) -> "subprocess.Popen[bytes]":
    """Start the documented line on a host."""
    name, own = list(HOSTS.items())[host]
    first = next(iter(HOSTS.values()))
    agent = f"--nnodes {nodes} --nproc-per-node {each} "
    if restarts:
        agent += f"--max-restarts {restarts} --rdzv-backend c10d --rdzv-endpoint {first}:29400 --rdzv-id run --local-addr {own}"
        # both hosts have the name of this machine
        agent += f" --rdzv-conf is_host={1 - host}"
    else:
        agent += f"--node-rank {host} --master-addr {first} --master-port 29500"
    line = [
        "ip",
        "netns",
        "exec",
        name,
        sys.executable,
        "-m",
        "torch.distributed.run",
        *agent.split(),
        "-m",
        "finetune",
        *words,
    ]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "ab0", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder)


def said(folder: Path) -> list[str]:
    """Return what each host has printed."""
    return [(folder / f"{name}.log").read_text() for name in HOSTS]


def begin(folder: Path, run_dir: Path, restarts: int = 0) -> "list[subprocess.Popen[bytes]]":
    """Start a run on both hosts, and return when it is inside its second phase."""
    nodes = ["trainer.num_nodes=2", "trainer.devices=1", "trainer.strategy=ddp", f"trainer.timeout_s={TIMEOUT_S}"]
    line = [*_RUN, *nodes, f"run_dir={run_dir}", "resume=auto"]
    hosts = [torchrun(number, folder, *line, restarts=restarts) for number in (0, 1)]
    while "phase 2 of 2" not in said(folder)[0]:
        time.sleep(0.2)
        assert all(host.poll() is None for host in hosts), said(folder)
    time.sleep(3)
    return hosts


def restart(folder: Path) -> bool:
    """Kill the process of the second host, and compare with a run in which none was killed."""
    assert [host.wait() for host in begin(folder, folder / "whole")] == [0, 0], said(folder)
    hosts = begin(folder, folder / "killed", restarts=3)
    children = Path(f"/proc/{hosts[1].pid}/task/{hosts[1].pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    statuses = [host.wait() for host in hosts]
    same = statuses == [0, 0] and outcome(folder / "killed") == outcome(folder / "whole")
    went_on = [line.strip() for line in said(folder)[0].splitlines() if line.startswith(("resuming", "  continues"))]
    print(f"process killed: statuses {statuses}; {went_on}; {'identical' if same else 'DIFFERENT'}", flush=True)
    return same


def cut(folder: Path) -> bool:
    """Cut the link inside the second phase, and go on with other numbers of processes."""
    hosts = begin(folder, folder / "run")
    ip("-n", "finetune-a", "link", "set", "ab0", "down")
    began = time.monotonic()
    ended = [0.0, 0.0]
    while not all(ended):
        time.sleep(0.1)
        for number, host in enumerate(hosts):
            if host.poll() is not None and not ended[number]:
                ended[number] = time.monotonic() - began
    told = [[line for line in text.splitlines() if "Not heard of" in line] for text in said(folder)]
    print(f"link cut, timeout {TIMEOUT_S} s: ended after {ended[0]:.0f} and {ended[1]:.0f} s; {told}", flush=True)
    ip("-n", "finetune-a", "link", "set", "ab0", "up")
    right = all(told)
    for name, each in (("one", 1), ("three", 3)):
        copy = folder / name
        subprocess.run(["cp", "-r", folder / "run", copy], check=True)
        status = torchrun(0, folder, "resume", str(copy), nodes=1, each=each).wait()
        changed = [line for line in said(folder)[0].splitlines() if " -> " in line or "started with" in line]
        print(f"on {each} processes of one host: status {status}", *changed, sep="\n  ", flush=True)
        right &= status == 0 and (copy / "results.json").is_file()
    return right


def main(argv: Sequence[str]) -> int:
    """Try it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("trials", nargs="*", default=["cut", "restart"])
    given = parser.parse_args(argv)
    folder = given.folder.absolute()
    folder.mkdir(parents=True)
    build()
    try:
        results = [{"cut": cut, "restart": restart}[name](folder) for name in given.trials]
        return 0 if all(results) else 1
    finally:
        for name in HOSTS:
            ip("netns", "delete", name)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""A served model under 32 clients at once: wrong answers, lost requests, memory, times; then killed and started again.

    python -m tests.benchmarks.serve_under_load [NETWORK] [SIZE] [SECONDS]

The clients mix good images of several kinds, bad ones, huge ones (a body above the limit, a small file that claims 16
megapixels) and slow ones (a body that arrives in pieces over two seconds). Each answer is compared with what the network
says of that image to 1e-4. A request is lost when it gets no answer. Memory is the resident set of the server's process, by the
second. The plain loop beside it decodes and classifies one image after another in one process, no HTTP.

Measured with resnet18 at 128 pixels and one thread, on two cores that others used too, 32 clients:

| | 60 s | 180 s |
|---|---|---|
| requests, lost, wrong | 6089, 0, 0 | 12359, 0, 0 |
| memory: after 10 s, most after that, last | 925, 973, 973 MB (+5.2 %) | 980, 1040, 997 MB (+6.2 %) |
| good requests: p50, p99 | 109, 343 ms | 257, 1137 ms |
| good answers a second | 81.5 | 55.3 |
| plain loop: p50, p99, images a second | 17, 39 ms, 43.3 | 33, 45 ms, 28.7 |

Killed three times under 8 clients that retry: 160 asked, 160 right.
"""

import http.client
import io
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from finetune.inference.torch_engine import TorchEngine
from tests.bundles import small_bundle
from tests.export.odd_files import write_files
from tests.export.trained import settled_classifier

CLIENTS = 32
LIMITS = ["--max-upload-mb", "2", "--max-pixels", "4000000", "--upload-seconds", "15"]


class Load:
    """What the clients send, and what they found."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.engine = TorchEngine(bundle)
        files = write_files(folder, 33, smallest=100, largest=500)
        self.good = [Path(file).read_bytes() for file in files]
        with torch.inference_mode():
            self.wanted = [self.engine.classifier(self.engine.read(f)[None]).softmax(1)[0].numpy() for f in files]
        bomb = io.BytesIO()
        Image.new("1", (4000, 4000)).save(bomb, "png")
        self.bad = [b"garbage", self.good[0][: len(self.good[0]) // 2], b"\x89PNG\r\n\x1a\n broken", bomb.getvalue()]
        self.huge = bytes(5_000_000)
        self.found: Counter[str] = Counter()
        self.times: dict[str, list[float]] = {}
        self.faults: list[str] = []
        self._lock = threading.Lock()

    def note(self, kind: str, seconds: float, fault: str = "") -> None:
        with self._lock:
            self.found[kind] += 1
            self.times.setdefault(kind, []).append(seconds)
            if fault:
                self.faults.append(f"{kind}: {fault}")

    def fault(self, at: int, status: int, answer: dict[str, Any]) -> str:
        """Why an answer to a good image is wrong; empty where it is right."""
        if status != 200:
            return f"status {status}, {answer}"
        row, wanted = answer["predictions"][0], self.wanted[at]
        right = row["predicted"] == self.engine.classes[wanted.argmax()]
        return "" if right and abs(row["probability"] - wanted.max()) < 1e-4 else f"{row} is not {wanted.max()}"


def ask(port: int, body: bytes) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/predict", body=body, headers={"Content-Type": "application/octet-stream"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def ask_slowly(port: int, body: bytes) -> tuple[int, dict[str, Any]]:
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        step = max(1, len(body) // 20)
        for at in range(0, len(body), step):
            connection.sendall(body[at : at + step])
            time.sleep(0.1)
        whole = b""
        while part := connection.recv(65536):
            whole += part
    top, _, rest = whole.partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(rest)


def client(load: Load, port: int, until: float, seed: int) -> None:
    chance = random.Random(seed)
    while time.monotonic() < until:
        kind = chance.choices(["good", "bad", "huge", "slow"], [70, 10, 10, 10])[0]
        at, began = chance.randrange(len(load.good)), time.perf_counter()
        try:
            if kind == "good":
                fault = load.fault(at, *ask(port, load.good[at]))
            elif kind == "slow":
                fault = load.fault(at, *ask_slowly(port, load.good[at]))
            elif kind == "bad":
                status, answer = ask(port, chance.choice(load.bad))
                fault = "" if status == 422 and answer["predictions"][0]["error"] else f"{status}, {answer}"
            else:
                status, answer = ask(port, load.huge)
                fault = "" if status == 413 and answer["error"] else f"{status}, {answer}"
        except (OSError, http.client.HTTPException) as error:
            fault = f"LOST: {error!r}"
        load.note(kind, time.perf_counter() - began, fault)


def start(bundle: Path, port: int = 0) -> tuple[subprocess.Popen[str], int]:
    words = ["serve", str(bundle), "--port", str(port), *LIMITS, "--log", os.devnull]
    server = subprocess.Popen([sys.executable, "-m", "finetune", *words], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    while line := server.stdout.readline():
        if found := re.search(r"http://127\.0\.0\.1:(\d+)/predict", line):
            return server, int(found[1])
    raise SystemExit("the server did not start")


def resident(pid: int) -> float:
    """Megabytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def percentiles(times: list[float]) -> str:
    ordered = sorted(times)
    at = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99)]
    return f"p50 {1000 * at[0]:.0f} ms, p99 {1000 * at[1]:.0f} ms"


def under_load(load: Load, bundle: Path, seconds: float) -> None:
    server, port = start(bundle)
    try:
        ask(port, load.good[0])
        until, memory = time.monotonic() + seconds, []
        threads = [threading.Thread(target=client, args=(load, port, until, seed)) for seed in range(CLIENTS)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            memory.append(resident(server.pid))
            time.sleep(1)
        lost = sum("LOST" in fault for fault in load.faults)
        print(f"{CLIENTS} clients, {seconds:.0f} s: {dict(load.found)}, {sum(load.found.values())} requests")
        print(f"lost {lost}, wrong {len(load.faults) - lost} {load.faults[:3]}")
        early, later = memory[:11], memory[10:]
        print(
            f"memory: {memory[0]:.0f} MB at the start, {early[-1]:.0f} after 10 s, then at most {max(later):.0f}, "
            f"last {later[-1]:.0f}: growth after 10 s {100 * (max(later) / early[-1] - 1):.1f} %, "
            f"above the highest of the first 10 s {100 * (max(later) / max(early) - 1):.1f} %"
        )
        for kind, times in sorted(load.times.items()):
            print(f"  {kind:5} {percentiles(times)}")
        rate = (load.found["good"] + load.found["slow"]) / seconds
        print(f"  {rate:.1f} good answers a second")
    finally:
        server.send_signal(signal.SIGTERM)
        print(f"stopped with status {server.wait(60)}")


def plain_loop(load: Load, seconds: float) -> None:
    times: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        data, began = load.good[len(times) % len(load.good)], time.perf_counter()
        load.engine.classify([load.engine.read_bytes(data, "x", max_pixels=10**8)])
        times.append(time.perf_counter() - began)
    print(f"plain loop, batch 1, one client, no HTTP: {percentiles(times)}, {1 / statistics.fmean(times):.1f} a second")


def killed_and_restarted(load: Load, bundle: Path) -> None:
    server, port = start(bundle)
    faults, retried, done = [], Counter[str](), threading.Semaphore(0)

    def insistent(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(20):
            at = chance.randrange(len(load.good))
            while True:
                try:
                    status, answer = ask(port, load.good[at])
                except (OSError, http.client.HTTPException) as error:
                    retried[type(error).__name__] += 1
                    time.sleep(0.2)
                    continue
                if status == 503:
                    retried["503"] += 1
                    time.sleep(0.2)
                    continue
                break
            if fault := load.fault(at, status, answer):
                faults.append(fault)
            done.release()

    threads = [threading.Thread(target=insistent, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        for _ in range(30):
            done.acquire()
        server.kill()
        server.wait()
        server, _ = start(bundle, port)
    for thread in threads:
        thread.join()
    server.send_signal(signal.SIGTERM)
    server.wait(60)
    print(f"killed three times under 8 clients that retry: 160 asked, wrong or missing {len(faults)}, {dict(retried)}")


def main() -> None:
    """Measure and print."""
    name = sys.argv[1] if len(sys.argv) > 1 else "resnet18"
    side = int(sys.argv[2]) if len(sys.argv) > 2 else 128
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 60
    with tempfile.TemporaryDirectory() as folder:
        model = settled_classifier(name=name, size=(side, side))
        bundle = small_bundle(Path(folder) / "bundle", model)
        (Path(folder) / "images").mkdir()
        load = Load(bundle, Path(folder) / "images")
        print(f"{name}, {side} px, {torch.get_num_threads()} thread(s)")
        plain_loop(load, 5)
        under_load(load, bundle, seconds)
        killed_and_restarted(load, bundle)


if __name__ == "__main__":
    main()

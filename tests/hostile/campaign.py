"""Runs cases: each in a fork of a process that has its libraries, watched for memory, time and what it leaves."""

import contextlib
import errno
import gc
import importlib
import itertools
import json
import os
import pkgutil
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import finetune
from finetune.checksums import CHECKSUMS, keep_checksum
from tests.hostile.contents import (
    ANYTHING,
    FOLDER_LINK,
    FORMATS,
    NAMED,
    OUTSIDE_TEXT,
    SECRET,
    SECRET_VARIABLE,
    Kind,
    Place,
    content,
)
from tests.hostile.targets import TARGETS, Target

MOST_BYTES = 10**9
MOST_CPU_S, MOST_WALL_S = 10.0, 180.0
MOST_PROCESSES = 8

# commands, the quickest first
_SLOW = (
    *(
        "cache",
        "runs",
        "sweep-table",
        "init",
        "audit",
        "report",
        "cluster",
        "classify",
        "plan",
        "search",
        "predict",
        "pick",
        "evaluate",
        "embed",
        "serve",
    ),
    *("export", "resume", "lr-find", "ladder", "grow", "train"),
)

# a file that no text of a command may be mistaken for
_BARE = re.compile(r"^[A-Za-z_.]*(Error|Exception|Interrupt|Exit): .*\nRun again with --traceback", re.MULTILINE)


@dataclass(frozen=True)
class Case:
    """A hostile file in the place of a good one."""

    target: Target
    kind: Kind

    @property
    def name(self) -> str:
        """Command, file and way."""
        return f"{self.target.command} {self.target.file}: {self.kind.name}"


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    case: Case
    status: int
    bytes: int
    cpu_s: float
    text: str
    problems: tuple[str, ...]


def cases() -> list[Case]:
    """All of them."""
    return [
        Case(target, kind)
        for target in TARGETS
        for kind in (
            # whoever names a table or a list is shown its cells, wherever a link leads
            *[k for k in ANYTHING if k.name != "a link to a private file" or not _is_shown(target)],
            *([FOLDER_LINK] if _has_own_folder(target) else []),
            *FORMATS[target.form],
        )
    ]


def _is_shown(target: Target) -> bool:
    return target.form in ("image", "csv") or target.file == "list.txt"


def _has_own_folder(target: Target) -> bool:
    """Whether a file lies in a folder that the user does not type, nor may have moved, as the rooms of their cache."""
    folder = Path(target.file).parent
    return (len(folder.parts) > 1 and folder.parts[0] != "cache") or folder.name == "ENTRY"


def lean() -> list[Case]:
    """Every command and every format of a file once, each time with another kind; none that takes long by itself."""
    chosen: list[Case] = []
    every = cases()
    commands, forms, kinds = set[str](), set[str](), set[str]()
    for number, target in enumerate(sorted(TARGETS, key=lambda target: _SLOW.index(target.command))):
        if (target.command in commands and target.form in forms) or target.own_cpu_s:
            continue
        own = [case.kind for case in every if case.target == target]
        new = [kind for kind in own if kind.name not in kinds and not kind.may_pass]
        kind = new[number * 7 % len(new)]
        commands.add(target.command)
        forms.add(target.form)
        kinds.add(kind.name)
        chosen.append(Case(target, kind))
    return chosen


class Campaign:
    """Good files in a folder of its own, and the means to run cases on copies of them."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.material = self.root / "material"

    @classmethod
    @contextlib.contextmanager
    def begun(cls, root: Path | None = None) -> "Iterator[Campaign]":
        """Made in a fork, so that this process starts no threads of libraries."""
        folder = root or Path(tempfile.mkdtemp(prefix="hostile-"))
        folder.mkdir(parents=True, exist_ok=True)
        campaign = cls(folder.resolve())
        with campaign._warmed():
            if not (folder / "made").exists():
                status, _, _, text = campaign._forked(campaign._make, cwd=folder, limit_s=600.0)
                if status != 0:
                    raise RuntimeError(f"the good files could not be made: {text}")
                (folder / "made").touch()
            try:
                yield campaign
            finally:
                if root is None:
                    shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _warmed(self) -> Iterator[None]:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        import lightning.pytorch
        import onnx
        import onnxruntime
        import pyarrow.parquet
        import timm
        import torch

        assert all((lightning.pytorch, onnx, onnxruntime, pyarrow.parquet, timm))
        # what a command imports when it is needed would be imported by every fork again
        for module in pkgutil.walk_packages(finetune.__path__, "finetune."):
            if module.name not in ("finetune.__main__", "finetune.export.client"):
                # where an extra is not installed, a command says so itself
                with contextlib.suppress(ModuleNotFoundError):
                    importlib.import_module(module.name)
        torch.set_num_threads(1)
        # runs collect garbage between phases; what the libraries hold is none
        gc.collect()
        gc.freeze()
        kept = {name: os.environ.get(name) for name in (SECRET_VARIABLE, "FINETUNE_CACHE")}
        os.environ[SECRET_VARIABLE] = SECRET
        try:
            yield
        finally:
            gc.unfreeze()
            for name, value in kept.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    def _make(self) -> int:
        from tests.hostile.material import make_material

        os.environ["FINETUNE_CACHE"] = str(self.material / "cache")
        make_material(self.material)
        return 0

    def run(self, case: Case) -> Outcome:
        """Run a case."""
        folder = Path(tempfile.mkdtemp(dir=self.root, prefix="case-"))
        try:
            return self._run(case, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, case: Case, folder: Path) -> Outcome:
        work, target = folder / "work", case.target
        work.mkdir()
        for name in (*target.folders, "outside"):
            source, copy = self.material / name, work / name
            if name == "elsewhere.png":
                copy.write_bytes((self.material / "data/cat/0.png").read_bytes() + b"x")
            elif source.is_dir():
                shutil.copytree(source, copy)
            else:
                shutil.copy2(source, copy)
        outside = folder / "outside"
        (work / "outside").rename(outside)
        file = work / target.file
        if "ENTRY" in target.file:
            entry = next(
                path
                for path in sorted(file.parents[0].parent.iterdir() if file.name != "ENTRY" else file.parent.iterdir())
            )
            file = entry / file.name if file.name != "ENTRY" else entry
        if target.file.endswith(".job"):
            file.write_text("{}\n")
        mark = folder / "EXECUTED"
        case.kind.make(Place(file=file, mark=mark, outside=outside))
        _forge(file)
        before = _state(outside)
        os.environ["FINETUNE_CACHE"] = str(work / "cache")
        contacted = folder / "CONTACTED"
        status, peak, cpu_s, text = self._forked(
            lambda: _command([target.command, *target.words]),
            cwd=work,
            limit_s=MOST_WALL_S,
            log=folder / "log",
            contacted=contacted,
        )
        problems = _problems(case, status, peak, cpu_s, text, work=work)
        if contacted.exists():
            problems.append(f"contacts {', '.join(dict.fromkeys(contacted.read_text().splitlines()))[:200]}")
        if mark.exists():
            problems.append("foreign code ran")
        if _state(outside) != before:
            problems.append("a file outside was written")
        return Outcome(case, status, peak, cpu_s, text, tuple(problems))

    def _forked(
        self, do: "object", *, cwd: Path, limit_s: float, log: Path | None = None, contacted: Path | None = None
    ) -> tuple[int, int, float, str]:
        """Exit status (negative: killed), bytes beyond this process's own, processor time, what it printed.

        With ``contacted`` no address can be contacted: that file lists those that were tried.
        """
        log = log or self.root / "log"
        own = _resident(os.getpid())
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _become_child(do, cwd, log, contacted)
        status, usage, deadline, why = None, None, time.monotonic() + limit_s, ""
        peak = 0
        serves_since: float | None = None
        looks = itertools.count()
        while status is None:
            pid, code, usage = os.wait4(child, os.WNOHANG)
            if pid:
                status = os.waitstatus_to_exitcode(code)
                break
            peak = max(peak, _resident(child) - own)
            if next(looks) % 20 == 0 and (count := _processes(child)) > MOST_PROCESSES:
                why = f"\n[killed: {count} processes]"
            elif peak > 2 * MOST_BYTES:
                why = "\n[killed: memory]"
            elif time.monotonic() > deadline:
                why = "\n[killed: time]"
            if why:
                os.killpg(child, signal.SIGKILL)
                _, code, usage = os.wait4(child, 0)
                status = os.waitstatus_to_exitcode(code)
                break
            # a server that has taken its file serves until it is stopped, and takes signals soon after it says so
            if serves_since is None and log.exists() and log.read_bytes()[:8] == b"serving ":
                serves_since = time.monotonic()
            if serves_since is not None and time.monotonic() > serves_since + 2:
                os.kill(child, signal.SIGTERM)
                serves_since = float("inf")
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        assert usage is not None
        peak = max(peak, usage.ru_maxrss * 1024 - own)
        with log.open("rb") as file:
            text = file.read(200_000).decode("utf-8", "replace")
        return status, peak, usage.ru_utime + usage.ru_stime, text + why


def _command(words: Sequence[str]) -> int:
    from finetune.cli import main

    return main(list(words))


def _refuse_addresses(contacted: Path) -> None:
    """Refuse every address and every name of a server to this process and its forks, and list them."""

    def watch(event: str, given: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            if given[0].family not in (socket.AF_INET, socket.AF_INET6):
                return
            address = str(given[-1])
        elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
            # of this machine's own a server asks where it binds
            if given[0] in (None, "", "127.0.0.1", "localhost", "::1", socket.gethostname()):
                return
            address = str(given[0])
        else:
            return
        with contacted.open("a") as file:
            file.write(f"{address}\n")
        raise OSError(errno.ENETUNREACH, "the corpus contacts nothing")

    sys.addaudithook(watch)


def _become_child(do: "object", cwd: Path, log: Path, contacted: Path | None) -> None:
    status = 99
    try:
        if contacted is not None:
            _refuse_addresses(contacted)
        os.setsid()
        os.chdir(cwd)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(descriptor, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 (this process is about to end)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        status = do()  # type: ignore[operator]
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def _processes(session: int) -> int:
    """Return how many processes a case has: the memory of the first is measured, so that more must be few."""
    count = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with (
                contextlib.suppress(OSError),
                open(f"/proc/{entry.name}/stat", encoding="ascii", errors="replace") as file,
            ):
                # after the name in brackets, which may hold anything: state, parent, group, session
                count += int(file.read().rpartition(")")[2].split()[3]) == session
    return count


def _forge(file: Path) -> None:
    """Write a hostile file's checksum too, as whoever made it would; what is no small file has none."""
    kept = file.parent / CHECKSUMS
    ordinary = file.name != CHECKSUMS and file.is_file() and not file.is_symlink() and file.stat().st_size < 2**26
    if ordinary and kept.is_file() and file.name in json.loads(kept.read_text()):
        keep_checksum(file)


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    """Names, sizes and times below a folder."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


def _problems(case: Case, status: int, peak: int, cpu_s: float, text: str, *, work: Path) -> list[str]:
    found = []
    if "[killed" in text[-30:]:
        found.append(text[-30:].split("\n")[-1].strip("[]"))
    elif status not in (0, 1, 2):
        found.append(f"exit status {status}")
    if "Traceback (most recent call last)" in text:
        found.append("a traceback")
    if _BARE.search(text):
        found.append("a bare Python error: " + _BARE.search(text).group(0).splitlines()[0][:100])  # type: ignore[union-attr]
    needed = case.target.needed and not case.kind.may_pass
    if not case.target.builds and case.kind.name in NAMED:
        needed = False
    if status == 0 and needed:
        found.append("accepted")
    if status in (1, 2) and not _BARE.search(text) and not _names(case, text):
        found.append(
            "does not name the file: " + text.strip().splitlines()[-1][:120] if text.strip() else "says nothing"
        )
    if peak > MOST_BYTES:
        found.append(f"{peak / 1e6:.0f} MB")
    if cpu_s > MOST_CPU_S + case.target.own_cpu_s:
        found.append(f"{cpu_s:.0f} s of the processor")
    if any(ord(c) < 32 and c not in "\n\r\t" for c in text):
        found.append("control characters on the terminal")
    for what, secret in (("environment", SECRET), ("private file", OUTSIDE_TEXT)):
        if secret in text:
            found.append(f"prints of the {what}")
        found += [f"writes of the {what} into {path.name}" for path in _holders(work, secret)]
    return found


def _names(case: Case, text: str) -> bool:
    target = case.target
    path = Path(target.file)
    words = [path.name, str(path)]
    if case.kind is FOLDER_LINK:
        words.append("/".join(path.parts[1:-1]))
    if target.form == "image":
        words += ["data.root", "data/cat"]
    if target.form == "csv":
        # a damaged row names a file that is not there
        words += ["data/"]
    if path.name == "config.yaml":
        # a setting of it that may be given anew is named by its key
        words += ["data.root=", "trainer.devices="]
    if target.command == "audit":
        # a table that can be read, with findings: a flipped bit may make another label of one
        words += ["ERROR: "]
    return any(word in text for word in words)


def _holders(work: Path, secret: str) -> list[Path]:
    found = []
    for path in work.rglob("*"):
        if path.is_symlink() or not path.is_file() or path.stat().st_size > 20_000_000:
            continue
        if secret.encode() in path.read_bytes():
            found.append(path)
    return found


__all__ = ["Campaign", "Case", "Outcome", "cases", "content"]

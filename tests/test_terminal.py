"""What the program says never moves the cursor, colours the screen or names the window, whatever files and classes are called."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.cli import COMMANDS, main
from finetune.errors import RunError
from finetune.terminal import GuardedStream, escape, guarded_output
from tests.conftest import TINY, write_images

CONTROL = {*range(0x20), 0x7F, *range(0x80, 0xA0)} - {ord("\n"), ord("\t")}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes and an unreadable file whose names would clear the screen, colour it and name the window."""
    root = tmp_path_factory.mktemp("hostile") / "pictures\x1b[2J"
    for number, name in enumerate(("cat\x1b[31m", "dog\x9b7m\x07")):
        write_images(root / name, count=12, hue=(60 + 60 * number, 60, 90), seed=number)
        for image in sorted((root / name).iterdir()):
            image.rename(image.with_name(f"\x1b]0;owned\x07{image.name}"))
        (root / name / "bad\x1b[1A.png").write_bytes(b"not a picture")
    return root


def harmless(text: str) -> bool:
    return not CONTROL & set(map(ord, text))


def test_no_command_passes_a_control_character_of_a_name_to_the_terminal(
    hostile: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "pool\x1b[31m", count=2, hue=(200, 60, 90), seed=7)
    data = ["data=folder", f"data.root='{hostile}'", "data.on_unreadable=skip"]
    words = [*data, *TINY, "schedule=frozen", "schedule.phases.0.epochs=1", "report=true", "run_dir='run\x1b[31m'"]
    run, images = "run\x1b[31m", str(hostile / "cat\x1b[31m")
    commands: dict[str, list[list[str]]] = {
        "plan": [words[:-1]],
        "audit": [data],
        "train": [words, [*words, "seed=1\x1b[31m"], ["data=folder", "data.root='no\x1b[31m'"]],
        "resume": [[run], ["no\x1b[31m"], [run, "seed=\x1b[31m"]],
        "grow": [[run, *data], [run, "data=folder", "data.root='no\x1b[31m'"], ["no\x1b[31m", *data]],
        "evaluate": [[run, "--at-least", "acc=0"]],
        "report": [[run]],
        "predict": [[run, images, "--output", "p\x1b[31m.csv", "--sheet", "s\x1b[31m.html", "--excel"]],
        "pick": [[run, "pool\x1b[31m", "-n", "1", "--output", "l\x1b[31m.csv", "--sheet", "l\x1b[31m.html"]],
        "embed": [[run, images, "--output", "e.npz"], [run, "--output", "own.npz"]],
        "search": [["own.npz", "--radius", "0.1"], ["e.npz", images, "-k", "2"]],
        "cluster": [["own.npz", "--clusters", "2"]],
        "classify": [["own.npz"]],
        "export": [[run, "--format", "head", "--output", "head\x1b[31m.safetensors"], [run, "--format", "\x1b[31m"]],
        "cache": [["list"], ["\x1b[31m"]],
        "lr-find": [[*words[:-1], "--steps", "10"]],
        "runs": [["list", "."], ["compare", run, run], ["clean", ".", "--yes"], ["no\x1b[31m"], ["compare", run]],
        "init": [[str(hostile)], ["no\x1b[31m"]],
        "settings": [["lr"], ["no\x1b[31m"]],
        "sweep-table": [["no\x1b[31m"]],
        # these take minutes, or do not end: what they say of what they are given
        "ladder": [["data=folder", "data.root='no\x1b[31m'", "--output", "l\x1b[31m"]],
        "serve": [["no\x1b[31m"]],
    }
    assert set(commands) == set(COMMANDS)
    ended = {}
    for command, calls in commands.items():
        for call in calls:
            status = main([command, *call])
            said = capfd.readouterr()
            ended.setdefault(command, status)
            assert harmless(said.out), (command, call, said.out)
            assert harmless(said.err), (command, call, said.err)
            assert said.out or said.err, (command, call)
    # the first call of each does its work; an audit that finds errors ends with 1
    assert {command: status for command, status in ended.items() if status} == {
        "audit": 1,
        "grow": 2,
        "sweep-table": 2,
        "ladder": 2,
        "serve": 2,
    }


def test_a_stream_without_a_character_gets_it_spelled_out() -> None:
    raw = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    print("Zürich … 猫 \udcff", file=GuardedStream(raw, "standard output"), flush=True)  # type: ignore[arg-type]
    assert raw.buffer.getvalue() == "Zürich \\u2026 \\u732b \\udcff\n".encode("latin-1")


def test_marks_that_turn_the_direction_of_writing_are_spelled_out() -> None:
    assert escape("photo\u202egpj.exe") == "photo\\u202egpj.exe"


def test_a_guard_is_taken_off_at_the_end() -> None:
    before = sys.stdout, sys.stderr
    with guarded_output():
        assert (sys.stdout, sys.stderr) != before
    assert (sys.stdout, sys.stderr) == before


def test_an_output_that_the_disk_does_not_take_is_named() -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunError, match=r"standard output: cannot be written\. No space left on device\."):
        print("text", file=GuardedStream(Full(), "standard output"), flush=True)  # type: ignore[arg-type]


def test_a_closed_output_is_no_error_and_its_number_goes_to_no_file(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from finetune.terminal import open_missing_streams\n"
        "open_missing_streams()\n"
        "print('lost')\n"
        f"file = open({str(tmp_path / 'kept')!r}, 'w')\n"
        "os.write(1, b'of a library')\n"
        "file.write('whole')\n"
        "assert file.fileno() > 2\n"
    )
    command = f'"{sys.executable}" -c "$CODE" <&- >&- 2>&-'
    ended = subprocess.run(["sh", "-c", command], env={**os.environ, "CODE": code}, check=False)
    assert ended.returncode == 0
    assert (tmp_path / "kept").read_text() == "whole"

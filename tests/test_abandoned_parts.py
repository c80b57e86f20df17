"""What a killed process leaves of a file that it was writing is gone at the next write or start."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.atomic_files import PART, atomic_path, remove_parts, replace_folder, work_folder, write_text
from finetune.safetensors_writer import write_tensors

FORK = multiprocessing.get_context("fork")


def writing(target: Path, *, die: bool) -> multiprocessing.process.BaseProcess:
    """A process that is in the middle of a file, or was killed there."""
    begun = FORK.Event()

    def write() -> None:
        with atomic_path(target) as part:
            write_tensors(part, {"weights": torch.zeros(1000)})
            begun.set()
            time.sleep(60)

    process = FORK.Process(target=write)
    process.start()
    assert begun.wait(30)
    if die:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["model.safetensors", "[a].b*?.csv"])
def test_the_next_write_of_a_file_removes_what_a_killed_process_left_of_it(name: str, tmp_path: Path) -> None:
    writing(tmp_path / name, die=True)
    assert len(names(tmp_path)) == 1
    write_text(tmp_path / name, "whole")
    assert names(tmp_path) == [name]


def test_a_start_removes_what_killed_processes_left_in_all_folders(tmp_path: Path) -> None:
    writing(tmp_path / "model" / "model.safetensors", die=True)
    writing(tmp_path / "phases" / "0-head" / "last.ckpt", die=True)
    # as versions before named it
    (tmp_path / f".old.json.999999999{PART}").touch()
    remove_parts(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_part_of_a_process_that_lives_is_left_alone(tmp_path: Path) -> None:
    process = writing(tmp_path / "model.safetensors", die=False)
    write_text(tmp_path / "model.safetensors", "of another process")
    remove_parts(tmp_path)
    assert len(names(tmp_path)) == 2
    process.kill()
    process.join(30)
    remove_parts(tmp_path)
    assert names(tmp_path) == ["model.safetensors"]


def test_a_link_in_the_place_of_a_part_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with atomic_path(tmp_path / "report.html") as part:
        part.touch()
    part.symlink_to("mine")
    write_text(tmp_path / "report.html", "of the run")
    assert ((tmp_path / "mine").read_text(), names(tmp_path)) == ("mine", ["mine", "report.html"])


def killed(do: Callable[[], None]) -> None:
    """Do something in a process that kills itself on the way."""
    process = FORK.Process(target=do)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("start", ["the next one", "a run"])
def test_what_a_killed_process_made_in_a_folder_is_gone_at_the_next_start(start: str, tmp_path: Path) -> None:
    def make() -> None:
        with work_folder(tmp_path / "web") as work:
            (work / "web").mkdir()
            (work / "web" / "model.onnx").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    killed(make)
    assert len(names(tmp_path)) == 1
    if start == "a run":
        remove_parts(tmp_path)
    else:
        with work_folder(tmp_path / "web") as work:
            assert list(work.iterdir()) == []
    assert names(tmp_path) == []


@pytest.mark.parametrize("start", ["the next one", "a run"])
def test_a_folder_that_a_killed_process_was_replacing_comes_back(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, whole = tmp_path / "web", os.replace
    target.mkdir()
    (target / "model.onnx").write_text("earlier")

    def dies(source: Path, destination: Path) -> None:
        if destination == target:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(source, destination)

    def make() -> None:
        with work_folder(target) as work:
            (work / "web").mkdir()
            replace_folder(work / "web", target)

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", dies)
        killed(make)
    assert not target.exists()
    if start == "a run":
        remove_parts(tmp_path)
    else:
        with work_folder(target):
            pass
    assert names(tmp_path) == ["web"]
    assert (target / "model.onnx").read_text() == "earlier"


def test_the_part_of_another_machine_is_left_until_nobody_has_written_to_it_for_a_day(tmp_path: Path) -> None:
    part = tmp_path / f".last.ckpt.elsewhere-1{PART}"
    part.touch()
    remove_parts(tmp_path)
    assert part.exists()
    os.utime(part, (time.time() - 90_000,) * 2)
    remove_parts(tmp_path)
    assert not part.exists()


def test_a_safetensors_file_is_the_one_that_the_library_writes(tmp_path: Path) -> None:
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    tensors = {f"t{n}": torch.arange(n + 3).to(t) for n, t in enumerate((*types, torch.int8, torch.uint8, torch.bool))}
    tensors |= {
        "scalar": torch.ones(()),
        "none": torch.zeros(0, 3),
        "a.weight": torch.randn(4, 3, 2),
        "\u00e9": torch.ones(2),
    }
    for metadata in (None, {"finetune": '{"classes": ["cat", "\u732b"]}'}):
        write_tensors(tmp_path / "ours", tensors, metadata=metadata)
        save_file(tensors, tmp_path / "theirs", metadata=metadata)
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    found = load_file(tmp_path / "ours")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    # laid out otherwise in memory, as a transposed matrix is
    write_tensors(tmp_path / "ours", {"x": torch.arange(6).reshape(2, 3).T})
    assert load_file(tmp_path / "ours")["x"].tolist() == [[0, 3], [1, 4], [2, 5]]

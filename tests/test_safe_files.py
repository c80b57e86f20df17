"""Files that are not what they look like are refused before they are read."""

import io
import json
import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune.errors import FileError, UserError
from finetune.models.weights import read_metadata
from finetune.safe_files import (
    MOST_CONTAINERS,
    check_zip,
    checked_yaml,
    inside,
    load_tensors,
    open_regular,
    parse_json,
    read_json,
    read_text,
    tensor_shapes,
)
from finetune.training.callbacks.checkpoints import read_checkpoint


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket may have 107 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(here)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_pipe, "a named pipe"),
        (_socket, "cannot be opened"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (lambda path: path.mkdir(), "a folder"),
        (lambda path: path.symlink_to(path), "cannot be opened"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 2**40), "too large"),
        (lambda path: None, "no such file"),
    ],
    ids=["pipe", "socket", "device", "folder", "loop", "sparse", "missing"],
)
def test_what_is_no_ordinary_file_is_refused_without_reading_it(tmp_path, make, says):
    path = tmp_path / "x.json"
    make(path)
    for read in (read_text, open_regular, lambda p: read_json(p, dict)):
        if read is open_regular and says == "too large":
            continue
        with pytest.raises(UserError, match=says) as error:
            read(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "{",
            "NaN",
            '{"a": Infinity}',
            '{"a": -Infinity}',
            '{"a": 1e999}',
            "[" * 200_000,
            "[]",
            "null",
            "1",
            '"x"',
        ),
        *('{"a":' * 100_000, "1" * 5000, '{"a": "\\ud800"}', "[" + "[]," * MOST_CONTAINERS + "1]", "\x00" * 100),
    ],
    ids=lambda text: text[:12],
)
def test_json_that_is_no_plain_object_is_refused_in_words(text):
    with pytest.raises(UserError, match=r"x\.json: damaged\. "):
        parse_json(text, dict, name="x.json")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "x.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match=r"not UTF-8 text \(byte 7\)"):
        read_json(tmp_path / "x.json", dict)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &x [1]\nb: [*x, *x]", "refers to another place"),
        ("a: !!python/object/apply:os.mkdir [x]", "names a type"),
        ("[" * 1000, "nested deeper"),
        ("a: [1", "not valid YAML"),
        ("a: \x07", "not valid YAML"),
    ],
)
def test_yaml_that_could_grow_or_name_types_is_refused(text, says):
    with pytest.raises(UserError, match=says):
        checked_yaml(text, name="config.yaml")


def test_a_file_that_leads_out_of_its_folder_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "outside").write_text("{}")
    (tmp_path / "run" / "a.json").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="leads out of the run folder"):
        inside(tmp_path / "run", "a.json")
    (tmp_path / "linked").symlink_to(tmp_path / "run")
    (tmp_path / "run" / "b.json").write_text("{}")
    assert read_json(inside(tmp_path / "linked", "b.json"), dict) == {}


def test_a_checkpoint_whose_members_are_compressed_is_refused(tmp_path):
    whole = io.BytesIO()
    torch.save({"a": torch.zeros(4)}, whole)
    (tmp_path / "good.ckpt").write_bytes(whole.getvalue())
    check_zip(tmp_path / "good.ckpt")
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(50_000_000) if "/data/" in name else old.read(name))
    with pytest.raises(UserError, match="compressed"):
        check_zip(tmp_path / "bomb.ckpt")


def test_a_safetensors_file_whose_header_lies_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    for header in ({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, {"a": 1}, []):
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        for read in (load_tensors, tensor_shapes):
            with pytest.raises(UserError, match=r"x\.safetensors: not a safetensors file"):
                read(path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file whose bytes the system refuses, on Linux alone")
@pytest.mark.parametrize("read", [lambda path: read_text(path), lambda path: check_zip(path)])
def test_a_file_that_the_disk_does_not_give_back_is_named(read: Callable[[str], object]) -> None:
    # reading the first page of a process's own memory is an input/output error
    with pytest.raises(FileError, match=r"^/proc/self/mem: could not be read, the disk reports an input/output error"):
        read("/proc/self/mem")


def test_an_archive_that_the_disk_stops_giving_back_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.ckpt")

    def fail(file: object, *args: object) -> None:
        raise FileError("x.ckpt: could not be read, the disk reports an input/output error")

    monkeypatch.setattr("zipfile.ZipFile.__init__", fail)
    with pytest.raises(FileError, match=r"^x\.ckpt: could not be read"):
        check_zip(tmp_path / "x.ckpt")


def test_a_checkpoint_for_which_there_is_no_memory_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.ckpt")

    def fail(*args: object, **more: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 73728 bytes.")

    monkeypatch.setattr("torch.load", fail)
    with pytest.raises(FileError, match=r"x\.ckpt: could not be read, the system has no memory left\. Free memory\.$"):
        read_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize("name", [None, "backbone.weights='x'"])
def test_a_safetensors_file_that_cannot_be_opened_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    import safetensors.torch

    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2)}, path)

    def fail(*args: object, **settings: object) -> None:
        # whatever the system's answer was, input/output errors among them
        raise FileNotFoundError(f"No such file or directory: {path}")

    monkeypatch.setattr("safetensors.torch.load_file", fail)
    with pytest.raises(FileError, match=r"could not be opened, though it is there.*input/output error"):
        load_tensors(path, name=name)


@pytest.mark.parametrize("read", [load_tensors, tensor_shapes, read_metadata])
def test_a_safetensors_file_of_countless_tensors_is_refused_before_its_header_is_parsed(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    header = json.dumps(
        {str(n): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(100_000)}
    ).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match=r"x\.safetensors'?: is not a file of a network. Its header of [\d,]+ bytes"):
        read(tmp_path / "x.safetensors")

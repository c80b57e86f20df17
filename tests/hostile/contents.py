"""What a hostile file holds, by the format of the file whose place it takes."""

import io
import json
import operator
import os
import pickle
import random
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

SECRET_VARIABLE, SECRET = "HOSTILE_SECRET", "s3cr3t-9f2c41d07b"
OUTSIDE_TEXT = "private-text-of-another-file-77ab"


@dataclass(frozen=True)
class Place:
    """Where a case happens.

    Args:
        file: The file to replace; it holds what it should.
        mark: A folder that exists once foreign code has run.
        outside: A folder that must stay as it is.
    """

    file: Path
    mark: Path
    outside: Path


@dataclass(frozen=True)
class Kind:
    """A way to be hostile.

    Args:
        name: Of the way.
        make: Puts it in the place of a file.
        may_pass: Whether a command may end well on it, because it may be as good as the file it replaces.
    """

    name: str
    make: Callable[[Place], None]
    may_pass: bool = False


class Payload:
    """What a pickle can do when it is read: here it only leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def replace(file: Path, content: bytes | str) -> None:
    """Another content under the same name; a hard link elsewhere keeps the old one."""
    file.unlink(missing_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def content(name: str, what: bytes | str | Callable[[Place], bytes | str], *, may_pass: bool = False) -> Kind:
    """A kind that is a content."""
    return Kind(name, lambda place: replace(place.file, what(place) if callable(what) else what), may_pass)


def _torch_bytes(value: Any, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def _link(target: str) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        place.file.unlink()
        place.file.symlink_to(target)

    return make


def _link_outside(place: Place) -> None:
    """The same content, in a private file elsewhere, with a text that must not be shown."""
    target = place.outside / f"private{place.file.suffix}"
    target.write_text(OUTSIDE_TEXT + "\n")
    place.file.unlink()
    place.file.symlink_to(target)


def _pipe(place: Place) -> None:
    place.file.unlink()
    os.mkfifo(place.file)


def _socket(place: Place) -> None:
    place.file.unlink()
    here = os.getcwd()
    os.chdir(place.file.parent)  # the path of a socket may have 107 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place.file.name)
    os.chdir(here)


def _folder(place: Place) -> None:
    place.file.unlink()
    place.file.mkdir()


def _sparse(size: int, *, keep: bool = False) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        replace(place.file, place.file.read_bytes() if keep else b"")
        os.truncate(place.file, size)

    return make


def _flipped(at: float) -> Callable[[Place], bytes]:
    def change(place: Place) -> bytes:
        data = bytearray(place.file.read_bytes())
        if data:
            data[int(at * (len(data) - 1))] ^= 0x10
        return bytes(data)

    return change


def _zip_bomb(place: Place) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number in range(4):
            archive.writestr(f"{number}.npy", bytes(50_000_000))
    return buffer.getvalue()


def _linked_folder(place: Place) -> None:
    """The same file, in a folder elsewhere that the folder's name leads to."""
    folder = place.file.parent
    elsewhere = place.outside / folder.name
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)


# for files below a folder that nobody types
FOLDER_LINK = Kind("its folder is a link", _linked_folder, may_pass=True)

ANYTHING = [
    content("empty", b""),
    content("truncated to a half", lambda place: place.file.read_bytes()[: place.file.stat().st_size // 2]),
    content("without its last byte", lambda place: place.file.read_bytes()[:-1], may_pass=True),
    content("one bit flipped in the middle", _flipped(0.5), may_pass=True),
    content("one bit flipped near the end", _flipped(0.97), may_pass=True),
    content("one bit flipped near the start", _flipped(0.02), may_pass=True),
    content("a pickle", lambda place: pickle.dumps(Payload(place.mark))),
    content("a pickle of protocol 0", lambda place: pickle.dumps(Payload(place.mark), protocol=0)),
    content("a pickle in torch's archive", lambda place: _torch_bytes({"state_dict": {"a": Payload(place.mark)}})),
    content("a pickle in torch's old form", lambda place: _torch_bytes({"a": Payload(place.mark)}, legacy=True)),
    content("random bytes", random.Random(0).randbytes(5000)),
    content("zeros", bytes(5000)),
    content("text that is not UTF-8", b'{"a": "\xff\xfe\xc3\x28"}\n\xff,\xfe\n'),
    content("a zip bomb", _zip_bomb),
    content("a web page", "<!doctype html><title>404</title><script>alert(1)</script>"),
    content("control characters", "\x1b]0;owned\x07\x1b[2J\x1b[31m,\x00\x08\n" * 20),
    Kind("a link to a private file", _link_outside),
    Kind("a link to /dev/zero", _link("/dev/zero")),
    Kind("a link to /dev/random", _link("/dev/urandom")),
    Kind("a link to itself", lambda place: _link(place.file.name)(place)),
    Kind("a link to nothing", _link("nowhere")),
    Kind("a named pipe", _pipe),
    Kind("a socket", _socket),
    Kind("a folder", _folder),
    Kind("100 GB of nothing", _sparse(100 * 10**9)),
    Kind("itself and 100 GB of nothing", _sparse(100 * 10**9, keep=True)),
]


def _json(place: Place) -> Any:
    return json.loads(place.file.read_text())


def _edited(change: Callable[[Any], None]) -> Callable[[Place], str]:
    def make(place: Place) -> str:
        values = _json(place)
        change(values)
        return json.dumps(values)

    return make


def _every_leaf(value: Any, new: Any) -> Any:
    """The same structure with every leaf replaced."""
    if isinstance(value, dict):
        return {key: _every_leaf(inner, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [_every_leaf(inner, new) for inner in value]
    return new


def _every_number(value: Any, new: Any) -> Any:
    if isinstance(value, dict):
        return {key: _every_number(inner, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [_every_number(inner, new) for inner in value]
    return new if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _every_text(value: Any, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _every_text(inner, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [_every_text(inner, new) for inner in value]
    return new if isinstance(value, str) else value


def _first_level(new: Any) -> Callable[[Place], str]:
    def make(place: Place) -> str:
        values = _json(place)
        changed = [new for _ in values] if isinstance(values, list) else dict.fromkeys(values, new)
        if isinstance(changed, dict) and "format" in changed:
            changed["format"] = values["format"]
        return json.dumps(changed)

    return make


def _keeping_format(change: Callable[[Any, Any], Any], new: Any) -> Callable[[Place], str]:
    def make(place: Place) -> str:
        values = _json(place)
        changed = change(values, new)
        if isinstance(changed, dict) and "format" in changed:
            changed["format"] = values["format"]
        return json.dumps(changed)

    return make


def _without_first_key(place: Place) -> str:
    values = _json(place)
    if isinstance(values, list):
        return json.dumps(values[1:])
    keys = [key for key in values if key != "format"]
    del values[keys[0]]
    return json.dumps(values)


JSON = [
    content("brackets without end", "[" * 200_000),
    content("tables without end", '{"a":' * 100_000),
    content("ten million lists", "[" + "[]," * 10_000_000 + "0]"),
    content("null", "null"),
    content("an empty table", "{}"),
    content("an empty list", "[]"),
    content("a text", '"text"'),
    content("a number of 5,000 digits", "1" * 5000),
    content("half a surrogate", '{"format": 1, "a": "\\ud800"}'),
    content("NaN in every number", _keeping_format(_every_number, float("nan"))),
    content(
        "infinity in every number", lambda place: _keeping_format(_every_number, -77)(place).replace("-77", "1e999")
    ),
    content("minus one in every number", _keeping_format(_every_number, -1), may_pass=True),
    content("a vast number in every number", _keeping_format(_every_number, 10**15), may_pass=True),
    content("null in every leaf", _keeping_format(_every_leaf, None), may_pass=True),
    content("a list in every leaf", _keeping_format(_every_leaf, []), may_pass=True),
    content("a text in every leaf", _keeping_format(_every_leaf, "x"), may_pass=True),
    content("null under every key", _first_level(None), may_pass=True),
    content("a list under every key", _first_level([]), may_pass=True),
    content("a table under every key", _first_level({}), may_pass=True),
    content("a text under every key", _first_level("x"), may_pass=True),
    content("a number under every key", _first_level(1), may_pass=True),
    content("control characters in every text", _keeping_format(_every_text, "\x1b[2J\x07\x00"), may_pass=True),
    content(
        "a path that leads out in every text", _keeping_format(_every_text, "../../../../outside/x"), may_pass=True
    ),
    content(
        "an interpolation in every text",
        _keeping_format(_every_text, "${oc.env:" + SECRET_VARIABLE + "}"),
        may_pass=True,
    ),
    content("without its first key", _without_first_key, may_pass=True),
]


def _model(change: Callable[[dict[str, Any]], None], name: str) -> Kind:
    return content(name, _edited(change))


def _spec(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda v: v["model"]["input_spec"].update(values)


def _million_classes(values: dict[str, Any]) -> None:
    values["model"]["classes"] = [str(number) for number in range(1_000_000)]
    values["model"]["head"]["num_classes"] = 1_000_000


MODEL_JSON = [
    _model(_spec(mean=[float("nan")] * 3), "a mean of NaN"),
    _model(lambda v: v["model"]["input_spec"].update(std=[1e-300] * 3), "a deviation of almost nothing"),
    _model(_spec(size=[100_000, 100_000]), "an input of 100,000 x 100,000 pixels"),
    _model(_spec(size=[2**40, 1]), "an input of 2^40 rows"),
    _model(_spec(size=["32", "32"]), "an input size of texts"),
    _model(_spec(size=[32.5, 32.5]), "an input size of half pixels"),
    _model(_spec(size=[True, True]), "an input size of truths"),
    _model(_spec(size=32), "an input size that is no list"),
    _model(_spec(crop_pct=1e-9), "a crop of a billionth"),
    _model(_spec(crop_pct="x"), "a crop of a text"),
    _model(_spec(channels=10**9), "a billion channels"),
    _model(_spec(channels="3"), "channels of a text"),
    _model(_spec(mean=["a", "b", "c"]), "a mean of texts"),
    _model(_spec(mean=[1e30] * 3), "a vast mean"),
    _model(_spec(mean=None), "a mean of null"),
    _model(lambda v: v["model"]["head"].update(num_features=10_000_000), "a head of ten million features"),
    _model(lambda v: v["model"]["head"].update(name="mlp", hidden=9_000_000), "a head of nine million hidden units"),
    _model(lambda v: v["model"]["head"].update(name=["linear"]), "a head's name that is a list"),
    _model(lambda v: v["model"]["head"].update(drop_rate="x"), "a head's drop rate that is a text"),
    _model(lambda v: v["model"]["head"].update(evil=1), "a head with an unknown keyword"),
    _model(_million_classes, "a million classes"),
    _model(lambda v: v["model"].update(classes=["a", {"b": 1}, None]), "class names that are none"),
    _model(lambda v: v["model"]["backbone"].update(name="../../../outside"), "a network's name that leads out"),
    _model(lambda v: v["model"]["backbone"].update(name=7), "a network's name that is a number"),
    _model(
        lambda v: v["model"]["backbone"].update(source="timm", name="resnet18", kwargs={"base_width": 10**6}),
        "a network a million wide",
    ),
    _model(
        lambda v: v["model"]["backbone"].update(source="timm", name="resnet18", kwargs={"layers": [1000] * 4}),
        "a network of four thousand blocks",
    ),
    _model(
        lambda v: v["model"]["backbone"].update(source="timm", name="vit_giant_patch14_clip_224", kwargs={}),
        "a network of a billion weights",
    ),
    _model(
        lambda v: v["model"]["backbone"].update(source="timm", name="resnet18", kwargs={"act_layer": "os.system"}),
        "an activation that is code",
    ),
    _model(
        lambda v: v["model"]["backbone"].update(
            source="timm", name="resnet18", kwargs={"checkpoint_path": "/tmp/x.pth"}
        ),
        "a path to a checkpoint",
    ),
    _model(
        lambda v: v["model"]["backbone"].update(
            source="timm", name="resnet18", kwargs={"pretrained_cfg": {"url": "http://127.0.0.1:9"}}
        ),
        "an address",
    ),
    _model(lambda v: v["model"]["backbone"].update(kwargs={"_target_": "os.mkdir"}), "a target as a keyword"),
    _model(
        lambda v: v["model"]["backbone"]["input_spec"].update(mean=[float("inf")] * 3), "a backbone's mean of infinity"
    ),
    _model(lambda v: v["model"].update(adapt="os.system"), "an adaptation that does not exist"),
    _model(lambda v: v["model"].update(multi_label="yes"), "several labels as a text"),
    _model(lambda v: v.update(format=99), "a format of the future"),
    _model(lambda v: v.update(weights_sha256=7), "a hash that is a number"),
]

_MKDIR = "os.mkdir"


def _yaml(change: Callable[[dict[str, Any], Place], None]) -> Callable[[Place], str]:
    import yaml

    def make(place: Place) -> str:
        values = yaml.safe_load(place.file.read_text())
        change(values, place)
        return yaml.safe_dump(values)

    return make


def _put(values: dict[str, Any], dotted: str, new: Any) -> None:
    *parents, last = dotted.split(".")
    for key in parents:
        if not isinstance(values.get(key), dict):
            values[key] = {}
        values = values[key]
    values[last] = new


def _put_kind(name: str, dotted: str, new: Any, *, may_pass: bool = False) -> Kind:
    return content(
        name,
        _yaml(lambda v, place: _put(v, dotted, new(place) if callable(new) else new)),
        may_pass=may_pass,
    )


def _target(name: str, **keywords: Any) -> Callable[[Place], dict[str, Any]]:
    return lambda place: {"_target_": name, **{k: str(place.mark) if v == "MARK" else v for k, v in keywords.items()}}


_INTERPOLATION = "${oc.env:" + SECRET_VARIABLE + "}"
YAML = [
    content(
        "an alias bomb",
        "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)),
    ),
    content("a tag that makes a folder", lambda place: f"a: !!python/object/apply:os.mkdir ['{place.mark}']\n"),
    content("brackets without end", "a: " + "[" * 100_000),
    content("indentation without end", "".join(" " * n + "a:\n" for n in range(1500))),
    content("several documents", lambda place: place.file.read_text() + "\n---\na: 1\n"),
    content("a list", "- a\n- b\n"),
    content("a number", "7\n"),
    content("null", "null\n"),
    content("an unknown key", lambda place: place.file.read_text() + "\nevil: 1\n"),
    content("the same key twice", lambda place: place.file.read_text() + "\nseed: 1\nseed: 2\n"),
    content("a key that is a list", lambda place: place.file.read_text() + "\n? [a, b]\n: 1\n"),
    _put_kind("a callback that makes a folder", "callbacks.x", _target(_MKDIR, path="MARK")),
    _put_kind("a callback that unpickles", "callbacks.x", _target("torch.load", f="x.pth", weights_only=False)),
    _put_kind("a callback by another name of a function", "callbacks.x", _target("pathlib.os.mkdir", path="MARK")),
    _put_kind(
        "a callback inside a callback",
        "callbacks.x",
        lambda p: {"_target_": "lightning.pytorch.callbacks.Timer", "duration": _target(_MKDIR, path="MARK")(p)},
    ),
    _put_kind(
        "a partial callback",
        "callbacks.x",
        lambda p: {"_target_": "functools.partial", "_args_": [_target(_MKDIR, path="MARK")(p)]},
    ),
    _put_kind("a logger that makes a folder", "logger.x", _target(_MKDIR, path="MARK")),
    _put_kind(
        "a logger with an interpolation",
        "logger.x",
        {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": _INTERPOLATION},
    ),
    _put_kind("a trainer that makes a folder", "trainer._target_", _MKDIR),
    _put_kind("a trainer's plugin that makes a folder", "trainer.plugins", lambda p: [_target(_MKDIR, path="MARK")(p)]),
    _put_kind("an optimizer that pages", "optimizer._target_", "pydoc.pipepager"),
    _put_kind("an optimizer that makes a folder", "optimizer._target_", _MKDIR),
    _put_kind("an interpolation in a name", "name", _INTERPOLATION),
    _put_kind("an interpolation as a folder", "data.root", _INTERPOLATION),
    _put_kind("an interpolation as a seed", "seed", _INTERPOLATION),
    _put_kind("an interpolation that decodes", "name", "${oc.decode:${oc.env:" + SECRET_VARIABLE + "}}"),
    _put_kind("a data folder that leads out", "data.root", lambda p: str(p.outside)),
    _put_kind("a data folder of the system", "data.root", "/proc"),
    _put_kind("a seed of NaN", "seed", float("nan")),
    _put_kind("an input of 10^9 pixels", "input.size", 10**9),
    _put_kind("a batch of 10^12", "data.batch_size", 10**12),
    # chosen automatically, with a warning
    _put_kind("a million workers", "data.num_workers", 10**6, may_pass=True),
    _put_kind("a billion devices", "trainer.devices", 10**9),
    _put_kind("machines that are not there", "trainer.num_nodes", 2, may_pass=True),
    _put_kind("a rate of NaN", "schedule.lr", float("nan")),
    _put_kind("a rate of infinity", "schedule.lr", float("inf")),
    _put_kind("phases that are a text", "schedule.phases", "x"),
    _put_kind("a run folder elsewhere", "run_dir", lambda p: str(p.outside / "run"), may_pass=True),
    _put_kind(
        "a name that leads out", "schedule.phases", [{"name": "../../../outside/x", "train": ["head"], "epochs": 1}]
    ),
    _put_kind("weights that are a pickle", "backbone.weights", "../x.pth", may_pass=True),
    _put_kind("a checkpoint as a keyword", "backbone.kwargs", {"checkpoint_path": "x.pth"}),
    _put_kind("a vast head", "head", {"name": "mlp", "hidden": 10**12}),
]

# well-formed configurations that name what data may not: harmless where nothing of them is built
NAMED = {kind.name for kind in YAML[[kind.name for kind in YAML].index("a key that is a list") + 1 :]}

CSV = [
    content("a cell of 200 MB", lambda place: place.file.read_text() + '"' + "x" * 200_000_000 + '"\n'),
    content("null bytes in cells", lambda place: place.file.read_text() + "\0,\0,\0,\0\n", may_pass=True),
    content("a header alone", lambda place: place.file.read_text().splitlines()[0] + "\n", may_pass=True),
    content("other columns", "x,y\n1,2\n"),
    content(
        "a row that is too long",
        lambda place: place.file.read_text() + ",".join("abcdefghijklmnopqrstuvw") + "\n",
        may_pass=True,
    ),
    content("a row that is too short", lambda place: place.file.read_text() + "x\n", may_pass=True),
    content("a quote that is never closed", lambda place: place.file.read_text() + '"x,y\n', may_pass=True),
    content(
        "numbers that are none",
        lambda place: place.file.read_text() + ",".join(["nan", "1e999", "-inf"] * 20) + "\n",
        may_pass=True,
    ),
    content(
        "a formula and control characters",
        lambda place: place.file.read_text() + "=cmd|' /C calc'!A0,\x1b[2J,train\n",
        may_pass=True,
    ),
    content(
        "a path that leads out",
        lambda place: place.file.read_text() + "../outside/private.csv,cat,train\n/dev/zero,cat,train\n",
        may_pass=True,
    ),
    content("a hundred thousand columns", lambda place: ",".join(map(str, range(100_000))) + "\n1\n"),
]


def _safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _changed_tensors(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Place], bytes]:
    from safetensors.numpy import load_file, save

    def make(place: Place) -> bytes:
        from safetensors import safe_open

        tensors = load_file(place.file)
        with safe_open(place.file, "np") as file:
            metadata = file.metadata()
        change(tensors)
        return bytes(save(tensors, metadata))

    return make


def _largest(tensors: dict[str, Any]) -> str:
    return max(tensors, key=lambda name: tensors[name].nbytes)


def _fill(value: float) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        for name, array in tensors.items():
            if array.dtype.kind == "f":
                tensors[name] = np.full_like(array, value)

    return change


def _with_metadata(value: Any) -> Callable[[Place], bytes]:
    from safetensors.numpy import load_file, save

    return lambda place: bytes(save(load_file(place.file), value))


SAFETENSORS = [
    content("a header of 2^62 bytes", _safetensors({}, length=2**62)),
    content("a header of 2^26 bytes", _safetensors({}, length=2**26)),
    content("a header that is no JSON", _safetensors(b"{]")),
    content("a header of brackets", _safetensors(b"[" * 100_000)),
    content("a header that is a list", _safetensors([])),
    content(
        "a tensor of a terabyte", _safetensors({"a": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}})
    ),
    content(
        "a shape that overflows",
        _safetensors({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, bytes(4)),
    ),
    content(
        "offsets that overlap",
        _safetensors({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, bytes(4)),
    ),
    content(
        "a type that does not exist",
        _safetensors({"a": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    ),
    content("no tensors", _safetensors({})),
    content(
        "a million empty tensors",
        lambda place: _safetensors(
            {str(n): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(300_000)}
        ),
    ),
    content("another tensor", _safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))),
    content("NaN in every tensor", _changed_tensors(_fill(float("nan")))),
    content("infinity in every tensor", _changed_tensors(_fill(float("inf")))),
    content("vast numbers in every tensor", _changed_tensors(_fill(3e38)), may_pass=True),
    content("without its largest tensor", _changed_tensors(lambda t: operator.delitem(t, _largest(t)))),
    content(
        "its largest tensor of another shape",
        _changed_tensors(lambda t: t.update({_largest(t): np.zeros((3, 3), np.float32)})),
    ),
    content(
        "its largest tensor as bytes",
        _changed_tensors(lambda t: t.update({_largest(t): np.zeros(t[_largest(t)].shape, np.uint8)})),
        may_pass=True,
    ),
    content("metadata that is no JSON", _with_metadata({"finetune": "{"}), may_pass=True),
    content("metadata of brackets", _with_metadata({"finetune": "[" * 100_000}), may_pass=True),
    content("metadata that is a list", _with_metadata({"finetune": "[]"}), may_pass=True),
    content("metadata without keys", _with_metadata({"finetune": '{"format": 1, "kind": "head"}'}), may_pass=True),
]


def _compressed(place: Place) -> bytes:
    """torch's archive with its members deflated, the largest one grown: a bomb."""
    out = io.BytesIO()
    with zipfile.ZipFile(place.file) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for info in old.infolist():
            grown = "/data/" in info.filename
            new.writestr(info.filename, bytes(20_000_000) if grown else old.read(info.filename))
    return out.getvalue()


def _checkpoint(change: Callable[[dict[str, Any]], Any]) -> Callable[[Place], bytes]:
    def make(place: Place) -> bytes:
        loaded = torch.load(place.file, weights_only=True)
        changed = change(loaded)
        return _torch_bytes(loaded if changed is None else changed)

    return make


def _tar(place: Place) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in {"../../outside/x": b"x", "pickle": pickle.dumps(Payload(place.mark))}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


CHECKPOINT = [
    content("compressed members", _compressed),
    content("torch's oldest form, a tar", _tar),
    content("a list", _checkpoint(lambda c: [1, 2])),
    content("a tensor", _checkpoint(lambda c: torch.zeros(3))),
    content("an empty table", _checkpoint(lambda c: {})),
    content("null under every key", _checkpoint(lambda c: dict.fromkeys(c))),
    content("a text under every key", _checkpoint(lambda c: dict.fromkeys(c, "x"))),
    content(
        "a tensor that is a terabyte by its strides",
        _checkpoint(lambda c: {k: torch.zeros(1).expand(2**38) for k in c}),
    ),
    content("lists that hold lists", lambda place: _torch_bytes({"state_dict": _doubled(40)})),
    content("a class of the standard library", _checkpoint(lambda c: {**c, "x": random.Random(0)})),
]

LIGHTNING = [
    content("no weights", _checkpoint(lambda c: c.update(state_dict={}))),
    content(
        "weights of NaN",
        _checkpoint(
            lambda c: c.update(
                state_dict={
                    k: torch.full_like(v, float("nan")) if v.is_floating_point() else v
                    for k, v in c["state_dict"].items()
                }
            )
        ),
        may_pass=True,
    ),
    content(
        "weights of another shape",
        _checkpoint(lambda c: c.update(state_dict={k: torch.zeros(3) for k in c["state_dict"]})),
    ),
    content("no optimizer", _checkpoint(lambda c: c.update(optimizer_states=[])), may_pass=True),
    content("an optimizer of texts", _checkpoint(lambda c: c.update(optimizer_states="x")), may_pass=True),
    content("a step of a text", _checkpoint(lambda c: c.update(global_step="x")), may_pass=True),
    content(
        "callbacks that are code",
        _checkpoint(lambda c: c.update(callbacks={"os.system": {"x": "touch x"}})),
        may_pass=True,
    ),
    content("loops of nothing", _checkpoint(lambda c: c.update(loops={})), may_pass=True),
    content("its own record of nothing", _checkpoint(lambda c: c.update(finetune={})), may_pass=True),
    content(
        "its own record of texts",
        _checkpoint(lambda c: c.update(finetune=dict.fromkeys(c.get("finetune", {"x": 1}), "x"))),
        may_pass=True,
    ),
]


def _doubled(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner, inner]
    return inner


def _npy(array: Any, *, header: bytes | None = None) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    data = out.getvalue()
    return data if header is None else header


def _npy_header(text: str, data: bytes = b"") -> bytes:
    padded = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode("latin1") + data


def _members(change: Callable[[dict[str, bytes], Place], None], *, compress: bool = False) -> Callable[[Place], bytes]:
    def make(place: Place) -> bytes:
        with zipfile.ZipFile(place.file) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        change(members, place)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, data in members.items():
                stored = name.endswith("features.npy") and not compress
                archive.writestr(name, data, zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED, compresslevel=1)
        return out.getvalue()

    return make


def _features(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Place], bytes]:
    def edit(members: dict[str, bytes], place: Place) -> None:
        members["features.npy"] = _npy(change(np.load(io.BytesIO(members["features.npy"]))))

    return _members(edit)


def _about(change: Callable[[dict[str, Any]], Any]) -> Callable[[Place], bytes]:
    def edit(members: dict[str, bytes], place: Place) -> None:
        about = json.loads(str(np.load(io.BytesIO(members["about.npy"]))))
        changed = change(about)
        text = changed if isinstance(changed, str) else json.dumps(about if changed is None else changed)
        members["about.npy"] = _npy(np.array(text))

    return _members(edit)


def _member(name: str, data: bytes | Callable[[Place], bytes]) -> Callable[[Place], bytes]:
    return _members(lambda members, place: members.update({name: data(place) if callable(data) else data}))


def _with(array: np.ndarray, value: float) -> np.ndarray:
    array[0, 0] = value
    return array


def _numbers_lie(place: Place) -> bytes:
    """The directory of the archive says other sizes than the members have."""
    data = bytearray(place.file.read_bytes())
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        data[at + 20 : at + 28] = struct.pack("<II", 0x7FFFFFFF, 0x7FFFFFFF)
        at = data.find(b"PK\x01\x02", at + 4)
    return bytes(data)


NPZ = [
    content("NaN in a feature", _features(lambda a: _with(a, float("nan")))),
    content("infinity in a feature", _features(lambda a: _with(a, float("inf")))),
    content(
        "features of Python objects",
        lambda place: _member("features.npy", _npy(np.array([[Payload(place.mark)]], object)))(place),
    ),
    content(
        "paths of Python objects",
        lambda place: _member("path.npy", _npy(np.array([Payload(place.mark)], object)))(place),
    ),
    content(
        "features of a terabyte",
        _member("features.npy", _npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 262144)}")),
    ),
    content(
        "features whose shape overflows",
        _member("features.npy", _npy_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**62}, 4)}}")),
    ),
    content(
        "features of a negative shape",
        _member("features.npy", _npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}", bytes(16))),
    ),
    content(
        "features of no numbers",
        _member("features.npy", _npy_header("{'descr': '|V0', 'fortran_order': False, 'shape': (4, 4)}")),
    ),
    content("features of one dimension", _features(lambda a: a.reshape(-1))),
    content("features of whole numbers", _features(lambda a: a.astype(np.int32))),
    content("features of no columns", _features(lambda a: a[:, :0])),
    content("fewer features than paths", _features(lambda a: a[:-1])),
    content("compressed features", _members(lambda m, p: None, compress=True)),
    content(
        "a header that is code",
        lambda place: _member("features.npy", _npy_header(f"__import__('os').mkdir('{place.mark}')"))(place),
    ),
    content("a header of brackets", _member("path.npy", _npy_header("(" * 100 + ")" * 100))),
    content(
        "texts of a gigabyte each",
        _member("label.npy", _npy_header("{'descr': '<U268435456', 'fortran_order': False, 'shape': (4,)}")),
    ),
    content(
        "a record of 256 MB",
        _member(
            "about.npy",
            lambda place: _npy_header(
                "{'descr': '<U60000000', 'fortran_order': False, 'shape': ()}", bytes(240_000_000)
            ),
        ),
    ),
    content("a record that is no JSON", _about(lambda a: "{")),
    content("a record of brackets", _about(lambda a: "[" * 100_000)),
    content("a record of a list", _about(lambda a: [])),
    content("a record of NaN", _about(lambda a: {**a, "x": float("nan")})),
    content(
        "a record with null under every key",
        _about(lambda a: dict.fromkeys(a) | {"format": a["format"]}),
        may_pass=True,
    ),
    content(
        "a record with lists under every key",
        _about(lambda a: {k: [] for k in a} | {"format": a["format"]}),
        may_pass=True,
    ),
    content(
        "a record with texts under every key",
        _about(lambda a: dict.fromkeys(a, "x") | {"format": a["format"]}),
        may_pass=True,
    ),
    content("a record whose classes are numbers", _about(lambda a: {**a, "classes": [1, 2, 3]}), may_pass=True),
    content(
        "a record whose model leads out",
        _about(lambda a: {**a, "model": {"run": "../../outside", "kind": "run"}}),
        may_pass=True,
    ),
    content(
        "a digest that is none",
        _members(
            lambda m, p: m.update({"content.npy": _npy(np.array(["zz"] * len(np.load(io.BytesIO(m["content.npy"])))))})
        ),
    ),
    content(
        "a digest that is too short",
        _members(
            lambda m, p: m.update({"content.npy": _npy(np.array(["00"] * len(np.load(io.BytesIO(m["content.npy"])))))})
        ),
    ),
    content(
        "paths of control characters",
        _members(
            lambda m, p: m.update(
                {"path.npy": _npy(np.array(["\x1b[2J\x07"] * len(np.load(io.BytesIO(m["path.npy"])))))}
            )
        ),
        may_pass=True,
    ),
    content(
        "labels of control characters",
        _members(
            lambda m, p: m.update(
                {
                    "label.npy": _npy(
                        np.array(["\x1b[2J\x07" + str(n % 2) for n in range(len(np.load(io.BytesIO(m["label.npy"]))))])
                    )
                }
            )
        ),
        may_pass=True,
    ),
    content("a member that leads out", _member("../../outside/x.npy", _npy(np.zeros(3))), may_pass=True),
    content("without its features", _members(lambda m, p: m.pop("features.npy") and None)),
    content("sizes that lie", _numbers_lie),
]


def _parquet(change: Callable[[Any], Any]) -> Callable[[Place], bytes]:
    import pyarrow.parquet as pq

    def make(place: Place) -> bytes:
        out = io.BytesIO()
        pq.write_table(change(pq.read_table(place.file)), out)
        return out.getvalue()

    return make


def _set_column(name: str, values: Callable[[int], Any]) -> Callable[[Any], Any]:
    return lambda table: table.set_column(table.column_names.index(name), name, values(len(table)))


def _vectors(fill: float, width: int = 0) -> Callable[[Any], Any]:
    import pyarrow as pa

    def change(table: Any) -> Any:
        kind = table.schema.field("features").type
        wide = width or kind.list_size
        flat = pa.array(np.full(len(table) * wide, fill, np.float32))
        return _set_column("features", lambda n: pa.FixedSizeListArray.from_arrays(flat, wide))(table)

    return change


def _described(change: Callable[[dict[str, Any]], Any]) -> Callable[[Any], Any]:
    def edit(table: Any) -> Any:
        about = json.loads(table.schema.metadata[b"finetune"])
        changed = change(about)
        return table.replace_schema_metadata(
            {b"finetune": changed if isinstance(changed, str) else json.dumps(changed)}
        )

    return edit


def _run_lengths(columns: dict[str, str], *, rows: int = 200_000_000) -> Callable[[Place], bytes]:
    """Many equal rows take a few bytes of a file."""

    def make(place: Place) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        out = io.BytesIO()
        step = 2_000_000
        block = pa.table(
            {
                name: pa.DictionaryArray.from_arrays(np.zeros(step, np.int8), [text]).cast(pa.string())
                for name, text in columns.items()
            }
        )
        with pq.ParquetWriter(out, block.schema, compression="zstd") as writer:
            for _ in range(0, rows // 20, step):
                writer.write_table(block)
        return out.getvalue()

    return make


PARQUET = [
    content("a footer that lies", lambda place: place.file.read_bytes()[:-8] + struct.pack("<I", 0x7FFFFFFF) + b"PAR1"),
    content("a footer of nothing", b"PAR1" + struct.pack("<I", 0) + b"PAR1"),
    content(
        "random bytes between its marks", b"PAR1" + random.Random(1).randbytes(3000) + struct.pack("<I", 1000) + b"PAR1"
    ),
    content("other columns", _parquet(lambda t: t.select(t.column_names[:1]).rename_columns(["x"]))),
    content("no rows", _parquet(lambda t: t.slice(0, 0)), may_pass=True),
    content("ten million equal rows", _run_lengths({"path": "a.png", "label": "x"})),
]


def _nulls(name: str) -> Callable[[Any], Any]:
    import pyarrow as pa

    return _set_column(name, lambda n: pa.nulls(n, pa.string()))


def _numbers(name: str) -> Callable[[Any], Any]:
    import pyarrow as pa

    return _set_column(name, lambda n: pa.array(range(n)))


MANIFEST_PARQUET = [
    *PARQUET,
    content("paths that are null", _parquet(_nulls("path"))),
    content("paths that are numbers", _parquet(_numbers("path"))),
    content(
        "a cell of 200 MB",
        _parquet(_set_column("path", lambda n: __import__("pyarrow").array(["x" * 200_000_000] + ["y"] * (n - 1)))),
    ),
]

EMBEDDINGS_PARQUET = [
    *PARQUET,
    content("NaN in every feature", _parquet(_vectors(float("nan")))),
    content("infinity in every feature", _parquet(_vectors(float("inf")))),
    content(
        "features that are texts", _parquet(_set_column("features", lambda n: __import__("pyarrow").array(["x"] * n)))
    ),
    content("features that are null", _parquet(_set_column("features", lambda n: __import__("pyarrow").nulls(n)))),
    content(
        "lists of any length",
        _parquet(_set_column("features", lambda n: __import__("pyarrow").array([[1.0]] * (n - 1) + [[1.0, 2.0]]))),
    ),
    content("paths that are null", _parquet(_nulls("path"))),
    content("labels that are null", _parquet(_nulls("label"))),
    content(
        "digests that are none", _parquet(_set_column("content", lambda n: __import__("pyarrow").array(["zz"] * n)))
    ),
    content("digests that are null", _parquet(_nulls("content"))),
    content("a record that is no JSON", _parquet(_described(lambda a: "{"))),
    content("a record of brackets", _parquet(_described(lambda a: "[" * 100_000))),
    content("a record of a list", _parquet(_described(lambda a: []))),
    content("no record", _parquet(lambda t: t.replace_schema_metadata({}))),
    content(
        "a record with null under every key",
        _parquet(_described(lambda a: dict.fromkeys(a) | {"format": a["format"]})),
        may_pass=True,
    ),
]


def _onnx(change: Callable[[Any], None]) -> Callable[[Place], bytes]:
    def make(place: Place) -> bytes:
        import onnx

        model = onnx.load(str(place.file))
        change(model)
        return bytes(model.SerializeToString())

    return make


def _onnx_described(change: Callable[[dict[str, Any]], Any]) -> Callable[[Place], bytes]:
    def edit(model: Any) -> None:
        for entry in model.metadata_props:
            if entry.key == "finetune":
                changed = change(json.loads(entry.value))
                entry.value = changed if isinstance(changed, str) else json.dumps(changed)

    return _onnx(edit)


def _external(location: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    return change


def _vast_initializer(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [2**40]


def _own_operator(model: Any) -> None:
    model.graph.node[0].domain, model.graph.node[0].op_type = "evil.domain", "Run"


def _endless(model: Any) -> None:
    """A loop of 2^40 rounds in front of the network."""
    import onnx
    from onnx import TensorProto, helper

    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["x", "x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]),
        ],
    )
    model.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(np.array(2**40, np.int64), "rounds"),
            onnx.numpy_helper.from_array(np.array(True), "always"),
            onnx.numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
        ]
    )
    model.graph.node.extend([helper.make_node("Loop", ["rounds", "always", "zero"], ["end"], body=body)])
    _add_to_output(model, "end")


def _vast_constant(model: Any) -> None:
    """A tensor of 16 GB that some bytes describe, computed when the network runs."""
    import onnx
    from onnx import helper

    model.graph.initializer.extend([onnx.numpy_helper.from_array(np.array([4 * 2**30], np.int64), "vast_shape")])
    model.graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["vast_shape"], ["vast"]),
            helper.make_node("ReduceSum", ["vast"], ["vast_sum"], keepdims=0),
        ]
    )
    _add_to_output(model, "vast_sum")


def _add_to_output(model: Any, scalar: str) -> None:
    """Let the network's output depend on a tensor."""
    from onnx import helper

    output = model.graph.output[0].name
    for node in model.graph.node:
        for number, name in enumerate(node.output):
            if name == output:
                node.output[number] = "before"
    model.graph.node.extend([helper.make_node("Add", ["before", scalar], [output])])


ONNX = [
    content("weights in another file that leads out", _onnx(_external("../../outside/x"))),
    content("weights in /dev/zero", _onnx(_external("/dev/zero"))),
    content("a vast weight", _onnx(_vast_initializer)),
    content("an operator of its own", _onnx(_own_operator)),
    content("a loop without end", _onnx(_endless)),
    content("a constant of 16 GB", _onnx(_vast_constant)),
    content("no description", _onnx(lambda m: m.metadata_props.pop() and None)),
    content("a description that is no JSON", _onnx_described(lambda d: "{")),
    content("a description of brackets", _onnx_described(lambda d: "[" * 100_000)),
    content("a description of a list", _onnx_described(lambda d: [])),
    content("a description of null", _onnx_described(lambda d: dict.fromkeys(d))),
    content("a description of texts", _onnx_described(lambda d: dict.fromkeys(d, "x"))),
    content("an input of 10^9 pixels", _onnx_described(lambda d: d["input"].update(size=[10**9, 10**9]) or d)),
    content("a mean of NaN", _onnx_described(lambda d: d["input"].update(mean=[float("nan")] * 3) or d)),
    content("classes of numbers", _onnx_described(lambda d: d.update(classes=list(range(len(d["classes"])))) or d)),
]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, depth: int = 8, colour: int = 0, rows: bytes | None = None) -> bytes:
    """A PNG whose pixels are zeros, of any size in few bytes."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    if rows is None:
        squeezer, parts = zlib.compressobj(9), []
        line = bytes(1 + (width * depth * (3 if colour == 2 else 1) + 7) // 8)
        step = max(1, 2**20 // len(line))
        for start in range(0, height, step):
            parts.append(squeezer.compress(line * min(step, height - start)))
        rows = b"".join([*parts, squeezer.flush()])
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _tiff(width: int, height: int) -> bytes:
    """A TIFF that claims a size."""
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    entries += [(278, 4, 1, height), (279, 4, 1, 2**31)]
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + body


# beside good images: a row says why, or the command names the file
IMAGE = [
    content("a PNG of 1 x 1,000,000 pixels", lambda place: png(1, 1_000_000), may_pass=True),
    content("a PNG of 1,000,000 x 1 pixels", lambda place: png(1_000_000, 1), may_pass=True),
    content(
        "a PNG of 60,000 x 60,000 pixels by its header",
        png(60_000, 60_000, rows=zlib.compress(bytes(100))),
        may_pass=True,
    ),
    content("a PNG of 2^31 x 2^31 pixels by its header", png(2**31 - 1, 2**31 - 1, rows=b""), may_pass=True),
    content("a PNG of 6,000 x 6,000 pixels", lambda place: png(6000, 6000), may_pass=True),
    content("a PNG of 5,000 x 5,000 pixels of 16 bits", lambda place: png(5000, 5000, depth=16), may_pass=True),
    content("a PNG without pixels", png(32, 32, rows=b""), may_pass=True),
    content("a PNG of no size", png(0, 0, rows=b""), may_pass=True),
    content(
        "a PNG with a vast text",
        lambda place: (
            png(4, 4)[:33] + _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(300_000_000), 1)) + png(4, 4)[33:]
        ),
        may_pass=True,
    ),
    content("a TIFF of 2^31 x 2^31 pixels by its header", _tiff(2**31 - 1, 2**31 - 1), may_pass=True),
    content(
        "a GIF of 65,535 x 65,535 pixels",
        b"GIF89a\xff\xff\xff\xff\x80\x00\x00" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;",
        may_pass=True,
    ),
    content(
        "a BMP of 2^30 rows",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 10, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
        may_pass=True,
    ),
    content("a JPEG cut in its header", b"\xff\xd8\xff\xe0\x00\x10JFIF", may_pass=True),
    content(
        "a WebP that lies",
        b"RIFF" + struct.pack("<I", 2**31 - 1) + b"WEBPVP8X" + b"\n\0\0\0" + b"\0\0\0\0" + b"\xff" * 6,
        may_pass=True,
    ),
    content(
        "an NPY of Python objects",
        lambda place: _npy(np.array([[Payload(place.mark)] * 4] * 4, object)),
        may_pass=True,
    ),
    content(
        "an NPY whose header is code",
        lambda place: _npy_header(f"__import__('os').mkdir('{place.mark}')"),
        may_pass=True,
    ),
    content("an NPY with a header of brackets", _npy_header("(" * 100 + ")" * 100), may_pass=True),
    content(
        "an NPY of 100,000 x 100,000 x 5 by its header",
        _npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (100000, 100000, 5)}"),
        may_pass=True,
    ),
    content(
        "an NPY of a negative shape",
        _npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -2, 4)}", bytes(64)),
        may_pass=True,
    ),
    content(
        "an NPY of 60,000 channels",
        lambda place: _npy(np.zeros((4, 4, 60_000), np.uint8)),
        may_pass=True,
    ),
]

NAMES = [
    "a\nb\x1b[2J.png",
    "-rf.png",
    "=1+1.png",
    "<img src=x onerror=alert(1)>.png",
    "${oc.env:" + SECRET_VARIABLE + "}.png",
    "a" * 240 + ".png",
    os.fsdecode(b"caf\xe9.png"),
]


def _named(name: str) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        place.file.rename(place.file.with_name(name))

    return make


IMAGE_NAMES = [Kind(f"a file named {name[:40]!r}", _named(name), may_pass=True) for name in NAMES]

FORMATS: dict[str, list[Kind]] = {
    "json": JSON,
    "model.json": [*JSON, *MODEL_JSON],
    "yaml": YAML,
    "csv": CSV,
    "safetensors": SAFETENSORS,
    "ckpt": [*CHECKPOINT, *LIGHTNING],
    "pth": CHECKPOINT,
    "npz": NPZ,
    "facts": [],
    "parquet": EMBEDDINGS_PARQUET,
    "manifest.parquet": MANIFEST_PARQUET,
    "onnx": ONNX,
    "image": [*IMAGE, *IMAGE_NAMES],
    "list": [],
    "text": [],
    "binary": [],
}

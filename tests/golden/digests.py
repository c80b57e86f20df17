"""What is kept of an outcome: text and numbers without paths, dates and times, arrays as digests of their bits."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# keys of JSON files whose values are times or versions
LEFT_OUT = ("seconds", "versions", "created", "date", "written_by")

_TIME = r"<?\d[\d.,]*(?: ?(?:ms|s|min|h)\b)"
_PATTERNS = (
    (r"\d{4}-\d\d-\d\d[_T ]\d\d[-:]\d\d(?:[-:]\d\d)?(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?", "<date>"),
    (r"\d{4}-\d\d-\d\d", "<date>"),
    # whether a forecast is printed at all depends on how long the rest takes
    (rf"  about {_TIME}(?: {_TIME})* left", ""),
    (rf"\b{_TIME}(?: {_TIME})*", "<time>"),
    (r"\b[\d.,]+ images a second", "<speed>"),
    (r"\b(pid|process) \d{3,}", r"\1 <pid>"),
    (r"\.tmp\w+", ".tmp<random>"),
    (r"(?m)^(.*\(epoch \d+\)) +\d+$", r"\1 <time>"),
)


def normalized(text: str, places: Mapping[str, str]) -> str:
    """Replace all in a text that may differ between two equal programs: places, dates, times, process numbers.

    Args:
        text: What a program printed or wrote.
        places: Names to put in the place of paths of this machine.

    >>> normalized("/tmp/x/run: 3 epochs, 12.5 s  about 5 s left", {"/tmp/x": "<work>"})
    '<work>/run: 3 epochs, <time>'
    """
    text = with_names(text, places)
    for pattern, put in _PATTERNS:
        text = re.sub(pattern, put, text)
    return _without_column_of_seconds(text)


def with_names(text: str, places: Mapping[str, str]) -> str:
    """Put names in the place of paths of this machine, the longest first."""
    for place, name in sorted(places.items(), key=lambda item: -len(item[0])):
        text = text.replace(place, name)
    return text


def _without_column_of_seconds(text: str) -> str:
    """Cut the last column of tables whose heading ends in ``seconds``."""
    lines, inside = [], False
    for line in text.split("\n"):
        heading = line.rstrip().endswith(" seconds") and line.startswith("phase ")
        inside = heading or (inside and bool(line.strip()))
        lines.append(re.sub(r"\s+\S+\s*$", "", line) if inside else line)
    return "\n".join(lines)


def array_digest(array: npt.NDArray[Any]) -> str:
    """Type, shape and a digest of the bits of an array."""
    bits = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:32]
    return f"{array.dtype} {list(array.shape)} {bits}"


def tensors_digest(path: Path) -> str:
    """One line for each tensor of a safetensors file."""
    from safetensors.torch import load_file

    return "\n".join(
        f"{name}: {array_digest(tensor.contiguous().flatten().view(torch_uint8()).numpy())} {list(tensor.shape)}"
        for name, tensor in sorted(load_file(path).items())
    )


def torch_uint8() -> Any:
    """torch.uint8, without importing torch above."""
    import torch

    return torch.uint8


def flattened(value: object, left_out: Iterable[str] = LEFT_OUT) -> str:
    """JSON content as sorted lines ``path: value``, without the keys whose values are times or versions.

    >>> print(flattened({"b": [1, {"c": "x"}], "a": 0.5, "seconds": {"all": 3}}))
    a: 0.5
    b[0]: 1
    b[1].c: "x"
    """
    lines: list[str] = []

    def walk(at: object, path: str) -> None:
        if isinstance(at, dict):
            for key in sorted(at):
                if key not in left_out:
                    walk(at[key], f"{path}.{key}" if path else str(key))
        elif isinstance(at, list):
            for number, inner in enumerate(at):
                walk(inner, f"{path}[{number}]")
        else:
            lines.append(f"{path}: {json.dumps(at, ensure_ascii=False)}")

    walk(value, "")
    return "\n".join(lines)


def run_digests(run_dir: Path, places: Mapping[str, str]) -> dict[str, str]:
    """The public files of a finished run."""
    kept = {"files": "\n".join(sorted(str(p.relative_to(run_dir)) for p in run_dir.rglob("*") if p.is_file()))}
    for name in ("plan.json", "results.json", "model/model.json"):
        # a bundle's own digest covers its date; the digest of its weights stays
        values = json.loads((run_dir / name).read_text())
        kept[name] = normalized(flattened(values, (*LEFT_OUT, "sha256")), places)
    for name in ("split.csv", "predictions.csv", "metrics.csv"):
        kept[name] = with_names(run_dir.joinpath(name).read_text(), places)
    for name in ("model/model.safetensors", "model/head.safetensors", "evaluation.safetensors"):
        kept[name] = tensors_digest(run_dir / name)
    return kept

"""Writes safetensors files, byte for byte as the library does, but without its temporary file.

``safetensors.torch.save_file`` first writes to ``.tmpXXXXXX`` beside its target. A kill leaves that file, as large as the
network, and its name does not tell whose it is; temporary files of :mod:`finetune.atomic_files` can be recognised and removed.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

# names in the header, in the order in which the library writes: by type, then by name
_DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_RANK = {dtype: rank for rank, dtype in enumerate(_DTYPES)}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a file.

    Args:
        path: File to write, usually one from :func:`finetune.atomic_files.atomic_path`.
        tensors: Tensors by name, on any device.
        metadata: Texts for the header; None for none.
    """
    ordered = sorted(tensors, key=lambda name: (_RANK[tensors[name].dtype], name))
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for name in ordered:
        end = at + tensors[name].numel() * tensors[name].element_size()
        header[name] = {
            "dtype": _DTYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in ordered:
            values = tensors[name].detach().cpu().contiguous().reshape(-1)
            if values.numel():
                file.write(values.view(torch.uint8).numpy().data)

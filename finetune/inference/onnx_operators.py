"""List an ONNX file's operators before ONNX Runtime opens it, because opening a file already computes its constants.

The file is protobuf; only length-delimited fields of its wire format are needed
(https://protobuf.dev/programming-guides/encoding). The ``onnx`` package could read it too, but prediction does not depend on
that package.
"""

from collections.abc import Iterator, Mapping

# operators that repeat part of the graph as often as the file says; our exports contain none
LOOPS = frozenset({"Loop", "Scan", "SequenceMap"})

_DEEPEST = 20
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# message -> its fields that lead to operators, by field number, from onnx.proto
_INNER: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node"},
    "function": {7: "node"},
    "node": {4: "op_type", 5: "attribute"},
    "attribute": {6: "graph", 11: "graph"},
}


def operators(content: bytes) -> set[str]:
    """Return the names of all operators, including those of inner graphs and functions.

    Raises:
        ValueError: The bytes are not protobuf, or are nested too deeply.
    """
    return set(_operators(memoryview(content), "model", 0))


def _operators(content: memoryview, message: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("its graphs are nested too deeply")
    for number, value in _fields(content):
        inner = _INNER[message].get(number)
        if inner == "op_type":
            yield bytes(value).decode("utf-8", "replace")
        elif inner is not None:
            yield from _operators(value, inner, depth + 1)


def _fields(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and bytes of each length-delimited field; skip the others."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        kind = tag & 7
        if kind == _BYTES:
            length, at = _varint(content, at)
            if length > len(content) - at:
                raise ValueError("it ends early")
            yield tag >> 3, content[at : at + length]
            at += length
        elif kind == _VARINT:
            _, at = _varint(content, at)
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError("it is not a protobuf")


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """Decode a whole number stored seven bits per byte; return it and the offset after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise ValueError("it ends early")
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("it is not a protobuf")

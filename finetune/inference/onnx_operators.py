"""The operators of an ONNX file, read before anything of it is computed: ONNX Runtime folds constants when it opens a file.

The file is protobuf; of its wire format this needs the fields of a known length alone (https://protobuf.dev/programming-guides/encoding).
The package ``onnx`` reads it too, and prediction does not need that package.
"""

from collections.abc import Iterator, Mapping

# operators that repeat a part of the graph, as often as the file says; no export has one
LOOPS = frozenset({"Loop", "Scan", "SequenceMap"})

_DEEPEST = 20
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# message -> its fields that lead to operators, by number, as onnx.proto has them
_INNER: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node"},
    "function": {7: "node"},
    "node": {4: "op_type", 5: "attribute"},
    "attribute": {6: "graph", 11: "graph"},
}


def operators(content: bytes) -> set[str]:
    """Names of all operators, those of inner graphs and functions too.

    Raises:
        ValueError: The bytes are no protobuf, or nested without end.
    """
    return set(_operators(memoryview(content), "model", 0))


def _operators(content: memoryview, message: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("its graphs are nested without end")
    for number, value in _fields(content):
        inner = _INNER[message].get(number)
        if inner == "op_type":
            yield bytes(value).decode("utf-8", "replace")
        elif inner is not None:
            yield from _operators(value, inner, depth + 1)


def _fields(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and bytes of each field that has a length; the others are passed over."""
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
            raise ValueError("it is no protobuf")


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise ValueError("it ends early")
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("it is no protobuf")

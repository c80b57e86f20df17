"""Safe opening of files from other sources: only regular files, of a plausible size for their contents.

A link to ``/dev/zero``, a named pipe and ``truncate -s 100G`` all look like files until they are read. Every reader of a run
folder, a bundle, embeddings or weights opens its file here, so that all problems end in one message that names the file.
"""

import codecs
import io
import json
import math
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TextIO, TypeVar

from finetune.errors import FileError, UserError, first_line, type_in_words
from finetune.file_errors import read_error
from finetune.terminal import printable

if TYPE_CHECKING:
    from torch import Tensor

Kind = TypeVar("Kind")

# bytes
LARGEST_JSON = 64 * 2**20
LARGEST_TABLE = 2 * 2**30
LARGEST_TEXT = 16 * 2**20
LARGEST_YAML = 2**20
# our own configuration has 300 values
MOST_YAML_VALUES = 20_000
LONGEST_YAML_VALUE = 10_000  # characters
# header of a safetensors file: that of the largest networks, of some thousand tensors, has some hundred kilobytes
LARGEST_HEADER = 5 * 2**20
# most lists and tables in a JSON text: an empty one takes 60 bytes of memory and two bytes of the file
MOST_CONTAINERS = 2_000_000
DEEPEST = 100
# bytes; a path may have 4,096
LONGEST_LINE = 2**20
LONGEST_PATH = 2**16

_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}


def open_regular(path: str | Path, *, name: str | None = None, largest: int | None = None) -> io.BufferedReader:
    """Open a regular file for reading, without waiting for a pipe or reading a device.

    Args:
        path: Path of the file; a link is followed.
        name: Name in messages, such as ``data.path='x.csv'``; None for the path.
        largest: Largest plausible size in bytes; None for no limit.

    Raises:
        UserError: The file is missing, not a regular file, too large, or not readable.
    """
    name = name or str(path)
    try:
        # without O_NONBLOCK, opening a pipe waits for its other end
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise UserError(f"{name}: no such file.") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        if (failed := read_error(error, name)) is not None:
            raise failed from error
        raise UserError(f"{name}: cannot be opened. {_why(error)}.") from error
    try:
        status = os.fstat(descriptor)
        problem = _problem(status, largest)
    except BaseException:
        os.close(descriptor)
        raise
    if problem:
        os.close(descriptor)
        raise UserError(f"{name}: {problem}")
    return io.BufferedReader(_NamedFile(descriptor, name))


class _NamedFile(io.FileIO):
    """A file whose read errors name the file.

    A bare ``OSError`` names no file, and zipfile and NumPy report it as a damaged file.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor, "rb")
        self._called = name

    def readinto(self, buffer: Any) -> Any:
        """Read into a buffer and return the number of bytes."""
        with self._named():
            return super().readinto(buffer)

    def readall(self) -> bytes:
        """Read to the end."""
        with self._named():
            return super().readall()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise read_error(error, self._called) or error from error


def check_regular(path: str | Path, *, name: str | None = None, largest: int | None = None) -> Path:
    """Check a regular file that a library will open, and return its path; see :func:`open_regular`.

    Raises:
        UserError: See :func:`open_regular`.
    """
    open_regular(path, name=name, largest=largest).close()
    return Path(path)


def _problem(status: os.stat_result, largest: int | None) -> str:
    if not stat.S_ISREG(status.st_mode):
        kind = next((words for is_kind, words in _KINDS.items() if is_kind(status.st_mode)), "something else")
        return f"must be a regular file. It is {kind}."
    if largest is not None and status.st_size > largest:
        return f"is too large for such a file, {status.st_size:,} bytes. At most {largest:,} are read."
    return ""


def _why(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return text.rstrip(".")


def read_bytes(path: str | Path, *, name: str | None = None, largest: int = LARGEST_TEXT) -> bytes:
    """Return the contents of a regular file.

    Raises:
        UserError: See :func:`open_regular`; also if the file cannot be read.
    """
    with open_regular(path, name=name, largest=largest) as file:
        try:
            return file.read(largest + 1)
        except OSError as error:
            raise UserError(f"{name or path}: cannot be read. {_why(error)}.") from error


def read_text(path: str | Path, *, name: str | None = None, largest: int = LARGEST_TEXT) -> str:
    """Return the text of a regular file, in UTF-8.

    Raises:
        UserError: See :func:`read_bytes`; also if the contents are not UTF-8.
    """
    try:
        return read_bytes(path, name=name, largest=largest).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name or path}: damaged. It is not UTF-8 text (byte {error.start:,}).") from None


def read_json(
    path: str | Path,
    kind: type[Kind],
    *,
    name: str | None = None,
    remedy: str = "",
    largest: int = LARGEST_JSON,
) -> Kind:
    """Return the value in a JSON file.

    Args:
        path: Path of the file.
        kind: Required type of the value, ``dict`` or ``list``.
        name: Name of the file in messages; None for its path.
        remedy: What to do if the file is damaged, as a sentence.
        largest: Largest size in bytes.

    Raises:
        UserError: See :func:`read_text`; also if the contents are not JSON, have another type, or hold NaN, infinity or too much.
    """
    name = name or str(path)
    return parse_json(read_bytes(path, name=name, largest=largest), kind, name=name, remedy=remedy)


def parse_json(content: str | bytes, kind: type[Kind], *, name: str, remedy: str = "") -> Kind:
    """Return the value of a JSON text of unknown origin; see :func:`read_json`.

    >>> parse_json('{"a": NaN}', dict, name="x.json")
    Traceback (most recent call last):
        ...
    finetune.errors.UserError: x.json: damaged. It holds NaN where a number must be finite.
    """
    more = f" {remedy}" if remedy else ""
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        if text.count("[") + text.count("{") > MOST_CONTAINERS:
            raise ValueError(f"It holds more than {MOST_CONTAINERS:,} lists and tables")
        value = json.loads(text, parse_constant=_not_finite, parse_float=_finite)
        # a string that UTF-8 cannot encode would fail where it is shown
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: damaged. It is not UTF-8 text (byte {error.start:,}).{more}") from None
    except RecursionError:
        raise UserError(f"{name}: damaged. Its lists and tables are nested too deeply.{more}") from None
    except ValueError as error:
        raise UserError(f"{name}: damaged. {_why(error)}.{more}") from None
    if not isinstance(value, kind):
        required = "an object" if kind is dict else f"a {kind.__name__}"
        raise UserError(f"{name}: damaged. It must hold {required}, but holds {type_in_words(value)}.{more}")
    return value


def _not_finite(word: str) -> NoReturn:
    raise ValueError(f"It holds {word} where a number must be finite")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        _not_finite(text[:20])
    return value


def checked_yaml(text: str, *, name: str) -> str:
    r"""Return a YAML text if it has the form that a run writes: no aliases, tags, interpolations or deep nesting.

    A few lines of aliases can expand to any amount of memory, a tag can name a Python object, and ``${oc.env:SECRET}`` would be
    replaced by a value of this machine.

    Raises:
        UserError: The text contains one of these, or is not YAML.

    >>> checked_yaml("a: &x [1]\nb: *x", name="config.yaml")
    Traceback (most recent call last):
        ...
    finetune.errors.UserError: config.yaml: damaged. Line 2 refers to another place of the file (*x), which run files never do.
    """
    import yaml

    depth = values = 0
    try:
        # PyYAML's C parser, if available, is ten times as fast
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            line = event.start_mark.line + 1
            if isinstance(event, yaml.AliasEvent):
                raise UserError(
                    f"{name}: damaged. Line {line} refers to another place of the file (*{event.anchor[:40]}), which "
                    "run files never do."
                )
            if isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None):
                raise UserError(f"{name}: damaged. Line {line} names a type (a tag), which run files never do.")
            values += isinstance(event, yaml.NodeEvent)
            if values > MOST_YAML_VALUES:
                raise UserError(f"{name}: damaged. It holds more than {MOST_YAML_VALUES:,} values.")
            if isinstance(event, yaml.ScalarEvent):
                if len(event.value) > LONGEST_YAML_VALUE:
                    raise UserError(f"{name}: damaged. Line {line} holds a value of {len(event.value):,} characters.")
                if "${" in event.value:
                    raise UserError(
                        f"{name}: line {line}: {printable(event.value[:60])!r} refers to another value, which run files "
                        "never do and which is not resolved. Give the value itself."
                    )
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise UserError(f"{name}: damaged. Its lists and tables are nested deeper than {DEEPEST}.")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise UserError(f"{name}: is not valid YAML{where}. {_why(error)}.") from None
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: cannot be read. {_why(error)}.") from None
    return text


def check_zip(path: str | Path, *, name: str | None = None, contents: bool = False) -> None:
    """Check that a zip archive, if the file is one, unpacks to no more than its own size, as ``torch.save`` writes it.

    Args:
        path: Path of the file.
        name: What messages call it; None for the path.
        contents: Whether its bytes are compared with the checksums in it, which torch does not do.

    Raises:
        UserError: The archive is damaged, or its members are compressed.
    """
    name = name or str(path)
    with open_regular(path, name=name) as file:
        if file.read(4) != b"PK\x03\x04":
            return
        size = file.seek(0, os.SEEK_END)
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except FileError:  # the disk's fault, and a RuntimeError too
            raise
        except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{name}: damaged. Its archive cannot be read: {_why(error)}.") from None
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UserError(f"{name}: damaged. Its members are compressed, which torch.save never does.")
    if sum(member.file_size for member in members) > size:
        raise UserError(f"{name}: damaged. Its members are larger than the file.")
    if contents:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise UserError(f"{name}: damaged. {damaged} has changed since it was written (its CRC differs).")


def leads_out(path: str | Path, folder: str | Path) -> Path | None:
    """Return where a path below a folder leads if it leads out of the folder, as a link on the way can; else None.

    Args:
        path: Path of a file or folder; it need not exist.
        folder: Folder; it may itself be a link, or lie below one.
    """
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return None if real.is_relative_to(home) else real


def links_out(folder: str | Path) -> Iterator[str]:
    """Yield the links below a folder that lead out of it, one line each; whatever writes below the folder writes through them."""
    for at, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            path = os.path.join(at, name)
            if os.path.islink(path) and (real := leads_out(path, folder)) is not None:
                yield f"{printable(os.path.relpath(path, folder))}: a link out, to {printable(str(real))}"


def inside(folder: str | Path, name: str | Path, *, of: str = "run folder") -> Path:
    """Return the path of a file or folder that must be inside a run folder or bundle, to be read, written or deleted.

    Args:
        folder: Folder; it may itself be a link.
        name: Relative path of the file.
        of: Kind of the folder, for the message.

    Raises:
        UserError: The path leads out of the folder, as a symbolic link can, or is a circular link.
    """
    path = Path(folder) / name
    real = leads_out(path, folder)
    # a link to the folder itself is not a file of it either
    if real is not None or os.path.realpath(path) == os.path.realpath(folder):
        raise UserError(
            f"{path}: leads out of the {of}, to {real or os.path.realpath(path)}. All files of a {of} must lie in it. "
            f"If you trust it, copy it with its contents: cp -rL {folder} NEW_FOLDER"
        )
    return path


def check_safetensors(path: str | Path, *, name: str | None = None) -> Path:
    """Check a safetensors file that the library will open, and return its path.

    Raises:
        UserError: See :func:`open_regular`; also if its header is far larger than that of any network.
    """
    with open_regular(path, name=name) as file:
        header = int.from_bytes(file.read(8), "little")
    if LARGEST_HEADER < header <= os.path.getsize(path):
        raise UserError(
            f"{name or path}: is not a file of a network. Its header of {header:,} bytes names far more tensors than one has."
        )
    return Path(path)


def load_tensors(path: str | Path, *, name: str | None = None) -> "dict[str, Tensor]":
    """Read the tensors of a safetensors file to the CPU.

    Raises:
        UserError: See :func:`check_safetensors`; also if it is not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_safetensors(path, name=name)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        if (failed := read_error(error, path, name=name)) is not None:
            raise failed from error
        raise UserError(f"{name or path}: not a safetensors file. {_why(error)}.") from None


def tensor_shapes(path: str | Path, *, name: str | None = None) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the tensors in a safetensors file from its header only.

    Raises:
        UserError: See :func:`load_tensors`.
    """
    from safetensors import SafetensorError, safe_open

    check_safetensors(path, name=name)
    try:
        with safe_open(path, framework="np") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        if (failed := read_error(error, path, name=name)) is not None:
            raise failed from error
        raise UserError(f"{name or path}: not a safetensors file. {_why(error)}.") from None


def need(
    values: Mapping[str, Any], kinds: Mapping[str, type | tuple[type, ...]], *, name: str, remedy: str = ""
) -> None:
    """Check that an object has keys, each of its type; the error names all that are wrong.

    >>> need({"a": 1, "b": "x"}, {"a": int, "b": int, "c": list}, name="x.json")
    Traceback (most recent call last):
        ...
    finetune.errors.UserError: x.json: damaged. Missing or of the wrong type: b, c.
    >>> need({"a": True, "b": None}, {"a": (bool, type(None)), "b": (bool, type(None))}, name="x.json")
    """
    from finetune.errors import shortened

    wrong = [key for key, kind in kinds.items() if not _is(values.get(key), kind)]
    if wrong:
        raise UserError(
            f"{name}: damaged. Missing or of the wrong type: {shortened(wrong)}.{f' {remedy}' if remedy else ''}"
        )


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    # in Python a bool is an int too
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds or object in kinds)


@contextmanager
def open_table(path: str | Path, *, name: str | None = None) -> Iterator[TextIO]:
    """Open a text table for :mod:`csv`, in UTF-8, or in UTF-16 or UTF-32, which its first bytes show.

    Bytes that are not UTF-8 become surrogates, as in file names.

    Raises:
        UserError: See :func:`open_regular`.
    """
    with open_regular(path, name=name, largest=LARGEST_TABLE) as file:
        encoding = _encoding(file.peek(64)[:64])
        errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
        with io.TextIOWrapper(
            io.BufferedReader(_ShortLines(file, name or str(path))), encoding, errors, newline=""
        ) as text:
            yield text


def _encoding(head: bytes) -> str:
    r"""Return the encoding of a string by its byte order mark, or by the zero bytes of UTF-16 without one.

    >>> _encoding("path".encode("utf-16")), _encoding("path".encode("utf-16-be")), _encoding(b"path")
    ('utf-16', 'utf-16-be', 'utf-8-sig')
    """
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if max(even, odd) * 3 > len(head):
        return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8-sig"


class _ShortLines(io.RawIOBase):
    """Bytes of a table whose lines must be of limited length, because one line of gigabytes would be read whole."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name, self._since = file, name, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read bytes into a buffer, and check the length of the current line."""
        data = self._file.read(len(buffer))
        last = data.rfind(b"\n")
        self._since = self._since + len(data) if last < 0 else len(data) - last
        if self._since > LONGEST_LINE:
            raise UserError(
                f"{self._name}: is not a readable table. It has a line of more than {LONGEST_LINE:,} bytes."
            )
        buffer[: len(data)] = data
        return len(data)


def check_row_count(rows: int, path: str | Path, *, name: str) -> None:
    """Check that a Parquet file can list as many different files as it has rows; equal ones take no bytes.

    Raises:
        UserError: It has more than ten rows for each of its bytes.
    """
    size = os.path.getsize(path)
    if rows > 10 * size:
        raise UserError(
            f"{name}: is not a list of files. Its {rows:,} rows in {size:,} bytes can only repeat each other."
        )


def lines(path: str | Path, *, name: str | None = None, longest: int = LONGEST_LINE) -> Iterator[bytes]:
    """Yield the lines of a regular file, without their line ends.

    Raises:
        UserError: See :func:`open_regular`; also if a line is longer than any path.
    """
    with open_regular(path, name=name, largest=LARGEST_TABLE) as file:
        while line := file.readline(longest + 1):
            if len(line) > longest:
                raise UserError(
                    f"{name or path}: is not a list of files. It has a line of more than {longest:,} bytes."
                )
            yield line.rstrip(b"\r\n")

"""Checksums of the files that a run reads back, so that a flipped bit raises an error instead of changing weights.

Checkpoints are zip files, in which torch keeps a CRC-32 of each record; reading a checkpoint compares them. The size and SHA-256
of every other file are in ``checksums.json`` of its folder. A kill between the two writes must not make a good file look damaged:
a new digest is added to ``checksums.json`` before the file is renamed into place, and the digests of earlier versions are kept.
"""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.atomic_files import atomic_path, write_json
from finetune.errors import FileError, UserError, first_line
from finetune.file_errors import in_words, read_error
from finetune.resume_command import resume_command_near
from finetune.safe_files import LARGEST_JSON, LARGEST_TABLE, check_regular, open_regular, read_json

CHECKSUMS = "checksums.json"
# key of a bundle's model.json
DIGEST = "sha256"
# digests kept per file: a version that was never renamed into place may come before the current one in the list
_KEPT = 8

# most bytes to hash, by suffix, so that an endless file is not read
_LARGEST = {".json": LARGEST_JSON, ".csv": LARGEST_TABLE}

# remedy for a damaged file that can be made again without a copy
_REMEDIES = {
    "last.ckpt": "Delete it, then repeat the phase",
    "best.ckpt": "Delete it and last.ckpt beside it, then repeat the phase",
    "trials.ckpt": "Delete it, then repeat the trials",
    "result.json": "Delete it, then make it again",
    "start.safetensors": "Delete it, and result.json of the phase before if there is one, then make it again",
    "final.safetensors": "Delete it and result.json of the last phase, then make them again",
    "results.json": "Delete it, then test the run again",
    "evaluation.safetensors": "Delete results.json, then test the run again",
    "predictions.csv": "Delete results.json, then test the run again",
    "metrics.csv": "Delete results.json, then make it again",
}


def file_sha256(path: Path) -> str:
    """Return the hex digest of a file's bytes.

    Raises:
        UserError: The path is not a regular file, or the file is too large for its kind.
        FileError: The disk cannot read the file back.
    """
    with open_regular(path) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise read_error(error, path) or error from error


def json_sha256(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the contents of a bundle's ``model.json`` without the digest that it holds itself."""
    others = {key: value for key, value in values.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def checked_path(target: str | Path) -> Iterator[Path]:
    """Write a file atomically, as :func:`finetune.atomic_files.atomic_path` does, and record its checksum.

    Raises:
        RunError: The disk is full.
    """
    target = Path(target)
    with atomic_path(target) as part:
        yield part
        _add(target, _digest(part))


def write_checked_json(target: str | Path, value: Any) -> None:
    """Write JSON atomically and record its checksum; refuse NaN and infinity."""
    write_checked_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_checked_text(target: str | Path, text: str) -> None:
    """Write a text file atomically, in UTF-8, and record its checksum."""
    with checked_path(target) as part, part.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()


def keep_checksum(path: Path) -> None:
    """Record the checksum of an existing file that was written without one."""
    _add(path, _digest(path))


def _digest(path: Path) -> str:
    # the size first: a file of another length, perhaps an endless one, need not be read
    return f"{path.stat().st_size} {file_sha256(path)}"


def _add(path: Path, digest: str) -> None:
    kept = _read(path.parent)
    before = kept.get(path.name, [])
    if before[:1] != [digest]:
        kept[path.name] = [digest, *(old for old in before if old != digest)][:_KEPT]
        write_json(path.parent / CHECKSUMS, kept)


def verify(path: Path) -> None:
    """Compare a file with its checksum. A file without a checksum passes: see :func:`require_checksums`.

    Raises:
        UserError: The file's bytes are not those that were written.
    """
    if path.suffix == ".ckpt":
        _verify_zip(path)
        return
    known = _read(path.parent).get(path.name)
    if known is None:
        return
    size = check_regular(path, largest=_LARGEST.get(path.suffix)).stat().st_size
    sizes = {digest.partition(" ")[0] for digest in known}
    try:
        same = str(size) in sizes and _digest(path) in known
    except OSError as error:
        raise UserError(in_words(error, path, "cannot be read")) from error
    if not same:
        raise UserError(f"{path}: damaged. Its SHA-256 differs from the one in {CHECKSUMS}. {remedy(path)}.")


def require_checksums(paths: Iterable[Path]) -> None:
    """Check that each of these files that exists has a checksum.

    Raises:
        UserError: A file has none.
    """
    for path in paths:
        if path.is_file() and path.name not in _read(path.parent):
            raise UserError(
                f"{path}: has no checksum in {path.parent / CHECKSUMS}, so it cannot be verified. {remedy(path)}."
            )


def _read(folder: Path) -> dict[str, list[str]]:
    path = folder / CHECKSUMS
    if not os.path.lexists(path):
        return {}
    kept = read_json(path, dict, remedy=f"{remedy(path)}.")
    if not all(
        isinstance(digests, list) and all(isinstance(digest, str) for digest in digests) for digests in kept.values()
    ):
        raise UserError(f"{path}: damaged. It must hold lists of digests. {remedy(path)}.")
    return kept


def _verify_zip(path: Path) -> None:
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            # torch would read a record marked as a folder as one without contents
            marked = [record.filename for record in archive.infolist() if record.external_attr]
            wrong = marked[0] if marked else archive.testzip()
    except (UserError, FileError):
        raise
    except Exception as error:  # zipfile raises many kinds of errors for flipped bits in headers
        if (failed := read_error(error, path)) is not None:
            raise failed from error
        why = first_line(error)
        raise UserError(f"{path}: damaged. {why}. {remedy(path)}.") from error
    if wrong is not None:
        raise UserError(f"{path}: damaged. Its record {wrong!r} has changed since it was written. {remedy(path)}.")


def remedy(path: Path) -> str:
    """Return what to do about a damaged file of a run."""
    known = _REMEDIES.get(path.name)
    if known is None:
        return "Restore it from a backup, if you have one; else train again"
    return f"Restore it from a backup, if you have one. {known}: {resume_command_near(path)}"

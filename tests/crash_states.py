"""What a power cut may leave of files, from a record of the operations on them.

A disk keeps for certain what was synced: the contents of a file as they were at its last fsync, the names in a folder as they
were at the folder's last fsync. Everything since may be there, or not, or in part, and names may be there before contents (the
model of ALICE, Pillai et al., OSDI 2014). The combinations are too many, so the states here are the extremes of each: nothing
unsynced, all of it, each change of a name alone or left out; and for contents nothing, zeros, the last write torn, all of it,
and one file ahead of another.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tests.file_layer import Operation

FOLDER = -1
# pending changes of names of which each is left out and applied alone; of more, only the first and the last are
EACH = 8


@dataclass(eq=False)
class Contents:
    """Bytes of a file, hashed once however many states they are in."""

    data: bytes

    @cached_property
    def digest(self) -> bytes:
        """Hash of the bytes."""
        return hashlib.sha256(self.data).digest()


Tree = Mapping[str, Contents | None]


@dataclass
class File:
    """Contents of a file: what is synced, and each change since.

    Args:
        synced: As of the last fsync.
        changes: Writes as (offset, bytes), new sizes as (size, None), all bytes of a mapped file as (-1, bytes).
    """

    synced: bytes = b""
    changes: list[tuple[int, bytes | None]] = field(default_factory=list)
    _known: dict[tuple[str, int], Contents] = field(default_factory=dict)

    def contents(self, how: str) -> Contents:
        """The contents after a power cut, with ``how`` as below."""
        key = (how, len(self.changes))
        if key not in self._known:
            self._known = {old: known for old, known in self._known.items() if old[1] == len(self.changes)}
            self._known[key] = Contents(self._contents(how))
        return self._known[key]

    def _contents(self, how: str) -> bytes:
        """The contents after a power cut.

        Args:
            how: ``synced``, ``zeros`` (the size is new, the bytes are not), ``torn`` (half of the last write) or ``whole``.
        """
        if how == "synced" or not self.changes:
            return self.synced
        if how == "zeros":
            size = len(_changed(self.synced, self.changes))
            return self.synced[:size].ljust(size, b"\0")
        if how == "torn":
            at, last = self.changes[-1]
            before = _changed(self.synced, self.changes[:-1])
            if last is None:
                return before
            if at == -1:
                half = len(last) // 2
                return last[:half] + before[half : len(last)].ljust(len(last) - half, b"\0")
            # the file has its size, the second half of the write has not arrived
            sized = _changed(before, [(max(len(before), at + len(last)), None)])
            return _changed(sized, [(at, last[: len(last) // 2])])
        return _changed(self.synced, self.changes)


def _changed(contents: bytes, changes: list[tuple[int, bytes | None]]) -> bytes:
    now = bytearray(contents)
    for at, data in changes:
        if data is None:
            now = now[:at].ljust(at, b"\0")
        elif at == -1:
            now = bytearray(data)
        else:
            if len(now) < at:
                now = now.ljust(at, b"\0")
            now[at : at + len(data)] = data
    return bytes(now)


class Disk:
    """Names and contents, as the programs see them and as they are synced."""

    def __init__(self) -> None:
        self.files: list[File] = []
        self.names: dict[str, int] = {}
        self.synced_names: dict[str, int] = {}
        # changes of names since their folder's fsync, in order; a rename is one change of two names
        self.pending: list[dict[str, int | None]] = []
        self._of_inode: dict[int, int] = {}

    def apply(self, operation: Operation) -> None:
        """Do what was recorded."""
        path = operation.path
        if operation.kind == "mark":
            return
        if operation.kind == "mkdir":
            self._rename({path: FOLDER})
            return
        if operation.kind == "sync" and self.names.get(path, FOLDER if path == "" else None) == FOLDER:
            self._sync_folder(path)
            return
        if operation.kind == "create":
            self.files.append(File())
            self._of_inode[operation.inode] = len(self.files) - 1
            self._rename({path: len(self.files) - 1})
            return
        if self.names.get(path) == FOLDER and operation.kind == "open":
            return
        if operation.kind == "unlink":
            if path in self.names:
                self._rename({path: None})
            return
        file = self._of_inode.get(operation.inode)
        if file is None:
            # a folder that was there before, opened to be synced
            assert operation.kind == "open", operation
            return
        if operation.kind == "rename":
            self._rename({path: None, operation.path2: file})
            return
        if operation.kind == "link":
            self._rename({operation.path2: file})
            return
        if self.names.get(path) != file:
            # renamed by a system call that passes no function of the C library, as safetensors' Rust does
            self._rename({**{name: None for name, which in self.names.items() if which == file}, path: file})
        changes = self.files[file].changes
        if operation.kind == "truncate":
            changes.append((0, None))
        elif operation.kind == "resize":
            changes.append((operation.offset, None))
        elif operation.kind == "write":
            changes.append((operation.offset, operation.data))
        elif operation.kind == "mapped":
            changes.append((-1, operation.data))
        elif operation.kind == "sync":
            self.files[file] = File(self.files[file].contents("whole").data)

    def _rename(self, change: dict[str, int | None]) -> None:
        self.pending.append(change)
        self.names = _renamed(self.names, [change])

    def _sync_folder(self, folder: str) -> None:
        here = [change for change in self.pending if any(os.path.dirname(path) == folder for path in change)]
        self.synced_names = _renamed(self.synced_names, here)
        self.pending = [change for change in self.pending if change not in here]

    def tree(self, names: Mapping[str, int], how: str = "whole") -> dict[str, Contents | None]:
        """Path -> contents; None for a folder. A name whose folder is not there is not there either.

        Args:
            names: Which names exist.
            how: As of :meth:`File.contents`; ``even`` and ``odd`` keep all of every second unsynced file, none of the others.
        """
        found: dict[str, Contents | None] = {}
        unsynced = sorted({file for file in names.values() if file != FOLDER and self.files[file].changes})
        for path in sorted(names):
            parent = os.path.dirname(path)
            if parent and parent not in found:
                continue
            file = names[path]
            if file == FOLDER:
                found[path] = None
                continue
            mine = how
            if how in ("even", "odd"):
                ahead = file in unsynced and unsynced.index(file) % 2 == (how == "odd")
                mine = "whole" if ahead else "synced"
            found[path] = self.files[file].contents(mine)
        return found

    def states(self) -> Iterator[tuple[str, dict[str, Contents | None]]]:
        """What a power cut now may leave, each with what it is called."""
        names = {"names synced": self.synced_names, "names all": self.names}
        which = range(len(self.pending)) if len(self.pending) <= EACH else (0, len(self.pending) - 1)
        for number in which:
            names[f"names all but {number}"] = _renamed(
                self.synced_names, [change for i, change in enumerate(self.pending) if i != number]
            )
            names[f"names synced and {number}"] = _renamed(self.synced_names, [self.pending[number]])
        for called, chosen in names.items():
            for how in ("synced", "zeros", "torn", "whole", "even", "odd"):
                yield f"{called}, contents {how}", self.tree(chosen, how)


def _renamed(names: Mapping[str, int], changes: list[dict[str, int | None]]) -> dict[str, int]:
    now = dict(names)
    for change in changes:
        for path, file in change.items():
            if file is None:
                now.pop(path, None)
            else:
                now[path] = file
    return now


def is_scratch(path: str) -> bool:
    """Whether a file is one that was never finished; nothing reads it, so its contents make no difference."""
    name = os.path.basename(path)
    return name.endswith(".part") or name.startswith(".tmp")


def digest(tree: Tree) -> bytes:
    """Equal for states that nothing can tell apart."""
    found = hashlib.sha256()
    for path, contents in sorted(tree.items()):
        kept = b"" if contents is None or is_scratch(path) else contents.digest
        found.update(f"{path}\0{contents is None}\0".encode() + kept)
    return found.digest()


def materialize(tree: Tree, folder: Path) -> None:
    """Write a state."""
    folder.mkdir(parents=True)
    for path, contents in sorted(tree.items()):
        if contents is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(contents.data)


def tree_of(folder: Path) -> dict[str, bytes | None]:
    """The tree that lies in a folder."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }

"""Read folders of images: which names are images, which folders are entered, and which are left out.

Training, prediction, embedding and the search for pictures that were left out read folders with these functions, so that all
of them see the same files.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import product

from finetune.data.image_file import FORMAT_OF_SUFFIX
from finetune.errors import shortened
from finetune.safe_files import check_regular

# formats that an extra's library reads; without it, files of these formats are pictures that are not read
_LIBRARIES = {"HEIF": "pillow_heif", "DICOM": "pydicom"}
_READ_FORMATS = frozenset(FORMAT_OF_SUFFIX.values()) - {
    kind for kind, name in _LIBRARIES.items() if find_spec(name) is None
}

SUFFIXES = tuple(suffix for suffix, kind in FORMAT_OF_SUFFIX.items() if kind in _READ_FORMATS)
# suffixes of pictures that are not read
_NEVER_READ = (
    ".jp2", ".j2k", ".jxl", ".jxr", ".svg", ".psd", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".ppm", ".pgm", ".pbm",
    ".tga", ".ico", ".exr", ".hdr",
)  # fmt: skip
UNREAD_SUFFIXES = (*(suffix for suffix in FORMAT_OF_SUFFIX if suffix not in SUFFIXES), *_NEVER_READ)

# all upper- and lower-case spellings of each suffix, because changing the case of a million names takes time
_ENDINGS = frozenset(
    "".join(letters) for suffix in SUFFIXES for letters in product(*((c, c.upper()) for c in suffix[1:]))
)

# folders that systems create beside the user's, in lower case: macOS, Python, Synology, QNAP, Windows, Linux
_SYSTEM_FOLDERS = frozenset(
    ("__macosx", "__pycache__", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin",
     "recycler", "system volume information", "lost+found")
)  # fmt: skip


def is_left_out(folder: str) -> bool:
    """Tell whether a folder of this name is never read, because it is hidden or created by a system.

    >>> [name for name in ("cat", ".git", "@eaDir", "__MACOSX", "lost+found") if not is_left_out(name)]
    ['cat']
    """
    return folder[0] == "." or folder.casefold() in _SYSTEM_FOLDERS


def is_image_name(name: str) -> bool:
    """Tell whether a file name is that of an image: not hidden, with the suffix of a format that is read.

    >>> [name for name in ("a.JPG", "a.jfif", "jpg", ".a.jpg", "a.txt") if is_image_name(name)]
    ['a.JPG', 'a.jfif']
    """
    stem, dot, ending = name.rpartition(".")
    return bool(stem) and dot == "." and ending in _ENDINGS and name[0] != "."


def check_files_below(top: str) -> None:
    """Check a file, or the files below a folder, that a library will open: no pipe, on which it would wait, and no device.

    Images are left out, because this package reads them itself. Linked folders are entered, as libraries do.

    Raises:
        UserError: A file is not a regular file.
    """
    if os.path.lexists(top) and not os.path.isdir(top):
        check_regular(top)
    seen = set()
    for folder, folders, files in os.walk(top, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        for file in files:
            if not is_image_name(file) and os.path.exists(path := os.path.join(folder, file)):
                check_regular(path)


@dataclass(frozen=True)
class FolderContents:
    """The names in one folder.

    Args:
        images: Names of images, in no order; only their names were examined.
        folders: Names of the folders that are entered.
        left_out: Names of the folders that are not entered.
        others: Names of other files, including hidden ones.
    """

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def read_folder(path: str) -> FolderContents:
    """Return the names in a folder by kind; links are followed.

    A million names take a second or two, because files with the name of an image are not examined.

    Raises:
        OSError: The folder cannot be listed.
    """
    contents = FolderContents()
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if name.rpartition(".")[2] in _ENDINGS and is_image_name(name) and not entry.is_dir(follow_symlinks=False):
                contents.images.append(name)
            elif not _is_folder(entry):
                contents.others.append(name)
            elif is_left_out(name):
                contents.left_out.append(name)
            else:
                contents.folders.append(name)
    return contents


def first_look(path: str) -> tuple[bool, list[str]]:
    """Return whether a folder holds an image, and if not, the folders in it; a folder of images is not read to its end.

    Raises:
        OSError: The folder cannot be listed.
    """
    folders = []
    with os.scandir(path) as entries:
        for entry in entries:
            if is_image_name(entry.name) and not _is_folder(entry):
                return True, []
            if _is_folder(entry) and not is_left_out(entry.name):
                folders.append(entry.name)
    return False, folders


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to a place that may not be examined
        return False


class Links:
    """The links to folders that a walk has followed, so that it never runs in a circle.

    Args:
        top: Folder that the walk starts at.
    """

    def __init__(self, top: str) -> None:
        self._top = top
        self._visited: set[str] = set()

    def leads_on(self, path: str) -> bool:
        """Tell whether to enter a folder: it is not a link, or a link that leads neither upwards nor to a visited folder."""
        if not os.path.islink(path):
            return True
        real = os.path.realpath(path)
        here = os.path.realpath(os.path.dirname(path))
        if real in self._visited or _holds(real, here):
            return False
        self._visited.add(real)
        return True


def _holds(folder: str, path: str) -> bool:
    """Tell whether a real path is a folder or lies below it."""
    try:
        return os.path.commonpath([folder, path]) == folder
    except ValueError:  # two drives of Windows
        return False


def in_words(counts: Iterable[tuple[str, int]], show: int = 5) -> str:
    """Return kinds of files and their numbers as text, the most frequent first.

    >>> in_words([("*.txt", 1), ("*.heic", 12)])
    '12 x *.heic, 1 x *.txt'
    """
    return shortened([f"{count} x {what}" for what, count in sorted(counts, key=lambda item: -item[1])], show)


def kind_of_file(name: str) -> str:
    """Return the kind that files are counted under, by their suffix.

    >>> kind_of_file("a.TXT"), kind_of_file("README"), kind_of_file(".DS_Store")
    ('*.txt', 'README', 'hidden files')
    """
    stem, suffix = os.path.splitext(name)
    return "hidden files" if name[0] == "." else f"*{suffix.lower()}" if suffix else stem

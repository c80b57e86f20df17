"""An image folder in its usual shapes, scanned without importing anything heavy.

``DIR/<class>/*`` or ``DIR/{train,val|valid|validation,test}/<class>/*``; folders nested below a class belong to it.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from finetune.data.index import SPLITS, natural_order
from finetune.data.listing import UNASSIGNED, Listing, check_classes, merge
from finetune.data.path_table import PathTableBuilder
from finetune.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")

# pictures that exist in other formats too; these are named when they are left out
UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".jfif", ".jp2", ".jxl", ".svg", ".psd", ".raw", ".dng", ".cr2", ".nef")

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

# system folders that are not classes
_NOT_CLASSES = ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information")


def check_root(root: str) -> str:
    """The absolute path of a data folder.

    Raises:
        UserError: It does not exist, or is a file.
    """
    if not root:
        raise UserError("data.root=: must name a folder of images. Give data.root=DIR.")
    path = os.path.abspath(os.path.expanduser(root))
    if not os.path.exists(path):
        parent = path
        while not os.path.isdir(parent):
            parent = os.path.dirname(parent)
        raise UserError(f"data.root={root!r}: no such folder. The path exists up to {parent}. Check the spelling.")
    if not os.path.isdir(path):
        raise UserError(f"data.root={root!r}: must be a folder. It is a file. Give the folder that holds the classes.")
    return path


def scan_folders(root: str | Sequence[str]) -> Listing:
    """One folder, or several as one data set.

    Raises:
        UserError: As :func:`scan_folder`, or the folders do not name the same splits.
    """
    roots = [root] if isinstance(root, str) else list(root)
    if not roots:
        raise UserError("data.root=[]: must name a folder of images. Give data.root=DIR.")
    return check_classes(merge([_list_folder(one) for one in roots]))


def scan_folder(root: str) -> Listing:
    """List the images of a folder; nothing is opened.

    Args:
        root: The folder as the user wrote it.

    Raises:
        UserError: No folder, no image, fewer than two classes, a class without a training image, a class that only
            val or test has, or two folders for one split.
    """
    return scan_folders(root)


def _list_folder(root: str) -> Listing:
    top = check_root(root)
    walker = _Walker(top)
    visible = walker.subfolders("")
    layout = {name: SPLIT_FOLDERS[name.lower()] for name in visible if name.lower() in SPLIT_FOLDERS}
    train = next((name for name, split in layout.items() if split == "train"), None)
    groups = [("", UNASSIGNED)]
    if train is not None and walker.subfolders(train):
        groups = _split_groups(root, layout)
        walker.ignored.update({f"{name}/ (not a split)": 1 for name in visible if name not in layout})
    elif visible and len(layout) == len(visible):
        # without this the folders train and val would become two classes
        found_in = f"{train}/ holds no class folder" if train else f"found only {', '.join(sorted(layout))}"
        raise UserError(
            f"data.root={root!r}: must hold train/<class>/* or <class>/*. {found_in}. Add the class folders."
        )

    names: dict[str, int] = {}  # class name -> number in the order found
    found: list[tuple[int, int, int]] = []  # split, class number, images
    for folder, split in groups:
        for class_folder in walker.subfolders(folder) if folder else visible:
            number = names.setdefault(unicodedata.normalize("NFC", class_folder), len(names))
            found.append((split, number, walker.add(os.path.join(folder, class_folder))))

    if not sum(images for _, _, images in found):
        looked = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
        below = f"{walker.folders} folder{'s' if walker.folders != 1 else ''} below it"
        loose = walker.ignored.get("images outside a class folder", 0)
        hint = f" {loose} images lie directly in it: put them into one folder a class." if loose else ""
        raise UserError(f"data.root={root!r}: no images found. Looked for {looked} in {below}.{hint}")
    classes = natural_order(names)

    position = {names[name]: target for target, name in enumerate(classes)}
    lengths = [images for _, _, images in found]
    return Listing(
        origin=f"data.root={root!r}",
        root=top,
        classes=tuple(classes),
        paths=walker.builder.build(),
        targets=np.repeat(np.asarray([position[number] for _, number, _ in found], np.int64), lengths),
        splits=np.repeat(np.asarray([split for split, _, _ in found], np.int8), lengths),
        given=tuple(name for name in SPLITS if name in layout.values()) if groups[0][0] else (),
        ignored=dict(walker.ignored),
    )


def _split_groups(root: str, layout: dict[str, str]) -> list[tuple[str, int]]:
    """Each split folder and its position in ``SPLITS``, train first."""
    twice = [split for split, times in Counter(layout.values()).items() if times > 1]
    if twice:
        both = " and ".join(sorted(name for name, split in layout.items() if split == twice[0]))
        raise UserError(f"data.root={root!r}: one folder for each split. Found {both}. Keep one of them.")
    return sorted(((name, SPLITS.index(split)) for name, split in layout.items()), key=lambda group: group[1])


class _Walker:
    """Goes through folders and collects image names, counting what it leaves out."""

    def __init__(self, top: str) -> None:
        self.top = top
        self.builder = PathTableBuilder()
        self.ignored: Counter[str] = Counter()
        self.folders = 0

    def subfolders(self, folder: str) -> list[str]:
        """Names of the folders directly in ``folder`` that can be classes or splits; loose files are counted."""
        names, files = [], []
        for entry in self._entries(folder):
            if not entry.is_dir():
                files.append(entry.name)
            elif entry.name.startswith(".") or entry.name in _NOT_CLASSES:
                self.ignored[f"{entry.name}/"] += 1
            else:
                names.append(entry.name)
        loose = sum(name.lower().endswith(SUFFIXES) and name[0] != "." for name in files)
        if loose:
            self.ignored["images outside a class folder"] += loose
        self._count_others(name for name in files if not name.lower().endswith(SUFFIXES) or name[0] == ".")
        return natural_order(names)

    def add(self, class_folder: str) -> int:
        """Append all images below a class folder; how many there were."""
        total, waiting = 0, [class_folder]
        seen: set[str] = set()
        while waiting:
            folder = waiting.pop()
            self.folders += 1
            images, others = [], []
            for entry in self._entries(folder):
                name = entry.name
                # the type of an entry comes with the listing; only links and odd names cost a look at the file
                if name.lower().endswith(SUFFIXES) and name[0] != "." and not entry.is_dir(follow_symlinks=False):
                    images.append(name)
                elif entry.is_dir():
                    if entry.is_symlink() and not self._leads_on(entry.path, folder, seen):
                        self.ignored["links to a folder seen already"] += 1
                        continue
                    waiting.append(os.path.join(folder, name))
                else:
                    others.append(name)
            images.sort()
            self.builder.add_folder(folder, images)
            self._count_others(others)
            total += len(images)
        return total

    def _leads_on(self, link: str, folder: str, seen: set[str]) -> bool:
        """Whether a link to a folder leads neither upwards nor to a place visited by another link."""
        real = os.path.realpath(link)
        here = os.path.realpath(os.path.join(self.top, folder))
        if real in seen or os.path.commonpath([real, here]) == real:
            return False
        seen.add(real)
        return True

    def _entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(os.path.join(self.top, folder)) as entries:
                yield from entries
        except OSError as error:
            raise UserError(f"data.root: {error.filename!r} cannot be listed. {error.strerror}.") from None

    def _count_others(self, names: Iterator[str] | list[str]) -> None:
        for name in names:
            stem, suffix = os.path.splitext(name)
            self.ignored["hidden files" if name[0] == "." else f"*{suffix.lower()}" if suffix else stem] += 1

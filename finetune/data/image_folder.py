"""Lists an image folder in its usual layouts, without importing anything heavy.

The layouts are ``DIR/<class>/*`` and ``DIR/{train,val|valid|validation,test}/<class>/*``; folders nested below a class
belong to it.
"""

import os
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import product

import numpy as np

from finetune.data.image_file import read_head
from finetune.data.index import SPLITS, natural_order
from finetune.data.listing import UNASSIGNED, Listing, check_classes, merge
from finetune.data.path_table import PathTableBuilder
from finetune.data.progress import Progress
from finetune.errors import UserError
from finetune.file_errors import in_words

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")

# all upper- and lower-case spellings of each suffix, because changing the case of a million names takes time
_ENDINGS = frozenset(
    "".join(letters) for suffix in SUFFIXES for letters in product(*((c, c.upper()) for c in suffix[1:]))
)

# picture formats that are not supported; the audit reports files that were left out for it
UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".jfif", ".jp2", ".jxl", ".svg", ".psd", ".raw", ".dng", ".cr2", ".nef")

# first bytes of JPEG, PNG, GIF and TIFF; the two letters of BMP would match too many text files
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

# system folders that are not classes
_NOT_CLASSES = ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information")


def check_root(root: str) -> str:
    """Return the absolute path of a data folder.

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


def list_training_folders(root: str | Sequence[str]) -> Listing:
    """List the images of one folder, or of several folders as one data set, to train on; nothing is opened.

    Args:
        root: Path of the folder, or of each, as the user wrote it.

    Raises:
        UserError: There is no such folder, it holds no image or fewer than two classes, a class has no training image,
            only val or test has a class, two folders are given for one split, or the folders do not name the same splits.
    """
    return check_classes(list_folders(root))


def list_folders(root: str | Sequence[str]) -> Listing:
    """List images as :func:`list_training_folders` does, but also accept data that cannot be trained on.

    There may be a single class, and classes that only the test split has.

    Raises:
        UserError: There is no such folder, it holds no image, or two folders are given for one split.
    """
    roots = [root] if isinstance(root, str) else list(root)
    if not roots:
        raise UserError("data.root=[]: must name a folder of images. Give data.root=DIR.")
    return merge([_list_folder(one) for one in roots])


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
        # without this check the folders train and val would become two classes
        found_in = f"{train}/ holds no class folder" if train else f"found only {', '.join(sorted(layout))}"
        raise UserError(
            f"data.root={root!r}: must hold train/<class>/* or <class>/*. {found_in}. Add the class folders."
        )

    names: dict[str, int] = {}  # class name -> number, in order of discovery
    class_folders: list[tuple[int, int, int]] = []  # split, class number, images
    for folder, split in groups:
        for class_folder in walker.subfolders(folder) if folder else visible:
            number = names.setdefault(unicodedata.normalize("NFC", class_folder), len(names))
            class_folders.append((split, number, walker.add(os.path.join(folder, class_folder))))

    walker.progress.close()
    if not sum(images for _, _, images in class_folders):
        patterns = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
        below = f"{walker.folders} folder{'s' if walker.folders != 1 else ''} below it"
        loose = walker.ignored.get("images outside a class folder", 0)
        hint = f" {loose} images lie directly in it: put them into one folder per class." if loose else ""
        raise UserError(f"data.root={root!r}: no images found. Looked for {patterns} in {below}.{hint}")
    classes = natural_order(names)

    position = {names[name]: target for target, name in enumerate(classes)}
    lengths = [images for _, _, images in class_folders]
    return Listing(
        origin=f"data.root={root!r}",
        root=top,
        classes=tuple(classes),
        paths=walker.builder.build(),
        targets=np.repeat(np.asarray([position[number] for _, number, _ in class_folders], np.int64), lengths),
        splits=np.repeat(np.asarray([split for split, _, _ in class_folders], np.int8), lengths),
        given=tuple(name for name in SPLITS if name in layout.values()) if groups[0][0] else (),
        ignored={what: count for what, count in walker.ignored.items() if count},
    )


def pictures_left_out(root: str | Sequence[str]) -> list[str]:
    """Return the files below a folder that are pictures by suffix or first bytes but are not read."""
    pictures = []
    for top in [root] if isinstance(root, str) else root:
        for parent, folders, names in os.walk(check_root(top)):
            folders[:] = sorted(name for name in folders if name[0] != "." and name not in _NOT_CLASSES)
            for name in sorted(names):
                if name[0] == "." or name.rpartition(".")[2] in _ENDINGS:
                    continue
                path = os.path.join(parent, name)
                if name.lower().endswith(UNREAD_SUFFIXES) or _starts_like_a_picture(path):
                    pictures.append(path)
    return pictures


def _starts_like_a_picture(path: str) -> bool:
    head = read_head(path)
    return head.startswith(_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def _split_groups(root: str, layout: dict[str, str]) -> list[tuple[str, int]]:
    """Return each split folder and its position in ``SPLITS``, train first."""
    repeated = [split for split, times in Counter(layout.values()).items() if times > 1]
    if repeated:
        both = " and ".join(sorted(name for name, split in layout.items() if split == repeated[0]))
        raise UserError(f"data.root={root!r}: one folder for each split. Found {both}. Keep one of them.")
    return sorted(((name, SPLITS.index(split)) for name, split in layout.items()), key=lambda group: group[1])


class _Walker:
    """A walk through folders that collects image names and counts what it leaves out."""

    def __init__(self, top: str) -> None:
        self.top = top
        self.builder = PathTableBuilder()
        self.ignored: Counter[str] = Counter()
        self.folders = 0
        self.progress = Progress("listing images")

    def subfolders(self, folder: str) -> list[str]:
        """Return the names of the folders in ``folder`` that can be classes or splits; count its loose files."""
        names, files = [], []
        for name in self._names(folder):
            if not os.path.isdir(os.path.join(self.top, folder, name)):
                files.append(name)
            elif name.startswith(".") or name in _NOT_CLASSES:
                self.ignored[f"{name}/"] += 1
            else:
                names.append(name)
        loose = [name for name in files if name.rpartition(".")[2] in _ENDINGS and name[0] != "."]
        if loose:
            self.ignored["images outside a class folder"] += len(loose)
        self._count_others(sorted(set(files) - set(loose)))
        return natural_order(names)

    def add(self, class_folder: str) -> int:
        """Append all images below a class folder and return their number.

        Only names are examined: listing a million files takes a second because none of them is opened or examined.
        Anything that has an image's name but is not an image, such as a folder, is found when the images are scanned.
        """
        total, waiting = 0, [class_folder]
        visited: set[str] = set()
        while waiting:
            folder = waiting.pop()
            self.folders += 1
            names = self._names(folder)
            images = sorted(name for name in names if name.rpartition(".")[2] in _ENDINGS)
            # in sorted order the hidden files are adjacent: "/" follows "." and is in no name
            hidden = slice(bisect_left(images, "."), bisect_left(images, "/"))
            self.ignored["hidden files"] += hidden.stop - hidden.start
            del images[hidden]
            self.builder.add_folder(folder, images)
            total += len(images)
            self.progress.advance(len(images))
            if len(images) < len(names):
                others = [name for name in names if name.rpartition(".")[2] not in _ENDINGS]
                waiting += self._enter(folder, others, visited)
        return total

    def _enter(self, folder: str, names: list[str], seen: set[str]) -> list[str]:
        """Return the folders among some names that the walk enters; count the rest."""
        folders, others = [], []
        for name in sorted(names):
            path = os.path.join(self.top, folder, name)
            if not os.path.isdir(path):
                others.append(name)
            elif name.startswith(".") or name in _NOT_CLASSES:
                self.ignored[f"{name}/"] += 1
            elif os.path.islink(path) and not self._leads_on(path, folder, seen):
                self.ignored["links to a folder already visited"] += 1
            else:
                folders.append(os.path.join(folder, name))
        self._count_others(others)
        return folders

    def _leads_on(self, link: str, folder: str, seen: set[str]) -> bool:
        """Tell whether a link to a folder leads neither upwards nor to a place that another link led to."""
        real = os.path.realpath(link)
        here = os.path.realpath(os.path.join(self.top, folder))
        if real in seen or os.path.commonpath([real, here]) == real:
            return False
        seen.add(real)
        return True

    def _names(self, folder: str) -> list[str]:
        path = os.path.join(self.top, folder)
        try:
            return os.listdir(path)
        except OSError as error:
            raise UserError(
                in_words(error, path, f"{path!r} cannot be listed", name=f"data.root={self.top!r}")
            ) from None

    def _count_others(self, names: list[str]) -> None:
        for name in names:
            stem, suffix = os.path.splitext(name)
            self.ignored["hidden files" if name[0] == "." else f"*{suffix.lower()}" if suffix else stem] += 1

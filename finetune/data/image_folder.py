"""An image folder in its usual shapes, scanned without importing anything heavy.

``DIR/<class>/*`` or ``DIR/{train,val|valid|validation,test}/<class>/*``; folders nested below a class belong to it.
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

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")

# all spellings of a suffix are looked up at once, because changing the case of a million names takes time
_ENDINGS = frozenset(
    "".join(letters) for suffix in SUFFIXES for letters in product(*((c, c.upper()) for c in suffix[1:]))
)

# pictures that exist in other formats too; these are named when they are left out
UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".jfif", ".jp2", ".jxl", ".svg", ".psd", ".raw", ".dng", ".cr2", ".nef")

# first bytes of JPEG, PNG, GIF and TIFF; two letters of BMP would match too many texts
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")

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
    return check_classes(list_folders(root))


def list_folders(root: str | Sequence[str]) -> Listing:
    """As :func:`scan_folders`, for data that nothing is trained on: a class may stand alone, or in the test split only.

    Raises:
        UserError: No folder, no image, or two folders for one split.
    """
    roots = [root] if isinstance(root, str) else list(root)
    if not roots:
        raise UserError("data.root=[]: must name a folder of images. Give data.root=DIR.")
    return merge([_list_folder(one) for one in roots])


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

    walker.progress.close()
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
        ignored={what: count for what, count in walker.ignored.items() if count},
    )


def pictures_left_out(root: str | Sequence[str]) -> list[str]:
    """Paths of files below a folder that are pictures by their suffix or first bytes, and that are not read."""
    found = []
    for top in [root] if isinstance(root, str) else root:
        for parent, folders, names in os.walk(check_root(top)):
            folders[:] = sorted(name for name in folders if name[0] != "." and name not in _NOT_CLASSES)
            for name in sorted(names):
                if name[0] == "." or name.rpartition(".")[2] in _ENDINGS:
                    continue
                path = os.path.join(parent, name)
                if name.lower().endswith(UNREAD_SUFFIXES) or _starts_like_a_picture(path):
                    found.append(path)
    return found


def _starts_like_a_picture(path: str) -> bool:
    head = read_head(path)
    return head.startswith(_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


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
        self.progress = Progress("listing images")

    def subfolders(self, folder: str) -> list[str]:
        """Names of the folders directly in ``folder`` that can be classes or splits; loose files are counted."""
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
        """Append all images below a class folder; how many there were.

        Only the names are looked at: a listing without a look at each file is what makes a million of them take a second.
        What bears an image's name and is none, a folder for instance, is found when the images are checked.
        """
        total, waiting = 0, [class_folder]
        seen: set[str] = set()
        while waiting:
            folder = waiting.pop()
            self.folders += 1
            names = self._names(folder)
            images = sorted(name for name in names if name.rpartition(".")[2] in _ENDINGS)
            # in sorted order the hidden ones lie together: "/" follows "." and is in no name
            hidden = slice(bisect_left(images, "."), bisect_left(images, "/"))
            self.ignored["hidden files"] += hidden.stop - hidden.start
            del images[hidden]
            self.builder.add_folder(folder, images)
            total += len(images)
            self.progress.advance(len(images))
            if len(images) < len(names):
                others = [name for name in names if name.rpartition(".")[2] not in _ENDINGS]
                waiting += self._enter(folder, others, seen)
        return total

    def _enter(self, folder: str, names: list[str], seen: set[str]) -> list[str]:
        """The folders among some names that are to be listed too; the rest is counted."""
        folders, others = [], []
        for name in sorted(names):
            path = os.path.join(self.top, folder, name)
            if not os.path.isdir(path):
                others.append(name)
            elif name.startswith(".") or name in _NOT_CLASSES:
                self.ignored[f"{name}/"] += 1
            elif os.path.islink(path) and not self._leads_on(path, folder, seen):
                self.ignored["links to a folder seen already"] += 1
            else:
                folders.append(os.path.join(folder, name))
        self._count_others(others)
        return folders

    def _leads_on(self, link: str, folder: str, seen: set[str]) -> bool:
        """Whether a link to a folder leads neither upwards nor to a place visited by another link."""
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
            raise UserError(f"data.root={self.top!r}: {path!r} cannot be listed. {error.strerror}.") from None

    def _count_others(self, names: list[str]) -> None:
        for name in names:
            stem, suffix = os.path.splitext(name)
            self.ignored["hidden files" if name[0] == "." else f"*{suffix.lower()}" if suffix else stem] += 1

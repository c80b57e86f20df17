"""List the images of a folder in the usual layouts, without importing anything heavy.

The layouts are ``DIR/<class>/*``, ``DIR/<split>/<class>/*`` and ``DIR/<class>/<split>/*``, with the splits in any of the
spellings of :mod:`finetune.data.split_names`; folders nested below a class belong to it. A folder that can be read in two
ways is refused; the message names the setting for each reading.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from finetune.counted import counted
from finetune.data.folder_walk import (
    SUFFIXES,
    UNREAD_SUFFIXES,
    FolderContents,
    Links,
    first_look,
    in_words,
    kind_of_file,
    read_folder,
)
from finetune.data.image_file import read_head
from finetune.data.index import SPLITS, DataProblem, natural_order
from finetune.data.listing import UNASSIGNED, Listing, Use, check_classes, merge
from finetune.data.path_table import PathTableBuilder
from finetune.data.progress import Progress
from finetune.data.split_names import says_nothing, split_names
from finetune.errors import UserError, did_you_mean, shortened
from finetune.file_errors import in_words as error_in_words
from finetune.near_paths import did_you_mean_path
from finetune.run_names import RECORD

# how the folders of a data set are read: `auto` decides by their names and contents, and refuses ambiguous folders
Layout = Literal["auto", "classes", "splits"]

# first bytes of JPEG, PNG, GIF and TIFF; the two letters of BMP would match too many text files
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")

# folders beside `train` that hold images without labels; they are left out with a warning
_WITHOUT_LABELS = (
    "unlabel",
    "unlabeled",
    "unlabelled",
    "unsup",
    "unsupervised",
    "pred",
    "predict",
    "prediction",
    "inference",
)


@dataclass(frozen=True)
class _ClassFolder:
    """A folder whose images belong to one class."""

    folder: str
    name: str
    split: int = UNASSIGNED


def check_root(root: str) -> str:
    """Return the absolute path of a data folder.

    Raises:
        UserError: The path does not exist, or is a file.
    """
    if not root:
        raise UserError("data.root=: must name a folder of images. Give data.root=DIR.")
    path = os.path.abspath(root)
    if not os.path.exists(path):
        parent = path
        while not os.path.isdir(parent):
            parent = os.path.dirname(parent)
        near = did_you_mean_path(root, folders=True) or " Check the spelling."
        raise UserError(f"data.root={root!r}: no such folder. The path exists up to {parent}.{near}")
    if not os.path.isdir(path):
        raise UserError(f"data.root={root!r}: must be a folder. It is a file. Give the folder that holds the classes.")
    return path


def list_training_folders(root: str | Sequence[str], *, layout: str = "auto") -> Listing:
    """List the images of one folder, or of several folders as one data set; no file is opened.

    Args:
        root: Path of the folder, or of several folders.
        layout: How the folders are read: ``classes``, ``splits``, or ``auto``, which refuses ambiguous folders.

    Raises:
        UserError: There is no such folder, it holds no image or fewer than two classes, a class has no training image, only
            val or test has a class, two folders are given for one split, several folders do not name the same splits, or
            the folders can be read in two ways.
    """
    return list_folders(root, layout=layout, use="train")


def list_folders(root: str | Sequence[str], *, layout: str = "auto", use: Use = "test") -> Listing:
    """List images as :func:`list_training_folders` does; other uses than training are not checked for trainability.

    Raises:
        UserError: There is no such folder, it holds no image, two folders are given for one split, or the folders can be read in
            two ways.
    """
    if layout not in get_args(Layout):
        choices = get_args(Layout)
        raise UserError(
            f"data.layout={layout!r}: must be one of {', '.join(choices)}.{did_you_mean(str(layout), choices)}"
        )
    roots = [root] if isinstance(root, str) else list(root)
    if not roots:
        raise UserError("data.root=[]: must name a folder of images. Give data.root=DIR.")
    return check_classes(merge([_FolderReader(one, layout, use).listing() for one in roots]))


def pictures_left_out(root: str | Sequence[str]) -> list[str]:
    """Return the files below a folder that look like pictures by suffix or first bytes but are not read."""
    pictures = []
    for top in [root] if isinstance(root, str) else root:
        above = check_root(top)
        links, waiting = Links(above), [above]
        while waiting:
            folder = waiting.pop()
            try:
                contents = read_folder(folder)
            except OSError:  # the listing has reported it
                continue
            below = (os.path.join(folder, name) for name in sorted(contents.folders, reverse=True))
            waiting += [path for path in below if links.leads_on(path)]
            for name in sorted(contents.others):
                path = os.path.join(folder, name)
                if name[0] != "." and (name.lower().endswith(UNREAD_SUFFIXES) or _starts_like_a_picture(path)):
                    pictures.append(path)
    return pictures


def _starts_like_a_picture(path: str) -> bool:
    head = read_head(path)
    return head.startswith(_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


class _FolderReader:
    """Reads one root folder into a listing.

    Args:
        root: Path of the folder, as the user wrote it.
        layout: How the folders are read.
        use: What the data set is for.

    Raises:
        UserError: There is no such folder.
    """

    def __init__(self, root: str, layout: str, use: Use) -> None:
        self.name = f"data.root={root!r}"
        self.root, self.layout, self.use = root, layout, use
        self.top = check_root(root)
        self.builder = PathTableBuilder()
        self.ignored: Counter[str] = Counter()
        self.problems: list[DataProblem] = []
        self.folders = 0
        self.progress = Progress("listing images")

    def listing(self) -> Listing:
        """List the images.

        Raises:
            UserError: See :func:`list_folders`.
        """
        class_folders = self._class_folders()
        names: dict[str, int] = {}  # class name -> number, in order of discovery
        numbers = [names.setdefault(one.name, len(names)) for one in class_folders]
        below, instead, lengths, example = 0, dict[str, str](), list[int](), ""
        mostly_below: list[_ClassFolder] = []
        for one in class_folders:
            before = self.ignored.copy()
            images, deeper, first = self._add(one.folder)
            lengths.append(images)
            below += deeper
            if deeper > images - deeper:
                mostly_below.append(one)
            example = example or first
            if not images:
                instead[one.name] = in_words((self.ignored - before).items(), 3)
        self.progress.close()
        self.ignored = +self.ignored
        if not sum(lengths):
            raise self._no_images()
        strays = False
        if self.layout == "auto" and below > sum(lengths) - below:
            strays = self._look_past_strays(mostly_below)
        if below:
            self._note_images_below(below, example, sum(lengths), strays=strays)
        for one, images in zip(class_folders, lengths, strict=True):
            if images:
                instead.pop(one.name, None)  # another split has images of this class

        classes = natural_order(names)
        position = {names[name]: target for target, name in enumerate(classes)}
        filled = {one.split for one, images in zip(class_folders, lengths, strict=True) if images}
        return Listing(
            origin=self.name,
            root=self.top,
            classes=tuple(classes),
            paths=self.builder.build(),
            targets=np.repeat(np.asarray([position[number] for number in numbers], np.int64), lengths),
            splits=np.repeat(np.asarray([one.split for one in class_folders], np.int8), lengths),
            given=tuple(name for number, name in enumerate(SPLITS) if number in filled),
            ignored=dict(self.ignored),
            problems=tuple(self.problems),
            instead=instead,
            use=self.use,
        )

    def _class_folders(self) -> list[_ClassFolder]:
        """Decide how to read the folders; return the class folders by split."""
        names = self._subfolders("")
        splits = {} if self.layout == "classes" else split_names(names)
        if splits and self._splits_hold_classes(names, splits):
            return self._split_folders(names, splits)
        if self.layout == "splits":
            raise UserError(
                f"{self.name}: with data.layout=splits it must hold train/<class>/* and may hold val and test. "
                f"It holds {shortened(names) if names else 'no folder'}. Rename the folders, or leave data.layout out."
            )
        looks = {name: self._first_look(name) for name in names}
        if self.layout == "auto" and len(names) == 1:
            self._report_lone_folder(names[0], looks[names[0]][1])
        elif self.layout == "auto":
            if by_class := self._splits_below_classes(looks):
                return by_class
            self._refuse_two_readings("", looks)
        return [_ClassFolder(name, _class_name(name)) for name in names]

    def _splits_hold_classes(self, names: list[str], splits: dict[str, str]) -> bool:
        """Tell whether the folders named like splits are splits, and not classes.

        Raises:
            UserError: Both are possible, or all folders are splits and hold no classes to train on.
        """
        # their folders decide: an image that strayed into a split makes no class of it
        with_classes = {name for name in splits if self._folders_in(name)}
        trains = [name for name, split in splits.items() if split == "train"]
        beside = [name for name in names if name not in splits]
        if with_classes & set(trains):
            if self.layout == "splits" or set(splits.values()) != {"train"}:
                return True
            others = shortened(
                [name for name in beside if name.casefold() not in _WITHOUT_LABELS and self._images_below(name)]
            )
            if others:
                train = " and ".join(trains)
                raise UserError(
                    f"{self.name}: can be read in two ways. {train}/ holds folders, as a training split does, but {others} "
                    f"beside it hold images, as classes do. If {train} is a class, set data.layout=classes. If it is the "
                    f"training split, set data.layout=splits, which leaves {others} out."
                )
            return True
        if self.use != "train" and with_classes and not beside:
            return True  # a test set need not have a training split
        if not beside or self.layout == "splits":
            # without this check the folders train and val would become two classes
            why = f"{trains[0]}/ holds no class folder" if trains else f"found only {', '.join(sorted(splits))}"
            raise UserError(
                f"{self.name}: must hold train/<class>/* or <class>/*. {why}. Add the class folders, or set "
                "data.layout=classes if these are the names of classes."
            )
        return False

    def _split_folders(self, names: list[str], splits: dict[str, str]) -> list[_ClassFolder]:
        """Return the class folders of all splits, train first."""
        repeated = [split for split, times in Counter(splits.values()).items() if times > 1]
        if repeated:
            both = " and ".join(sorted(name for name, split in splits.items() if split == repeated[0]))
            raise UserError(f"{self.name}: one folder for each split. Found {both}. Keep one of them.")
        self._report_beside([name for name in names if name not in splits])
        class_folders = []
        for split in SPLITS:
            folder = next((name for name, its in splits.items() if its == split), None)
            if folder is None:
                continue
            if folder.lower() not in (*SPLITS, "valid", "validation"):
                self._note("split names", f"{folder}/ is read as the {split} split", "Nothing to do.")
            loose = self.ignored["images outside a class folder"]
            folder, inside = self._unwrapped(folder)
            loose = self.ignored["images outside a class folder"] - loose
            looks = {name: self._first_look(os.path.join(folder, name)) for name in inside}
            if split == "train" and self.layout == "auto":
                self._refuse_two_readings(folder, looks)
            if not inside:
                self.problems.append(
                    DataProblem(
                        kind="split without classes",
                        severity="warning" if loose else "note",
                        text=f"{folder}/ holds no class folder, so it is not used; {loose:,} images without a class lie in it",
                        remedy="Put its images into one folder per class; finetune predict takes images without a class.",
                    )
                )
            number = SPLITS.index(split)
            class_folders += [_ClassFolder(os.path.join(folder, name), _class_name(name), number) for name in inside]
        return class_folders

    def _unwrapped(self, folder: str) -> tuple[str, list[str]]:
        """Return a split folder and its folders; of ``train/train/<class>`` or ``train/images/<class>``, the inner folder."""
        inside = self._subfolders(folder)
        while len(inside) == 1 and (
            inside[0].casefold() == os.path.basename(folder).casefold() or says_nothing(inside[0])
        ):
            below = os.path.join(folder, inside[0])
            if not self._folders_in(below):
                break
            folder, inside = below, self._subfolders(below)
        return folder, inside

    def _splits_below_classes(self, looks: dict[str, tuple[bool, list[str]]]) -> list[_ClassFolder]:
        """Return the class folders of ``<class>/<split>/*``, train first; none if the folders are not laid out so."""
        class_folders = []
        # a folder of images is read to its end only beside one that speaks for this layout
        if not any(inside and len(split_names(inside)) == len(inside) for _, inside in looks.values()):
            return []
        for name in looks:
            inside = self._folders_in(name)
            splits = split_names(inside)
            if not inside or len(splits) < len(inside):
                return []
            if len(set(splits.values())) < len(splits):
                return []
            for folder, split in splits.items():
                path = os.path.join(name, folder)
                if not self._first_look(path)[0]:
                    return []
                class_folders.append(_ClassFolder(path, _class_name(name), SPLITS.index(split)))
        if len(looks) < 2 or not any(one.split == SPLITS.index("train") for one in class_folders):
            return []
        for name in looks:
            self._subfolders(name)  # counts what lies beside the splits
        self._note(
            "splits below classes",
            "each class folder holds its own split folders, which are used",
            "Nothing to do.",
        )
        return sorted(class_folders, key=lambda one: one.split)

    def _report_lone_folder(self, name: str, inside: list[str]) -> None:
        """Point out that the only folder holds folders that may be the classes.

        Raises:
            UserError: The data set is for training.
        """
        if len(inside) < 2 or self.use == "test":
            return
        text = f"must hold at least two classes. Found only {name!r}, which holds {shortened(natural_order(inside))}"
        remedy = f"If these are the classes or the splits, give the folder above them: data.root={self.root}/{name}."
        if self.use == "train":
            raise UserError(f"{self.name}: {text}. {remedy}")
        self.problems.append(DataProblem(kind="one folder too high", severity="error", text=text, remedy=remedy))

    def _look_past_strays(self, folders: list[_ClassFolder]) -> bool:
        """Return whether some of these folders, whose images mostly lie deeper, hold a few images of their own.

        Such stray images hide from the first look that the folders below may be the classes.

        Raises:
            UserError: The folders can be read both ways.
        """
        beside: dict[str, dict[str, list[str]]] = {}
        strays = False
        for one in folders:
            parent, name = os.path.split(one.folder)
            if one.split in (UNASSIGNED, SPLITS.index("train")):
                beside.setdefault(parent, {})[name] = self._folders_in(one.folder)
                strays = strays or self._first_look(one.folder)[0]
        if strays:
            for parent, nested in beside.items():
                self._refuse_shared_folders(parent, nested)
        return strays

    def _refuse_two_readings(self, parent: str, looks: dict[str, tuple[bool, list[str]]]) -> None:
        """Refuse folders without images whose sub-folders have the same names: either level may be the classes.

        Raises:
            UserError: The folders can be read both ways.
        """
        nested = {name: inside for name, (holds_images, inside) in looks.items() if not holds_images and inside}
        self._refuse_shared_folders(parent, nested)
        where = f"{parent}/" if parent else ""
        if len(nested) == len(looks) and nested and all(len(inside) > 1 for inside in nested.values()):
            first = next(iter(nested))
            lower = natural_order({name for inside in nested.values() for name in inside})
            folders = ",".join(os.path.join(self.root, parent, name) for name in list(nested)[:3])
            folders += "" if len(nested) < 4 else ",..."
            self.problems.append(
                DataProblem(
                    kind="one folder too high",
                    severity="warning",
                    text=f"all images lie two folders down: {where}{first}/{nested[first][0]} is counted as class {first!r}",
                    remedy=f"If the classes are {shortened(lower)}, give the folders above them: "
                    f"data.root=[{folders}].",
                )
            )

    def _refuse_shared_folders(self, parent: str, nested: dict[str, list[str]]) -> None:
        """Refuse folders whose images lie in sub-folders of the same names.

        Raises:
            UserError: The folders can be read both ways.
        """
        times = Counter(folder for inside in nested.values() for folder in inside)
        shared = natural_order(folder for folder, count in times.items() if count > 1)
        where = f"{parent}/" if parent else ""
        if shared and len(times) > 1:
            upper = [name for name in natural_order(nested) if set(nested[name]) & set(shared)]
            folders = ",".join(os.path.join(self.root, name) for name in upper[:3]) + ("" if len(upper) < 4 else ",...")
            lower = (
                f"move them up into {parent}/"
                if parent
                else f"give the folders above them, data.root=[{folders}], or name these after splits: train, val, test"
            )
            raise UserError(
                f"{self.name}: can be read in two ways. {where}{shortened(upper)} hold few images or none, and share the folders "
                f"{shortened(shared)}. If {shortened(shared)} are the classes, {lower}. If {shortened(upper)} are the classes, "
                f"set data.layout={'splits' if parent else 'classes'}."
            )

    def _report_beside(self, names: list[str]) -> None:
        """Warn about folders with images beside the splits, and count the others."""
        holding = {}
        for name in names:
            images = self._images_below(name)
            if images:
                holding[name] = images
            else:
                self.ignored[f"{name}/ (not a split)"] += 1
        if holding:
            many = f"{len(holding)} folders" if len(holding) > 1 else f"{next(iter(holding))}/"
            self.problems.append(
                DataProblem(
                    kind="folders beside the splits",
                    severity="warning",
                    text=f"beside the splits, so not used: {many} with {sum(holding.values()):,} images",
                    remedy="Move them into train, val or test; if all these folders are classes, set data.layout=classes.",
                    files=tuple(f"{name}/: {images:,} images" for name, images in holding.items()),
                )
            )

    def _images_below(self, folder: str) -> int:
        links, waiting, images = Links(self.top), [os.path.join(self.top, folder)], 0
        while waiting:
            try:
                path = waiting.pop()
                contents = read_folder(path)
            except OSError:
                continue
            images += len(contents.images)
            waiting += [below for name in contents.folders if links.leads_on(below := os.path.join(path, name))]
        return images

    def _no_images(self) -> UserError:
        if os.path.isfile(os.path.join(self.top, RECORD)):
            return UserError(f"{self.name}: the folder of a run, which holds no images. Give that of the images.")
        patterns = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
        below = f"{counted(self.folders, 'folder')} below it"
        loose = self.ignored["images outside a class folder"]
        others = [(what, count) for what, count in self.ignored.items() if what != "images outside a class folder"]
        hint = (
            f" {counted(loose, 'image')} {'lies' if loose == 1 else 'lie'} directly in it: make one folder per class."
            if loose
            else ""
        )
        there = f" It holds {in_words(others)}." if others else ""
        return UserError(f"{self.name}: no images found. Looked for {patterns} in {below}.{there}{hint}")

    def _note_images_below(self, below: int, example: str, images: int, *, strays: bool) -> None:
        share = "all images" if below == images else f"{below:,} images"
        text = f"{share} lie in folders below class folders, such as {example}, and are counted in those classes"
        remedy = "Nothing to do if the upper folders are the classes."
        if strays:
            remedy = (
                "If the upper folders are the classes, set data.layout=classes; if the lower ones are, move them up."
            )
        severity: Literal["warning", "note"] = "warning" if strays else "note"
        self.problems.append(
            DataProblem(kind="images below class folders", severity=severity, text=text, remedy=remedy)
        )

    def _note(self, kind: str, text: str, remedy: str) -> None:
        self.problems.append(DataProblem(kind=kind, severity="note", text=text, remedy=remedy))

    def _first_look(self, folder: str) -> tuple[bool, list[str]]:
        try:
            return first_look(os.path.join(self.top, folder))
        except OSError:  # _contents reports it when the folder is listed
            return False, []

    def _folders_in(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder, whether or not it holds images too."""
        try:
            return read_folder(os.path.join(self.top, folder)).folders
        except OSError:  # _contents reports it when the folder is listed
            return []

    def _subfolders(self, folder: str) -> list[str]:
        """Return the names of the folders in ``folder`` that can be classes or splits; count its loose files."""
        contents = self._contents(folder)
        names = []
        for name in natural_order(contents.folders):
            if Links(self.top).leads_on(os.path.join(self.top, folder, name)):
                names.append(name)
            else:
                self.ignored["links to a folder already visited"] += 1
        if contents.images:
            self.ignored["images outside a class folder"] += len(contents.images)
        self._count(contents)
        return names

    def _add(self, class_folder: str) -> tuple[int, int, str]:
        """Append all images below a class folder; return their number, how many lie in sub-folders, and one such sub-folder.

        Only names are examined: listing a million files takes a second or two because none of them is opened.
        """
        total = deeper = 0
        example = ""
        waiting, links = [class_folder], Links(self.top)
        while waiting:
            folder = waiting.pop()
            self.folders += 1
            contents = self._contents(folder)
            images = sorted(contents.images)
            self.builder.add_folder(folder, images)
            total += len(images)
            if folder != class_folder and images:
                deeper += len(images)
                example = example or folder
            self.progress.advance(len(images))
            self._count(contents)
            for name in sorted(contents.folders):
                if links.leads_on(os.path.join(self.top, folder, name)):
                    waiting.append(os.path.join(folder, name))
                else:
                    self.ignored["links to a folder already visited"] += 1
        return total, deeper, example

    def _contents(self, folder: str) -> FolderContents:
        path = os.path.join(self.top, folder)
        try:
            return read_folder(path)
        except OSError as error:
            text = error_in_words(error, path, f"{path!r} cannot be listed", name=self.name)
            if self.use != "audit":
                raise UserError(text) from None
            self.problems.append(
                DataProblem(kind="folder not listed", severity="error", text=text.rstrip("."), remedy="", files=(path,))
            )
            return FolderContents()

    def _count(self, contents: FolderContents) -> None:
        for name in contents.left_out:
            self.ignored[f"{name}/"] += 1
        for name in contents.others:
            self.ignored[kind_of_file(name)] += 1


def _class_name(folder: str) -> str:
    return unicodedata.normalize("NFC", folder)

"""The spellings of split names: one list for folders, tables and the data sets of other libraries.

A split's name may come with words that mean nothing (``train_set``, ``Training images``), or with words that all splits of the
data share (``seg_train`` beside ``seg_test``, ``train2017`` beside ``val2017``).
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

# `eval` is the test split, as in `train | dev | eval`, unless there is another test split: see `split_names`
_SPELLINGS = {
    "train": ("train", "training", "trn", "trainval", "trainvalid"),
    "val": ("val", "valid", "validation", "validate", "validating", "vld", "dev", "devel", "development"),
    "test": ("test", "testing", "tst", "holdout", "heldout"),
    "eval": ("eval", "evaluation", "evaluate", "evaluating"),
}
_SPLIT_OF_WORD = {word: split for split, words in _SPELLINGS.items() for word in words}

# words beside the split's that mean nothing
_FILLERS = frozenset(
    word + plural
    for word in (
        "set",
        "subset",
        "split",
        "part",
        "data",
        "dataset",
        "image",
        "img",
        "picture",
        "pic",
        "photo",
        "sample",
    )
    for plural in ("", "s")
)

# "TrainSet" and "trainSet" are two words, "TRAIN" is one
_WORD = re.compile(r"[^\W\d_]+?(?=[A-Z][a-z])|[^\W\d_]+|\d+")


def split_names(names: Iterable[str]) -> dict[str, str]:
    """Return which of some names side by side are names of splits, each with its split.

    ``eval`` is the test split, or the validation split if another name stands for test.

    >>> split_names(["Training", "Testing", "readme"])
    {'Training': 'train', 'Testing': 'test'}
    >>> split_names(["seg_train", "seg_test", "seg_pred"])
    {'seg_train': 'train', 'seg_test': 'test'}
    >>> split_names(["train", "eval", "test"])
    {'train': 'train', 'eval': 'val', 'test': 'test'}
    >>> split_names(["steam_train", "test_tube"])
    {}
    """
    groups: dict[tuple[str, ...], dict[str, _Name]] = {}
    for name in names:
        read = _read(name)
        if read.split:
            groups.setdefault(read.others, {})[name] = read
    # other words and numbers in a name mean something, unless several splits have the same ones
    groups = {
        others: group
        for others, group in groups.items()
        if len({read.split for read in group.values()}) > 1
        or any(not (others or read.number) for read in group.values())
    }
    if not groups:
        return {}
    group = groups[()] if () in groups else max(groups.values(), key=len)
    plain = {read.split for read in group.values() if not read.number}
    chosen = {name: read.split for name, read in group.items() if not (read.number and read.split in plain)}
    taken = set(chosen.values())
    evaluation = "val" if "test" in taken and "val" not in taken else "test"
    return {name: evaluation if split == "eval" else split for name, split in chosen.items()}


def says_nothing(name: str) -> bool:
    """Tell whether a folder's name says nothing about its images, so that it cannot be the name of a class.

    >>> says_nothing("Images"), says_nothing("cats")
    (True, False)
    """
    words = [word.casefold() for word in _WORD.findall(unicodedata.normalize("NFKC", name))]
    return bool(words) and all(word in _FILLERS for word in words)


class _Name(NamedTuple):
    """The split in a name, empty for none; the other words that may mean something; whether it has a number."""

    split: str
    others: tuple[str, ...]
    number: bool


@lru_cache(maxsize=4096)
def _read(name: str) -> _Name:
    words = [word.casefold() for word in _WORD.findall(unicodedata.normalize("NFKC", name))]
    number = any(word.isdigit() for word in words)
    whole = "".join(word for word in words if not word.isdigit())
    if whole in _SPLIT_OF_WORD:
        return _Name(_SPLIT_OF_WORD[whole], (), number)
    splits, others = [], []
    for word in words:
        core = next((word.removesuffix(end) for end in ("set", "data") if word.removesuffix(end) in _SPLIT_OF_WORD), "")
        if core:
            splits.append(_SPLIT_OF_WORD[core])
        elif word not in _FILLERS and not word.isdigit():
            others.append(word)
    return _Name(splits[0], tuple(others), number) if len(splits) == 1 else _Name("", (), number)

"""How tables of every form are read: each case is the text of a table and what the listing makes of it."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.data.index import SPLITS, Index
from finetune.data.manifest import ManifestColumns, read_manifest, write_manifest
from finetune.data.path_table import path_table
from finetune.errors import UserError


def table(tmp_path, content, name="t.csv"):
    """Write a table: a text (``;`` between rows) or the bytes of one, or the columns of a Parquet file."""
    if isinstance(content, dict):
        path = tmp_path / "t.parquet"
        pq.write_table(pa.table(content), path)
        return str(path)
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.replace(" / ", "\n").encode())
    return str(path)


def rows(listing):
    """Path, classes and split of each row, such as ``"1.png cat train"``."""
    names = []
    for row, path in enumerate(listing.paths):
        target = listing.targets[row]
        labels = [listing.classes[number] for number in (np.flatnonzero(target) if target.ndim else [target])]
        split = listing.splits[row]
        names.append(" ".join([path, "+".join(labels), *([SPLITS[split]] if split >= 0 else [])]))
    return names


def in_splits(*names):
    """Return a table of four images whose splits are written in a certain way."""
    return " / ".join(
        ["path,label,split", *(f"{row}.png,{'ab'[row % 2 == 0]},{name}" for row, name in enumerate(names, 1))]
    )


PLAIN = ["1.png cat", "2.png dog"]
SPLIT = ["1.png a train", "2.png b train", "3.png a val", "4.png b test"]

READ = {
    "commas": ("path,label / 1.png,cat / 2.png,dog", {}, PLAIN),
    "semicolons": ("path;label / 1.png;cat / 2.png;dog", {}, PLAIN),
    "tabs": ("path\tlabel / 1.png\tcat / 2.png\tdog", {}, PLAIN),
    "quotes": ('"path","label" / "1.png","cat" / "2.png","dog"', {}, PLAIN),
    "blanks around cells": ("path, label / 1.png, cat / 2.png ,dog ", {}, PLAIN),
    "an empty line": ("path,label / 1.png,cat /  / 2.png,dog / ", {}, PLAIN),
    "windows line ends": (b"path,label\r\n1.png,cat\r\n2.png,dog\r\n", {}, PLAIN),
    "a byte order mark": (b"\xef\xbb\xbfpath,label\n1.png,cat\n2.png,dog", {}, PLAIN),
    "UTF-16": ("path,label\n1.png,cat\n2.png,dog".encode("utf-16"), {}, PLAIN),
    "UTF-16, big-endian, no mark": ("path,label\n1.png,cat\n2.png,dog".encode("utf-16-be"), {}, PLAIN),
    "UTF-16, little-endian, no mark": ("path,label\n1.png,cat\n2.png,dog".encode("utf-16-le"), {}, PLAIN),
    "UTF-32": ("path,label\n1.png,cat\n2.png,dog".encode("utf-32"), {}, PLAIN),
    "other columns": ("id,path,x,label / 1,1.png,,cat / 2,2.png,nan,dog", {}, PLAIN),
    "another column named twice": ("x,path,x,label / 1,1.png,,cat / 2,2.png,,dog", {}, PLAIN),
    "composed and decomposed": (
        "path,label / 1.png,caf\u00e9 / 2.png,cafe\u0301 / 3.png,tea",
        {},
        ["1.png caf\u00e9", "2.png caf\u00e9", "3.png tea"],
    ),
    "numbers": ("path,label / 1.png,10 / 2.png,9 / 3.png,10", {}, ["1.png 10", "2.png 9", "3.png 10"]),
    "minus one as a class": ("path,label / 1.png,-1 / 2.png,1", {}, ["1.png -1", "2.png 1"]),
    "a class none": ("path,label / 1.png,none / 2.png,scratch", {}, ["1.png none", "2.png scratch"]),
    "infinity is a word": ("path,label / 1.png,inf / 2.png,Infinity", {}, ["1.png inf", "2.png Infinity"]),
    "names with digits": ("path,label / 1.png,a1 / 2.png,a01", {}, ["1.png a1", "2.png a01"]),
    "splits": (in_splits("train", "train", "val", "test"), {}, SPLIT),
    "splits in capitals": (in_splits("TRAIN", "TRAIN", "VALIDATE", "TEST"), {}, SPLIT),
    "training, validation, testing": (in_splits("training", "training", "validation", "testing"), {}, SPLIT),
    "train, dev, eval": (in_splits("train", "train", "dev", "eval"), {}, SPLIT),
    "train_set and others": (in_splits("train_set", "train_set", "val_set", "holdout"), {}, SPLIT),
    "two spellings of one split": (in_splits("train", "Training", "valid", "test"), {}, SPLIT),
    "splits left open": (
        "path,label,split / 1.png,a, / 2.png,b,NaN / 3.png,a,UNASSIGNED / 4.png,b,test",
        {},
        ["1.png a", "2.png b", "3.png a", "4.png b test"],
    ),
    "a hidden test split": (
        "path,label,split / 1.png,a,train / 2.png,b,train / 3.png,,test / 4.png,,test",
        {},
        ["1.png a train", "2.png b train"],
    ),
    "a hidden test split of -1": (
        "path,label,split / 1.png,0,train / 2.png,1,train / 3.png,-1,test / 4.png,-1,test",
        {},
        ["1.png 0 train", "2.png 1 train"],
    ),
    "several labels": (
        "path,label / 1.png,a|b / 2.png, / 3.png,b",
        {"label_separator": "|"},
        ["1.png a+b", "2.png ", "3.png b"],
    ),
    "several labels by a blank": (
        "path,label / 1.png,a b / 2.png,b  a / 3.png,b",
        {"label_separator": " "},
        ["1.png a+b", "2.png a+b", "3.png b"],
    ),
    "several labels by semicolons": (
        "path,label / 1.png,a;b / 2.png,b",
        {"label_separator": ";"},
        ["1.png a+b", "2.png b"],
    ),
    "columns of flags": (
        "path,a,b / 1.png,1,0 / 2.png,0,True / 3.png,1.0,false",
        {"label_columns": ["a", "b"]},
        ["1.png a", "2.png b", "3.png a"],
    ),
    "Parquet": ({"path": ["1.png", "2.png"], "label": ["cat", "dog"]}, {}, PLAIN),
    "Parquet of numbers": ({"path": ["1.png", "2.png"], "label": [3, 12]}, {}, ["1.png 3", "2.png 12"]),
    "Parquet of truth values": (
        {"path": ["1.png", "2.png"], "label": [True, False]},
        {},
        ["1.png True", "2.png False"],
    ),
    "Parquet with lists beside": ({"path": ["1.png", "2.png"], "label": ["cat", "dog"], "box": [[1], [2]]}, {}, PLAIN),
    "Parquet with empty splits": (
        {"path": ["1.png", "2.png"], "label": ["cat", "dog"], "split": [None, None]},
        {},
        PLAIN,
    ),
    "Parquet of a hidden test split": (
        {"path": list("123"), "label": [0, 1, -1], "split": ["train", "train", "test"]},
        {},
        ["1 0 train", "2 1 train"],
    ),
    "Parquet with null in a hidden test split": (
        {"path": list("123"), "label": [0, 1, None], "split": ["train", "train", "test"]},
        {},
        ["1 0 train", "2 1 train"],
    ),
    "Parquet of categories": (
        {"path": ["1.png", "2.png"], "label": pa.array(["cat", "dog"]).dictionary_encode()},
        {},
        PLAIN,
    ),
}


@pytest.mark.parametrize("case", READ)
def test_a_table_is_read_as_a_person_would(tmp_path, case):
    content, options, expected = READ[case]
    assert rows(read_manifest(table(tmp_path, content), columns=ManifestColumns(**options))) == expected


NO_LABEL = r"column 'label' must not be empty\. It is in row 2\."
REFUSED = {
    "an empty label": ("path,label / 1.png,a / 2.png,", {}, NO_LABEL),
    "NaN": ("path,label / 1.png,a / 2.png,NaN", {}, NO_LABEL),
    "nan": ("path,label / 1.png,a / 2.png,nan", {}, NO_LABEL),
    "NA": ("path,label / 1.png,a / 2.png,NA", {}, NO_LABEL),
    "<NA>": ("path,label / 1.png,a / 2.png,<NA>", {}, NO_LABEL),
    "null": ("path,label / 1.png,a / 2.png,null", {}, NO_LABEL),
    "None": ("path,label / 1.png,a / 2.png,None", {}, NO_LABEL),
    "a missing label in a test split with others": (
        "path,label,split / 1.png,a,train / 2.png,,test / 3.png,b,train / 4.png,b,test",
        {},
        NO_LABEL,
    ),
    "one number in two ways": (
        "path,label / 1.png,1 / 2.png,1.0 / 3.png,2",
        {},
        "'1' and '1.0' are the same number, in rows 1 and 2",
    ),
    "a number with a zero": ("path,label / 1.png,7 / 2.png,07 / 3.png,2", {}, "'7' and '07' are the same number"),
    "one number in two ways among several": (
        "path,label / 1.png,1|2 / 2.png,2.0",
        {"label_separator": "|"},
        "are the same number",
    ),
    "an empty path": ("path,label / 1.png,a / ,b", {}, "column 'path' must not be empty. It is in row 2"),
    "a missing path": ("path,label / 1.png,a / NaN,b", {}, "column 'path' must not be empty. It is in row 2"),
    "a label column twice": ("path,label,label / 1.png,a,b / 2.png,b,a", {}, "There are 2 columns 'label'"),
    "a path column twice": ("path,path,label / 1.png,1.png,a / 2.png,2.png,b", {}, "There are 2 columns 'path'"),
    "no label column": (
        "path,labels / 1.png,a / 2.png,b",
        {},
        "not a column.*Name the right one: data.label_column=labels",
    ),
    "Latin-1": (
        "path,label\n1.png,caf\u00e9\n2.png,tea".encode("latin-1"),
        {},
        r"must be in UTF-8\..*row 1, which looks like Latin-1",
    ),
    "Windows-1252": ("path,label\n1.png,a\n2.png,\u201cb\u201d".encode("cp1252"), {}, r"must be in UTF-8\..*row 2"),
    "cut UTF-16": ("path,label\n1.png,cat\n2.png,dog".encode("utf-16")[:-1], {}, "is not a readable table"),
    "an unknown split": ("path,label,split / 1.png,a,train / 2.png,b,trian", {}, r"Found 'trian'\."),
    "a fold for a split": ("path,label,split / 1.png,a,0 / 2.png,b,1", {}, r"Found '0', '1'\."),
    "an empty separator": (
        "path,label / 1.png,a / 2.png,b",
        {"label_separator": ""},
        "data.label_separator='': must not be empty",
    ),
    "a cell too many": ("path,label / 1.png,a / 2.png,b,c", {}, "Line 3 has 3"),
    "the same file twice": ("path,label / 1.png,a / 1.png,a / 2.png,b", {}, "Listed again 1.png"),
    "the same file under two labels": ("path,label / 1.png,a / 1.png,b", {}, "with another label or split: 1.png"),
    "no row": ("path,label", {}, "has no rows"),
    "no label at all": ("path,label,split / 1.png,,test / 2.png,,test", {}, "no labels found"),
    "one class": ("path,label / 1.png,a / 2.png,a ", {}, "Found only 'a'"),
    "an empty flag": (
        "path,a,b / 1.png,1,0 / 2.png,1,",
        {"label_columns": ["a", "b"]},
        r"column 'b' must hold 0 or 1 in every row\. It is empty in row 2\. Fill in 0",
    ),
    "a missing flag": ("path,a / 1.png,NaN", {"label_columns": ["a"]}, r"It is empty in row 1\."),
    "Parquet with a null flag": (
        {"path": ["1", "2"], "a": [1, None]},
        {"label_columns": ["a"]},
        r"It is empty in row 2\.",
    ),
    "a flag that is none": ("path,a / 1.png,2", {"label_columns": ["a"]}, r"must hold 0 or 1\. Found '2' in row 1"),
    "Parquet of bytes": ({"path": ["1", "2"], "label": [b"a", b"b"]}, {}, "Row 1 holds bytes"),
    "Parquet of lists": ({"path": ["1", "2"], "label": [["a"], ["b"]]}, {}, "Row 1 holds a list"),
    "Parquet of numbers with NaN": ({"path": ["1", "2"], "label": [1.0, float("nan")]}, {}, NO_LABEL),
    "Parquet with null": ({"path": ["1", "2"], "label": ["a", None]}, {}, NO_LABEL),
    "Parquet of bytes for paths": ({"path": [b"1", b"2"], "label": ["a", "b"]}, {}, "column 'path' must hold paths"),
    "Parquet with a null path": ({"path": ["1", None], "label": ["a", "b"]}, {}, "must not be empty. It is in row 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_that_cannot_be_read_is_refused_with_the_row(tmp_path, case):
    content, options, message = REFUSED[case]
    path = table(tmp_path, content)
    with pytest.raises(UserError, match=message) as caught:
        read_manifest(path, columns=ManifestColumns(**options))
    assert "Traceback" not in str(caught.value)


def test_what_a_table_leaves_open_is_a_warning(tmp_path):
    hidden = read_manifest(table(tmp_path, "path,label,split / 1.png,a,train / 2.png,b,train / 3.png,,test"))
    assert [problem.kind for problem in hidden.problems] == ["hidden labels"]
    assert hidden.given == ("train",)
    alike = read_manifest(table(tmp_path, "path,label / 1.png,a / 2.png,a\u00a0 / 3.png,b"))
    assert [problem.kind for problem in alike.problems] == ["labels alike"]


def test_a_table_that_gives_every_row_a_split_keeps_its_training_rows(tmp_path):
    text = "path,label,split / 1.png,a,train / 2.png,b,train / 3.png,a,val"
    assert read_manifest(table(tmp_path, text)).given == ("train", "val", "test")
    assert read_manifest(table(tmp_path, text + " / 4.png,a,")).given == ("train", "val")


def test_a_table_to_test_on_need_not_be_fit_for_training(tmp_path):
    listing = read_manifest(table(tmp_path, "path,label / 1.png,a / 2.png,a"), use="test")
    assert Counter(rows(listing)) == Counter(["1.png a", "2.png a"])


@pytest.mark.parametrize(
    ("classes", "targets"),
    [
        (["cat", "dog"], [0, 1, 0]),
        (["zebra", "ant", "cat"], [0, 1, 2]),
        (["None", "nan", "1", "1.0", "-1"], [0, 1, 2, 3, 4]),
        ([" a", "a ", "a"], [2, 1, 0]),
        (["cafe\u0301", "caf\u00e9"], [1, 0]),
        (["a", "b", "c"], [[1, 1, 0], [0, 0, 1], [0, 0, 0]]),
        (["z", "a"], [[1, 1], [0, 1], [1, 0]]),
        (["z", "a"], [[1, 0], [0, 1]]),
    ],
)
def test_the_table_of_a_run_gives_its_classes_and_splits_again(tmp_path, classes, targets):
    count = len(targets)
    index = Index(
        classes=classes,
        root=str(tmp_path),
        paths=path_table(f"{row} {classes[0]}.png" for row in range(count)),
        targets=np.array(targets, np.int64 if np.ndim(targets) == 1 else np.uint8),
        splits=np.zeros(count, np.int8),
        content=np.zeros((count, 2), np.uint64),
    )
    write_manifest(index, tmp_path / "split.csv")
    listing = read_manifest(str(tmp_path / "split.csv"), use="audit")
    assert listing.classes == index.classes
    assert listing.targets.tolist() == index.targets.tolist()
    assert [f"{path}" for path in listing.paths] == [index.path(row) for row in range(count)]


def test_a_table_of_plain_classes_has_no_more_columns_than_before(tmp_path):
    index = Index(
        classes=["a", "b"],
        root="/x",
        paths=path_table(["1.png", "2.png"]),
        targets=np.array([0, 1]),
        splits=np.zeros(2, np.int8),
        content=np.zeros((2, 2), np.uint64),
    )
    write_manifest(index, tmp_path / "split.csv")
    rows = ["path,label,split,content", f"/x/1.png,a,train,{'0' * 32}", f"/x/2.png,b,train,{'0' * 32}"]
    assert (tmp_path / "split.csv").read_text().split() == rows

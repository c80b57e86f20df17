import csv

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.data.index import SPLITS
from finetune.data.manifest import ManifestColumns, read_manifest, write_manifest
from finetune.data.sources.folder import folder_source
from finetune.data.sources.manifest import manifest_source
from finetune.errors import UserError
from finetune.split_settings import SplitSettings
from tests.data.folders import write_folder, write_image

ROWS = [("x/1.png", "cat", "train"), ("x/2.png", "dog", "train"), ("x/3.png", "cat", "val"), ("4.png", "dog", "")]


def write_table(path, rows, header=("path", "label", "split"), delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "semicolons", "tsv", "byte order mark", "parquet"])
def test_every_kind_of_table_gives_the_same_samples(tmp_path, kind):
    if kind == "parquet":
        path = tmp_path / "t.parquet"
        columns = dict(zip(("path", "label", "split"), map(list, zip(*ROWS, strict=True)), strict=True))
        columns["split"][3] = None
        pq.write_table(pa.table(columns), path)
    else:
        path = tmp_path / ("t.tsv" if kind == "tsv" else "t.csv")
        write_table(path, ROWS, delimiter={"semicolons": ";", "tsv": "\t"}.get(kind, ","))
    if kind == "byte order mark":
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    listing = read_manifest(str(path))
    assert listing.root == str(tmp_path)
    assert list(listing.paths) == ["x/1.png", "x/2.png", "x/3.png", "4.png"]
    assert listing.classes == ("cat", "dog")
    assert listing.targets.tolist() == [0, 1, 0, 1]
    assert listing.splits.tolist() == [0, 0, 1, -1]
    assert listing.given == ("train", "val")


def test_columns_and_the_root_can_be_named(tmp_path):
    rows = [("1.png", "a", "train"), ("2.png", "b", "train"), ("3.png", "b", "test")]
    table = write_table(tmp_path / "t.csv", rows, ("file", "class", "part"))
    listing = read_manifest(
        table,
        root=str(tmp_path / "images"),
        columns=ManifestColumns(path_column="file", label_column="class", split_column="part"),
    )
    assert listing.root == str(tmp_path / "images")
    assert listing.given == ("train", "test")


def test_without_a_split_column_nothing_is_given(tmp_path):
    listing = read_manifest(write_table(tmp_path / "t.csv", [("1.png", "a"), ("2.png", "b")], ("path", "label")))
    assert listing.splits.tolist() == [-1, -1]
    assert listing.given == ()


def test_several_labels_stand_in_one_cell(tmp_path):
    rows = [("1.png", "cat|dog"), ("2.png", ""), ("3.png", "dog | bird"), ("4.png", "cat")]
    listing = read_manifest(
        write_table(tmp_path / "t.csv", rows, ("path", "label")), columns=ManifestColumns(label_separator="|")
    )
    assert listing.classes == ("bird", "cat", "dog")
    assert listing.targets.dtype == np.uint8
    assert listing.targets.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 0]]


def test_several_labels_stand_in_one_column_each_in_the_order_given(tmp_path):
    rows = [("1.png", 1, 0), ("2.png", 0, "True"), ("3.png", "1.0", "false")]
    table = write_table(tmp_path / "t.csv", rows, ("path", "zebra", "ant"))
    listing = read_manifest(table, columns=ManifestColumns(label_columns=["zebra", "ant"]))
    assert listing.classes == ("zebra", "ant")
    assert listing.targets.tolist() == [[1, 0], [0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("rows", "header", "options", "message"),
    [
        ([("1.png", "a")], ("path", "labl"), {}, r"data\.label_column='label': not a column .* Did you mean 'labl'\?"),
        ([("1.png", "a")], ("path", "label"), {"split_column": "part"}, r"data\.split_column='part': not a column"),
        ([("1.png", "a", "trian"), ("2.png", "b", "")], ("path", "label", "split"), {}, r"Found 'trian'\."),
        (
            [("1.png", "a"), ("2.png", "")],
            ("path", "label"),
            {},
            r"column 'label' must not be empty\. It is in row 2\.",
        ),
        ([("", "a"), ("2.png", "b")], ("path", "label"), {}, r"column 'path' must not be empty\. It is in row 1\."),
        ([("1.png", "a"), ("1.png", "b")], ("path", "label"), {}, r"with another label or split: 1\.png"),
        ([("1.png", "a"), ("1.png", "a"), ("2.png", "b")], ("path", "label"), {}, r"listed once\. Listed again 1\.png"),
        ([("1.png", "a"), ("2.png", "a")], ("path", "label"), {}, r"at least two classes\. Found only 'a'\."),
        ([("1.png", "a", "train"), ("2.png", "b", "val")], ("path", "label", "split"), {}, r"Only in val or test: b\."),
        ([("1.png", "a", "x")], ("path", "label"), {}, r"every row must have 2 cells\. Line 2 has 3\."),
        ([], ("path", "label"), {}, r"no images found\. The table has no rows\."),
        (
            [("1.png", "2")],
            ("path", "a"),
            {"label_columns": ["a"]},
            r"column 'a' must hold 0 or 1\. Found '2' in row 1\.",
        ),
    ],
)
def test_a_table_that_cannot_be_trained_on_is_refused(tmp_path, rows, header, options, message):
    with pytest.raises(UserError, match=message):
        read_manifest(write_table(tmp_path / "t.csv", rows, header), columns=ManifestColumns(**options))


@pytest.mark.parametrize(("name", "message"), [("none.csv", "no such file"), ("t.txt", "must end in .csv")])
def test_a_file_that_is_no_table_is_refused(tmp_path, name, message):
    (tmp_path / "t.txt").write_text("x")
    with pytest.raises(UserError, match=message):
        read_manifest(str(tmp_path / name))


def test_a_damaged_parquet_file_is_refused(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read_manifest(str(tmp_path / "t.parquet"))


def test_the_splits_of_a_run_can_be_given_back_as_a_manifest(tmp_path):
    write_folder(tmp_path / "data", {"10": 9, "2, or so": 8})
    index = folder_source(root=str(tmp_path / "data"), split=SplitSettings(seed=3)).index
    write_manifest(index, tmp_path / "split.csv")
    again = manifest_source(path=str(tmp_path / "split.csv"), split=SplitSettings(seed=99)).index
    assert again.classes == index.classes
    assert [again.path(row) for row in range(len(again))] == [index.path(row) for row in range(len(index))]
    assert again.splits.tolist() == index.splits.tolist()
    assert again.targets.tolist() == index.targets.tolist()
    assert again.content.tolist() == index.content.tolist()


def test_a_missing_cell_of_the_group_column_makes_no_group(tmp_path):
    cells = ["p1", "NA", "nan", "p1", "NULL", " None ", ""]
    rows = [(f"{number}.png", "ab"[number % 2], cell) for number, cell in enumerate(cells)]
    table = write_table(tmp_path / "t.csv", rows, ("path", "label", "patient"))
    groups = read_manifest(table, columns=ManifestColumns(group_column="patient")).groups
    assert groups.names == ("p1",)
    assert groups.numbers.tolist() == [0, -1, -1, 0, -1, -1, -1]


@pytest.mark.parametrize("missing", [("", ""), ("NA", ""), ("", "2"), ("NaN", "-1")])
def test_a_missing_label_is_none_in_a_user_s_table_with_a_column_class_index_too(tmp_path, missing):
    rows = [("1.png", "cat", "train", "1"), ("2.png", "dog", "train", "0"), ("3.png", missing[0], "train", missing[1])]
    header = ("path", "label", "split", "class_index")
    with pytest.raises(UserError, match=r"column 'label' must not be empty\. It is in row 3\."):
        read_manifest(write_table(tmp_path / "t.csv", rows, header))
    # a split without any label is a hidden one
    rows[2] = ("3.png", missing[0], "test", missing[1])
    listing = read_manifest(write_table(tmp_path / "t.csv", rows, header))
    assert (listing.classes, listing.targets.tolist()) == (("dog", "cat"), [1, 0])
    # the index may be missing where the label is not
    rows[2] = ("3.png", "cat", "train", "")
    listing = read_manifest(write_table(tmp_path / "t.csv", rows, header))
    assert (listing.classes, listing.targets.tolist()) == (("dog", "cat"), [1, 0, 1])


def test_a_missing_label_of_a_parquet_table_with_a_column_class_index_is_none(tmp_path):
    columns = {"path": ["1.png", "2.png", "3.png"], "label": ["cat", "dog", None], "class_index": [1, 0, None]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"column 'label' must not be empty\. It is in row 3\."):
        read_manifest(str(tmp_path / "t.parquet"))


def test_several_labels_survive_the_way_through_a_split_table(tmp_path):
    for number in range(12):
        write_image(tmp_path / f"{number}.png", number)
    rows = [(f"{number}.png", ["a", "a|b", "", "b"][number % 4]) for number in range(12)]
    table = write_table(tmp_path / "t.csv", rows, ("path", "label"))
    index = manifest_source(path=table, label_separator="|").index
    write_manifest(index, tmp_path / "split.csv")
    again = manifest_source(path=str(tmp_path / "split.csv"), label_separator="|").index
    assert again.targets.tolist() == index.targets.tolist()
    assert {SPLITS[split] for split in again.splits} == {"train", "val", "test"}

import csv

import numpy as np
import pytest

from finetune.data.audit import audit
from finetune.data.groups import groups_of_cells, groups_of_paths
from finetune.data.guess_groups import guess_groups
from finetune.data.index import Index
from finetune.data.manifest import write_manifest
from finetune.data.path_table import path_table
from finetune.data.sources.folder import folder_source
from finetune.data.sources.manifest import manifest_source
from finetune.errors import UserError
from finetune.split_settings import SplitSettings
from tests.data.folders import write_image

# two classes of twelve patients, three pictures each
PATIENTS = [
    (f"{'ab'[patient % 2]}/p{patient:02}_{shot}.png", f"p{patient:02}") for patient in range(12) for shot in range(3)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("patients")
    for number, (path, _) in enumerate(PATIENTS):
        write_image(root / path, number)
    return root


def split_of(index):
    """Splits of each patient in a data set of these files."""
    splits = {}
    for row in range(len(index)):
        splits.setdefault(index.paths[row].rpartition("/")[2][:3], set()).add(int(index.splits[row]))
    return splits


def test_a_pattern_keeps_the_pictures_of_a_patient_in_one_split(folder):
    index = folder_source(root=str(folder), group_pattern=r"/(?P<group>p\d+)_").index
    assert {len(splits) for splits in split_of(index).values()} == {1}
    assert all(min(index.counts()[split]) >= 3 for split in ("train", "val", "test"))
    assert any("12 groups; train 8, val 2, test 2" in note for note in index.notes), index.notes
    assert split_of(folder_source(root=str(folder), group_pattern=r"/(p\d+)_").index) == split_of(index)
    few = folder_source(root=str(folder), group_pattern=r"p\d\d", split=SplitSettings(folds=3, limit_per_class=2)).index
    assert {len(splits) for splits in split_of(few).values()} == {1}


def test_a_column_of_a_table_keeps_groups_whole_and_comes_back_in_the_splits_of_a_run(folder, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("path,label,patient\n" + "".join(f"{path},{path[0]},{patient}\n" for path, patient in PATIENTS))
    index = manifest_source(path=str(table), root=str(folder), group_column="patient").index
    assert {len(splits) for splits in split_of(index).values()} == {1}
    write_manifest(index, tmp_path / "split.csv")
    with (tmp_path / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows] == [patient for _, patient in PATIENTS]
    again = manifest_source(path=str(tmp_path / "split.csv"), group_column="group").index
    assert (again.splits == index.splits).all()
    assert not [
        finding
        for finding in audit(manifest_source(path=str(tmp_path / "split.csv"), group_column="group")).findings
        if finding.severity == "error"
    ]


def test_groups_across_given_splits_are_an_error_of_the_audit(folder, tmp_path):
    table = tmp_path / "table.csv"
    lines = [
        f"{path},{path[0]},{patient},{'test' if path.endswith('2.png') else 'train'}\n" for path, patient in PATIENTS
    ]
    table.write_text("path,label,patient,split\n" + "".join(lines))
    found = audit(manifest_source(path=str(table), root=str(folder), group_column="patient"), look_alikes=False)
    (finding,) = [finding for finding in found.findings if finding.kind == "groups in several splits"]
    assert finding.severity == "error"
    assert "12 groups" in finding.text
    assert finding.files[0][0] == "'p00'"


def test_the_audit_guesses_a_grouping_from_file_names_with_the_pattern_for_it(folder):
    found = audit(folder_source(root=str(folder)), look_alikes=False)
    (finding,) = [finding for finding in found.findings if finding.kind == "likely groups"]
    assert "12 groups" in finding.text
    pattern = finding.remedy.partition("data.group_pattern='")[2].rstrip("'")
    index = folder_source(root=str(folder), group_pattern=pattern).index
    assert {len(splits) for splits in split_of(index).values()} == {1}
    assert not [
        finding
        for finding in audit(folder_source(root=str(folder), group_pattern=pattern)).findings
        if "group" in finding.kind
    ]


def test_one_folder_too_high_is_one_finding_and_no_guess_of_groups(tmp_path):
    names = {"pets": ("cat", "dog", "hamster"), "cars": ("vw", "bmw", "fiat")}
    paths = [
        f"{top}/{name}/{name}_{number}.png" for top, below in names.items() for name in below for number in range(4)
    ]
    for number, path in enumerate(paths):
        write_image(tmp_path / path, number)
    assert guess_groups(index_of(paths)) is not None
    found = audit(folder_source(root=str(tmp_path)), look_alikes=False)
    assert [finding.kind for finding in found.findings if finding.severity != "note"] == ["one folder too high"]
    assert "likely groups" not in {finding.kind for finding in found.findings}


def index_of(paths, classes=2):
    rows = len(paths)
    return Index(
        classes=[str(number) for number in range(classes)],
        root="",
        paths=path_table(paths),
        targets=np.arange(rows) % classes,
        splits=np.zeros(rows, np.int8),
        content=np.arange(2 * rows, dtype=np.uint64).reshape(rows, 2),
    )


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("c/video{a:02}_frame_{b:04}.jpg", 12),
        ("c/clip {l} ({b}).jpg", 12),
        ("c/clip{l}-{b:03}.jpg", 12),
        ("c/v{a:02}f{b:04}.jpg", 12),
        ("c/2024-05-{a:02}_{b:06}.jpg", 12),
        ("c/photo{a}_jpg.rf.{b:032x}.jpg", 12),
        ("c/vid{a}/{b:05}.jpg", 12),
        ("c/{n}.jpg", None),
        ("c/IMG_{n:04}.jpg", None),
        ("c/cat.{n}.jpg", None),
        ("c/{n:032x}.jpg", None),
        ("c/bird_{n:04}_{h}.jpg", None),
        ("train/c/{n}.jpg", None),
    ],
)
def test_names_that_only_count_pictures_are_no_groups(name, groups):
    paths = [
        name.format(a=row // 10, b=row % 10, l="abcdefghijkl"[row // 10], n=row * 7919, h=row * 104729 % 99991)
        for row in range(120)
    ]
    guess = guess_groups(index_of(paths))
    assert (len(guess.groups.names) if guess else None) == groups


def test_empty_and_missing_cells_belong_to_no_group():
    groups = groups_of_cells(["a", "", None, float("nan"), 7, "7", " a "], setting="")
    assert groups.numbers.tolist() == [0, -1, -1, -1, 1, 1, 0]


@pytest.mark.parametrize(
    ("pattern", "message"), [("(", "must be a regular expression"), ("xyz", "It matches none, such as 'a/")]
)
def test_a_pattern_that_cannot_group_is_refused(folder, pattern, message):
    with pytest.raises(UserError, match=r"data\.group_pattern=") as caught:
        folder_source(root=str(folder), group_pattern=pattern)
    assert message in str(caught.value)


@pytest.mark.parametrize("pattern", [r"cat/(a|a)*$", r"(?:a|a)*[0-9]?$"])
def test_a_pattern_that_takes_exponential_time_is_stopped_with_one_error(pattern, monkeypatch):
    monkeypatch.setattr("finetune.data.groups._SECONDS", 0.2)
    paths = path_table(["cat/" + "a" * 60 + ".png"])
    with pytest.raises(UserError, match=r"data\.group_pattern=.*must match a path quickly.* to 'cat/aaa"):
        groups_of_paths(paths, pattern)

import io
import os
import pickle
import re
import shutil
import socket
import threading
import time

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data.decode import DecodeOptions
from finetune.data.groups import groups_of_cells
from finetune.data.huggingface_datasets import huggingface_source
from finetune.data.label_cells import is_missing
from finetune.data.loading import threads_here, views_of_rows
from finetune.errors import UserError
from finetune.split_settings import SplitSettings
from tests.data.folders import write_folder


@pytest.fixture(autouse=True)
def quiet_cache(tmp_path, monkeypatch):
    """The library's own cache stays in the test, and its bars off the terminal."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def table(count, seed):
    generator = np.random.default_rng(seed)
    images = [Image.fromarray(generator.integers(0, 256, (10, 12, 3), np.uint8)) for _ in range(count)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ant"])})
    return datasets.Dataset.from_dict({"image": images, "label": [row % 2 for row in range(count)]}, features=features)


def test_a_saved_data_set_keeps_its_splits_and_the_order_of_its_classes(tmp_path):
    saved = datasets.DatasetDict({"validation": table(6, 1), "train": table(20, 2)})
    saved.save_to_disk(str(tmp_path / "saved"))
    source = huggingface_source(path=str(tmp_path / "saved"), split=SplitSettings(test_fraction=0.2))
    assert source.index.classes == ("zebra", "ant")
    assert source.index.counts() == {"train": [8, 8], "val": [3, 3], "test": [2, 2]}
    row = int(source.index.rows("val")[1])
    expected = np.asarray(saved["validation"][1]["image"])
    assert source.index.path(row) == "val/1"
    assert np.array_equal(source.read(row).permute(1, 2, 0).numpy(), expected)
    assert torch.equal(pickle.loads(pickle.dumps(source)).read(row), source.read(row))


def test_a_saved_table_without_splits_is_split_here(tmp_path):
    table(40, 3).save_to_disk(str(tmp_path / "saved"))
    counts = huggingface_source(
        path=str(tmp_path / "saved"), split=SplitSettings(val_fraction=0.1, test_fraction=0.1)
    ).index.counts()
    assert counts == {"train": [16, 16], "val": [2, 2], "test": [2, 2]}


def test_a_folder_that_the_library_reads_gives_the_same_samples(tmp_path):
    write_folder(tmp_path / "images", {"train/a": 8, "train/b": 8, "test/a": 2, "test/b": 3})
    source = huggingface_source(path=str(tmp_path / "images"))
    assert source.index.classes == ("a", "b")
    assert source.index.counts()["test"] == [2, 3]
    assert source.read(0).shape == (3, 10, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_column": "labels"}, r"data\.label_column='labels': not a column .* Did you mean 'label'\?"),
        ({"image_column": "img"}, r"data\.image_column='img': not a column"),
    ],
)
def test_a_column_that_is_not_there_is_refused(tmp_path, options, message):
    table(8, 4).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=message):
        huggingface_source(path=str(tmp_path / "saved"), **options)


def test_a_folder_that_is_no_data_set_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be read as a data set"):
        huggingface_source(path=str(tmp_path / "empty"))
    with pytest.raises(UserError, match="no such folder"):
        huggingface_source(path=str(tmp_path / "missing"))


def labelled(labels, feature=None):
    images = [Image.fromarray(np.full((10, 12, 3), row, np.uint8)) for row in range(len(labels))]
    columns = {"image": datasets.Image(), "label": feature or datasets.Value("string")}
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=datasets.Features(columns))


@pytest.mark.parametrize("hidden", [[-1, -1], [None, None]])
def test_the_rows_of_a_hidden_test_split_are_left_out_with_a_warning(tmp_path, hidden):
    feature = datasets.ClassLabel(names=["zebra", "ant"])
    parts = {"train": labelled([0, 1] * 6, feature), "test": labelled(hidden, feature)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    index = huggingface_source(path=str(tmp_path / "saved")).index
    assert [problem.kind for problem in index.problems] == ["hidden labels"]
    assert index.classes == ("zebra", "ant")
    assert len(index) == 12
    assert index.split_sizes()["test"] > 0


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        (["a", None, "b"], None, "column 'label' must not be empty. It is in row 2"),
        (["a", "nan", "b"], None, "column 'label' must not be empty. It is in row 2"),
        ([0, -1, 1], datasets.ClassLabel(names=["a", "b"]), "column 'label' must not be empty. It is in row 2"),
        (
            [["a"], ["b"], ["a"]],
            datasets.Sequence(datasets.Value("string")),
            "Row 1 holds a list: .* data=huggingface reads one label per image. For several, .* data=manifest",
        ),
        ([b"a", b"b", b"a"], datasets.Value("binary"), "Row 1 holds bytes"),
    ],
)
def test_a_label_that_is_none_is_an_error_with_its_row(tmp_path, labels, feature, message):
    labelled(labels, feature).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=message):
        huggingface_source(path=str(tmp_path / "saved"))


ANIMALS = datasets.ClassLabel(names=["zebra", "ant"])


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (ANIMALS, datasets.ClassLabel(names=["ant", "owl"]), "split test has the class 'owl', which train lacks"),
        (ANIMALS, datasets.Value("int64"), "split test holds int64, and that of train class labels"),
        (datasets.Value("int64"), ANIMALS, "split test holds class labels, and that of train int64"),
    ],
)
def test_classes_that_differ_from_those_of_train_are_named_with_their_split(tmp_path, train, test, message):
    parts = {"train": labelled([0, 1] * 6, train), "test": labelled([0, 1], test)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=f"data.path=.*: column 'label' of {message}"):
        huggingface_source(path=str(tmp_path / "saved"))


def test_classes_in_another_order_or_fewer_than_those_of_train_are_read_by_name(tmp_path):
    parts = {"train": labelled([0, 1] * 6, ANIMALS), "test": labelled([0, 0], datasets.ClassLabel(names=["ant"]))}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    assert huggingface_source(path=str(tmp_path / "saved")).index.counts()["test"] == [0, 2]


def test_a_missing_cell_of_the_group_column_makes_no_group(tmp_path):
    part = labelled([0, 1] * 3, ANIMALS).add_column("patient", ["p", "NA", None, "p", "nan", ""])
    part.save_to_disk(str(tmp_path / "saved"))
    groups = huggingface_source(path=str(tmp_path / "saved"), group_column="patient").index.groups
    assert groups.names == ("p",)


@pytest.mark.parametrize(
    "column",
    [[1.5, None, 1.5, float("nan"), 2.0, 2.0], ["p", "NA", None, "p ", "nan", ""], [[1], [2], [1], [], [1], None]],
)
def test_the_cells_of_a_group_column_are_read_as_one_after_the_other(tmp_path, column):
    parts = {"train": labelled([0, 1] * 3, ANIMALS).add_column("patient", column)}
    parts["test"] = labelled([0, 1], ANIMALS).add_column("patient", column[-2:])
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    source = huggingface_source(path=str(tmp_path / "saved"), group_column="patient")
    cells = [cell for part in parts.values() for cell in part["patient"]]
    expected = groups_of_cells(["" if is_missing(cell) else cell for cell in cells], setting="")
    names = {source.index.path(row): source.index.groups.name(row) for row in range(len(source.index))}
    paths = [f"{split}/{row}" for split, part in parts.items() for row in range(len(part))]
    assert names == {path: expected.name(row) for row, path in enumerate(paths)}
    assert source.index.groups.names == expected.names


def test_a_number_that_stands_for_no_class_is_named(tmp_path):
    part = labelled([0, 2] * 3, datasets.Value("int64"))
    part.info.features = datasets.Features({"image": datasets.Image(), "label": ANIMALS})
    part.save_to_disk(str(tmp_path / "saved"))
    message = r"split train must hold the numbers of its 2 classes, from 0 to 1\. Found 2\."
    with pytest.raises(UserError, match=message):
        huggingface_source(path=str(tmp_path / "saved"))


def test_other_pictures_of_a_row_are_not_decoded(tmp_path):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": ANIMALS,
            "mask": datasets.Image(),
            "views": datasets.List(datasets.Image()),
        }
    )
    damaged = {"bytes": b"no image", "path": None}
    rows = {
        "image": [{"bytes": png(row), "path": None} for row in range(8)],
        "label": [0, 1] * 4,
        "mask": [damaged] * 8,
        "views": [[damaged]] * 8,
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    source = huggingface_source(path=str(tmp_path / "saved"))
    assert all(source.read(row).shape == (3, 10, 12) for row in range(8))
    assert source.tables[0].column_names == ["image"]


@pytest.mark.parametrize("columns", [["label"], ["image", "label"]])
def test_the_format_of_a_saved_data_set_changes_nothing(tmp_path, columns):
    plain = table(8, 4)
    plain.save_to_disk(str(tmp_path / "plain"))
    plain.with_format("numpy", columns=columns).save_to_disk(str(tmp_path / "formatted"))
    first, second = (huggingface_source(path=str(tmp_path / name)) for name in ("plain", "formatted"))
    assert all(torch.equal(first.read(row), second.read(row)) for row in range(8))
    assert np.array_equal(first.index.targets, second.index.targets)


def test_two_threads_decode_at_once_what_they_read_one_after_the_other(tmp_path, monkeypatch):
    from finetune.data import huggingface_datasets

    table(8, 4).save_to_disk(str(tmp_path / "saved"))
    source = huggingface_source(path=str(tmp_path / "saved"))
    expected = [source.read(row) for row in range(8)]
    both, real, reading = threading.Barrier(2, timeout=20), huggingface_datasets.decode_bytes, threading.Lock()

    class OneAtATime:
        """A table that no two threads may read at once."""

        def __init__(self, table):
            self.table = table

        def __getitem__(self, row):
            assert reading.acquire(blocking=False)
            time.sleep(0.01)
            reading.release()
            return self.table[row]

    def decode_two(*given, **options):
        both.wait()
        return real(*given, **options)

    source.tables = [OneAtATime(table) for table in source.tables]
    monkeypatch.setattr(huggingface_datasets, "decode_bytes", decode_two)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    views = views_of_rows(source, AsItIs(), range(8), seeds=None, threads=threads_here(source))
    assert all(map(torch.equal, views, expected))


class AsItIs:
    """A view of the whole picture."""

    min_side = None

    def __call__(self, image):
        return image


def test_a_data_set_without_a_training_part_is_all_tested(tmp_path):
    datasets.DatasetDict({"validation": table(6, 1)}).save_to_disk(str(tmp_path / "one"))
    table(5, 2).save_to_disk(str(tmp_path / "two"))
    assert huggingface_source(path=str(tmp_path / "one"), use="test").index.split_sizes() == {
        "train": 0,
        "val": 6,
        "test": 0,
    }
    assert huggingface_source(path=str(tmp_path / "two"), use="test").index.split_sizes() == {
        "train": 0,
        "val": 0,
        "test": 5,
    }
    with pytest.raises(UserError, match="must have a split train"):
        huggingface_source(path=str(tmp_path / "one"))


@pytest.fixture
def scanned(monkeypatch):
    """Rows whose images were opened by the scan, counted since the fixture was last emptied."""
    from finetune.data import huggingface_datasets

    opened = []
    real = huggingface_datasets.facts_of_bytes

    def counted(data, row, **options):
        opened.append(len(data))
        real(data, row, **options)

    monkeypatch.setattr(huggingface_datasets, "facts_of_bytes", counted)
    return opened


def age(folder):
    """Make files older than the two seconds in which a change could go unseen."""
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9))


def facts_of(source):
    return {source.index.path(row): source.facts.table[row].tobytes() for row in range(len(source.index))}


def test_images_in_arrow_files_are_opened_once_and_again_when_the_files_changed(tmp_path, scanned):
    place = tmp_path / "saved"
    datasets.DatasetDict({"train": table(60, 2), "validation": table(9, 1)}).save_to_disk(str(place))
    age(place)
    first = huggingface_source(path=str(place))
    assert len(scanned) == 69
    scanned.clear()
    second = huggingface_source(path=str(place))
    assert scanned == []
    assert facts_of(second) == facts_of(first)
    # with another limit of pixels, other images are readable
    assert huggingface_source(path=str(place), decode_options=DecodeOptions(max_pixels=121)).index
    assert len(scanned) == 69
    scanned.clear()
    shutil.rmtree(place)
    datasets.DatasetDict({"train": table(60, 3), "validation": table(9, 1)}).save_to_disk(str(place))
    age(place)
    third = huggingface_source(path=str(place))
    assert len(scanned) in (60, 69)
    assert facts_of(third) != facts_of(first)


def test_images_that_cells_name_are_opened_again_one_by_one(tmp_path, scanned):
    write_folder(tmp_path / "images", {"train/a": 8, "train/b": 8})
    age(tmp_path / "images")
    first = huggingface_source(path=str(tmp_path / "images"))
    assert len(scanned) == 16
    scanned.clear()
    changed = next((tmp_path / "images" / "train" / "a").iterdir())
    Image.fromarray(np.full((20, 12, 3), 9, np.uint8)).save(changed)
    second = huggingface_source(path=str(tmp_path / "images"))
    assert len(scanned) == 1
    assert sum(one != facts_of(first)[path] for path, one in facts_of(second).items()) == 1


def test_a_damaged_image_is_told_alike_at_the_second_start(tmp_path, scanned):
    images = [{"bytes": b"no image", "path": None}, {"bytes": png(3), "path": None}] * 4
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("string")})
    broken = datasets.Dataset.from_dict({"image": images, "label": ["a", "b"] * 4}, features=features)
    broken.save_to_disk(str(tmp_path / "saved"))
    age(tmp_path / "saved")
    said = []
    for _ in range(2):
        with pytest.raises(UserError, match="4 files cannot be read") as error:
            huggingface_source(path=str(tmp_path / "saved"))
        said.append(str(error.value))
    assert said[0] == said[1]
    # those that could not be read are opened again
    assert len(scanned) == 12


def png(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (10, 12, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_the_range_of_deep_images_is_measured_on_training_data_alone(tmp_path):
    values = np.full((10, 12), 3000, np.uint16)
    images = [Image.fromarray(values + row) for row in range(8)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    deep = datasets.Dataset.from_dict({"image": images, "label": [row % 2 for row in range(8)]}, features=features)
    deep.save_to_disk(str(tmp_path / "saved"))
    assert huggingface_source(path=str(tmp_path / "saved")).decode_options.integer_range == (0, 4095)
    assert huggingface_source(path=str(tmp_path / "saved"), use="test").decode_options == DecodeOptions()


CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {}\n---\n# A card\n"


@pytest.mark.parametrize(
    "place",
    [
        "http://127.0.0.1:{port}/x.parquet",
        "zip://*.jpg::http://127.0.0.1:{port}/x.zip",
        "/etc/*.csv",
        "../other/*.png",
    ],
)
@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
def test_a_folder_that_names_another_place_is_refused_and_nobody_is_asked(tmp_path, place, name):
    write_folder(tmp_path / "images", {"train/a": 2, "train/b": 2})
    with socket.create_server(("127.0.0.1", 0)) as server:
        text = CARD.format(place.format(port=server.getsockname()[1]))
        if name != "README.md":
            text = text.split("---")[1]
        (tmp_path / "images" / name).write_text(text)
        with pytest.raises(UserError, match=f"{re.escape(name)}: data_files=.*leads out of the data set"):
            huggingface_source(path=str(tmp_path / "images"))
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_card_that_names_files_of_its_own_folder_is_read(tmp_path):
    write_folder(tmp_path / "images", {"here/a": 8, "here/b": 8})
    (tmp_path / "images/README.md").write_text(CARD.format("here/**"))
    assert sum(huggingface_source(path=str(tmp_path / "images")).index.counts()["train"]) > 8


def test_a_saved_data_set_names_its_own_files_alone_and_holds_no_pipe(tmp_path):
    table(8, 0).save_to_disk(str(tmp_path / "saved"))
    state = tmp_path / "saved/state.json"
    state.write_text(state.read_text().replace('"data-0', '"../saved/data-0'))
    with pytest.raises(UserError, match=r"state\.json: filename=.*leads out of the data set"):
        huggingface_source(path=str(tmp_path / "saved"))
    os.mkfifo(tmp_path / "saved/.huggingface.yaml")
    with pytest.raises(UserError, match=r"\.huggingface\.yaml: must be a regular file"):
        huggingface_source(path=str(tmp_path / "saved"))

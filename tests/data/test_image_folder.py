import sys
from collections import Counter

import numpy as np
import pytest

from finetune.data.image_folder import list_training_folders
from finetune.data.index import SPLITS
from finetune.errors import UserError
from tests.data.folders import write_folder, write_image


def splits_of(listing):
    return Counter("-" if split < 0 else SPLITS[split] for split in listing.splits)


def test_a_flat_folder_lists_classes_in_natural_order(tmp_path):
    listing = list_training_folders(str(write_folder(tmp_path, {"10": 2, "2": 1, "1": 3})))
    assert listing.classes == ("1", "2", "10")
    assert np.bincount(listing.targets).tolist() == [3, 1, 2]
    assert listing.given == ()
    assert splits_of(listing) == {"-": 6}


def test_folders_below_a_class_belong_to_it(tmp_path):
    write_folder(tmp_path, {"cat/2020/may": 2, "cat": 1, "dog": 1})
    listing = list_training_folders(str(tmp_path))
    assert listing.classes == ("cat", "dog")
    assert np.bincount(listing.targets).tolist() == [3, 1]
    assert all((tmp_path / path).is_file() for path in listing.paths)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_split_folders_give_splits_and_align_classes_by_name(tmp_path, name):
    write_folder(tmp_path, {"train/a": 2, "train/b": 2, "train/c": 1, f"{name}/c": 1, "test/a": 1})
    listing = list_training_folders(str(tmp_path))
    assert listing.classes == ("a", "b", "c")
    assert listing.given == ("train", "val", "test")
    found = {
        (SPLITS[split], listing.classes[target]) for split, target in zip(listing.splits, listing.targets, strict=True)
    }
    assert found == {("train", "a"), ("train", "b"), ("train", "c"), ("val", "c"), ("test", "a")}


def test_a_class_called_train_is_a_class_where_images_lie_in_it(tmp_path):
    listing = list_training_folders(str(write_folder(tmp_path, {"train": 2, "plane": 2})))
    assert listing.classes == ("plane", "train")


def test_names_composed_and_decomposed_are_one_class(tmp_path):
    write_folder(tmp_path, {"train/caf\u00e9": 2, "train/tea": 1, "val/cafe\u0301": 1})
    assert list_training_folders(str(tmp_path)).classes == ("caf\u00e9", "tea")


def test_what_is_left_out_is_counted(tmp_path):
    write_folder(tmp_path, {"a": 2, "b": 1, ".git": 1, "__MACOSX": 1})
    for name in ("a/Thumbs.db", "a/notes.txt", "a/photo.PSD", "a/._1.png", "b/.DS_Store", "README"):
        (tmp_path / name).write_bytes(b"x")
    write_image(tmp_path / "loose.png", 1)
    listing = list_training_folders(str(tmp_path))
    assert len(listing) == 3
    assert listing.ignored == {
        ".git/": 1,
        "__MACOSX/": 1,
        "*.db": 1,
        "*.txt": 1,
        "*.psd": 1,
        "hidden files": 2,
        "README": 1,
        "images outside a class folder": 1,
    }


def test_links_to_files_and_folders_are_followed_but_not_round_in_circles(tmp_path):
    write_folder(tmp_path / "elsewhere", {"x": 3})
    write_folder(tmp_path / "data", {"a": 1, "b": 1})
    (tmp_path / "data/a/more").symlink_to(tmp_path / "elsewhere/x")
    (tmp_path / "data/a/again").symlink_to(tmp_path / "elsewhere/x")
    (tmp_path / "data/a/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/b/one.png").symlink_to(next((tmp_path / "elsewhere/x").iterdir()))
    listing = list_training_folders(str(tmp_path / "data"))
    assert np.bincount(listing.targets).tolist() == [4, 2]
    assert listing.ignored == {"links to a folder already visited": 2}


def test_several_folders_are_one_data_set(tmp_path):
    one = write_folder(tmp_path / "one", {"a": 1, "b": 2})
    two = write_folder(tmp_path / "two", {"b": 1, "c": 3})
    listing = list_training_folders([str(one), str(two)])
    assert listing.classes == ("a", "b", "c")
    assert np.bincount(listing.targets).tolist() == [1, 3, 3]
    assert all((tmp_path / path).is_file() for path in listing.paths)


def test_several_folders_must_name_the_same_splits(tmp_path):
    one = write_folder(tmp_path / "one", {"a": 1, "b": 2})
    two = write_folder(tmp_path / "two", {"train/a": 1, "train/b": 1})
    with pytest.raises(UserError, match="must name the same splits"):
        list_training_folders([str(one), str(two)])


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, r"no images found\. Looked for \*\.jpg, .* in 0 folders below it\."),
        ({"a/x": 0, "b": 0}, r"no images found\. Looked for .*, \*\.gif, .* in 3 folders below it\."),
        ({"a": 2}, r"must hold at least two classes\. Found only 'a'\."),
        ({"a": 2, "b": 1, "c": 0}, r"every class needs a training image\. Classes without one: c\."),
        ({"train/a": 1, "train/b": 1, "val/z": 1}, r"Only in val or test: z\."),
        ({"train/a": 1, "train/b": 0, "val/b": 1}, r"Only in val or test: b\."),
        ({"train/a": 1, "train/b": 1, "val/a": 1, "valid/a": 1}, r"Found val and valid\. Keep one"),
        ({"train": 3, "val": 2}, r"must hold train/<class>/\* or <class>/\*\. train/ holds no class folder"),
        ({"val/a": 1, "test/a": 1}, r"found only test, val\."),
    ],
)
def test_a_folder_that_cannot_be_trained_on_is_refused(tmp_path, counts, message):
    write_folder(tmp_path, counts)
    with pytest.raises(UserError, match=message) as caught:
        list_training_folders(str(tmp_path))
    assert str(caught.value).startswith(f"data.root={str(tmp_path)!r}: ")


def test_images_without_class_folders_are_pointed_out(tmp_path):
    write_image(tmp_path / "1.png", 1)
    with pytest.raises(UserError, match=r"1 image lies directly in it: make one folder per class"):
        list_training_folders(str(tmp_path))


def test_a_missing_folder_is_named_with_the_part_that_exists(tmp_path):
    with pytest.raises(UserError, match=f"no such folder. The path exists up to {tmp_path}"):
        list_training_folders(str(tmp_path / "no" / "where"))


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    write_image(tmp_path / "1.png", 1)
    with pytest.raises(UserError, match="must be a folder"):
        list_training_folders(str(tmp_path / "1.png"))


def test_names_that_are_no_utf8_are_kept(tmp_path):
    write_folder(tmp_path, {"a": 1, "b": 1})
    strange = b"\xff\xfe.png"
    source = next((tmp_path / "a").iterdir())
    with open(bytes(tmp_path) + b"/a/" + strange, "wb") as file:
        file.write(source.read_bytes())
    listing = list_training_folders(str(tmp_path))
    assert all((tmp_path / path).is_file() for path in listing.paths)


def test_checking_a_folder_imports_no_torch(tmp_path):
    import subprocess

    write_folder(tmp_path, {"a": 1, "b": 1})
    code = (
        "import sys; from finetune.data.image_folder import list_training_folders; from finetune.data.splits import make_splits;"
        f"list_training_folders({str(tmp_path)!r}); print('torch' in sys.modules, 'PIL' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]

import os
import pickle

import numpy as np
import pytest
import torch

from finetune.data.audit import audit
from finetune.data.audit_text import short
from finetune.data.decode import DecodeOptions
from finetune.data.image_file import UnreadableImage
from finetune.data.manifest import write_skipped
from finetune.data.sources import DATA_SOURCES
from finetune.data.sources.digits import digits_source
from finetune.data.sources.folder import folder_source
from finetune.data.sources.manifest import manifest_source
from finetune.errors import UserError
from finetune.split_settings import SplitSettings
from tests.data.folders import write_folder, write_image


def test_a_folder_gives_every_class_its_share_of_every_split(tmp_path):
    source = folder_source(
        root=str(write_folder(tmp_path, {"a": 20, "b": 40})), split=SplitSettings(val_fraction=0.1, test_fraction=0.2)
    )
    assert source.index.counts() == {"train": [14, 28], "val": [2, 4], "test": [4, 8]}
    assert source.read(0).shape == (3, 10, 12)
    assert folder_source(root=str(tmp_path), decode_options=DecodeOptions(channels=1)).read(0).shape == (1, 10, 12)


def test_splits_that_the_folder_names_are_kept_and_the_missing_one_is_made_from_train(tmp_path):
    write_folder(tmp_path, {"train/a": 10, "train/b": 10, "test/a": 3, "test/b": 4})
    index = folder_source(root=str(tmp_path), split=SplitSettings(val_fraction=0.2)).index
    assert index.counts() == {"train": [8, 8], "val": [2, 2], "test": [3, 4]}
    assert all(index.path(int(row)).startswith(str(tmp_path / "test")) for row in index.rows("test"))


def test_renaming_every_file_changes_no_split(tmp_path):
    write_folder(tmp_path, {"a": 12, "b": 12})
    before = folder_source(root=str(tmp_path)).index
    split_of = {tuple(key): split for key, split in zip(before.content.tolist(), before.splits, strict=True)}
    for number, path in enumerate(sorted(tmp_path.rglob("*.png"))):
        path.rename(path.with_name(f"{(number * 7) % 24:02}_renamed.png"))
    after = folder_source(root=str(tmp_path)).index
    assert {tuple(key): split for key, split in zip(after.content.tolist(), after.splits, strict=True)} == split_of


def test_nothing_is_written_into_the_users_folder(tmp_path):
    write_folder(tmp_path, {"a": 5, "b": 5})
    before = sorted(tmp_path.rglob("*"))
    folder_source(root=str(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before


def test_folds_validate_every_image_once_and_test_on_the_same(tmp_path):
    write_folder(tmp_path, {"a": 13, "b": 11})
    indexes = [folder_source(root=str(tmp_path), split=SplitSettings(folds=4, fold=fold)).index for fold in range(4)]
    tests = {tuple(index.rows("test")) for index in indexes}
    validated = np.concatenate([index.rows("val") for index in indexes])
    assert len(tests) == 1
    assert sorted([*validated, *next(iter(tests))]) == list(range(24))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 1}, r"data\.folds=1: must be at least 2"),
        ({"folds": 3, "fold": 3}, r"data\.fold=3: must lie between 0 and 2"),
        ({"fold": 1}, r"data\.fold=1: needs data\.folds"),
        ({"limit_per_class": 0}, r"data\.limit_per_class=0"),
    ],
)
def test_split_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        SplitSettings(**settings)


def test_rules_that_there_are_not_are_refused(tmp_path):
    write_folder(tmp_path, {"a": 4, "b": 4})
    with pytest.raises(UserError, match=r"data\.on_unreadable='skipp'.* Did you mean 'skip'\?"):
        folder_source(root=str(tmp_path), on_unreadable="skipp")
    with pytest.raises(UserError, match=r"data\.high_depth='ful'.* Did you mean 'full'\?"):
        DecodeOptions(high_depth="ful")


def test_folds_are_refused_where_the_folder_has_a_validation_split(tmp_path):
    write_folder(tmp_path, {"train/a": 4, "train/b": 4, "val/a": 1})
    with pytest.raises(UserError, match="has its own validation split"):
        folder_source(root=str(tmp_path), split=SplitSettings(folds=2))


def test_a_few_shot_limit_keeps_validation_and_test_whole_and_reads_the_right_files(tmp_path):
    write_folder(tmp_path, {"a": 20, "b": 30})
    whole = folder_source(root=str(tmp_path))
    few = folder_source(root=str(tmp_path), split=SplitSettings(limit_per_class=3))
    assert few.index.counts() == whole.index.counts() | {"train": [3, 3]}
    by_path = {whole.index.path(row): row for row in range(len(whole.index))}
    for row in range(len(few.index)):
        assert torch.equal(few.read(row), whole.read(by_path[few.index.path(row)]))
    assert (few.facts.content == few.index.content).all()


def test_unreadable_files_are_all_named_before_anything_starts(tmp_path):
    write_folder(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "a" / "empty.jpg").write_bytes(b"")
    (tmp_path / "b" / "page.png").write_bytes(b"<html>")
    with pytest.raises(UserError) as caught:
        folder_source(root=str(tmp_path))
    assert str(caught.value).splitlines() == [
        f"data.root={str(tmp_path)!r}: every image must be readable. 2 files cannot be read:",
        "  a/empty.jpg: The file is empty.",
        "  b/page.png: It is a web page, not an image.",
        "Replace or remove them, or train without them: data.on_unreadable=skip.",
    ]


def test_skipped_files_are_listed_and_replaced_by_nothing(tmp_path):
    write_folder(tmp_path / "data", {"a": 4, "b": 4})
    (tmp_path / "data/a/empty.jpg").write_bytes(b"")
    index = folder_source(root=str(tmp_path / "data"), on_unreadable="skip").index
    assert len(index) == 8
    assert index.skipped == (("a/empty.jpg", "The file is empty."),)
    assert "1 unreadable file is skipped: a/empty.jpg: The file is empty." in index.notes
    write_skipped(index, tmp_path / "skipped.csv")
    assert (tmp_path / "skipped.csv").read_text().splitlines() == ["path,reason", "a/empty.jpg,The file is empty."]


def test_what_only_bears_an_images_name_is_named_or_skipped_like_a_damaged_file(tmp_path):
    write_folder(tmp_path, {"a": 4, "b": 4})
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    (tmp_path / "a" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "b" / "folder.jpg").symlink_to(tmp_path)
    (tmp_path / "b" / "sparse.jpg").write_bytes(b"\xff\xd8\xff")
    os.truncate(tmp_path / "b" / "sparse.jpg", 100 * 2**30)
    with pytest.raises(UserError) as caught:
        folder_source(root=str(tmp_path))
    for name in (
        "a/pipe.jpg: It is not",
        "a/zero.png: It is not",
        "b/folder.jpg: It is not",
        "b/sparse.jpg: It has 102,400",
    ):
        assert name in str(caught.value)
    index = folder_source(root=str(tmp_path), on_unreadable="skip").index
    assert (len(index), len(index.skipped)) == (8, 4)


def test_skipping_the_last_image_of_a_class_is_an_error(tmp_path):
    write_folder(tmp_path, {"a": 4, "b": 0})
    (tmp_path / "b" / "empty.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"every class needs a training image\. Classes without one: b\."):
        folder_source(root=str(tmp_path), on_unreadable="skip")


def test_a_class_that_a_split_lacks_keeps_its_number_and_is_reported(tmp_path):
    write_folder(tmp_path, {"train/a": 4, "train/b": 4, "train/c": 4, "val/c": 2, "test/a": 1, "test/c": 1})
    source = folder_source(root=str(tmp_path))
    assert source.index.classes == ("a", "b", "c")
    assert source.index.counts()["val"] == [0, 0, 2]
    lines = short(audit(source, look_alikes=False))
    assert [line.partition(". ")[0] for line in lines if "no image of" in line] == [
        "warning: val has no image of 2 of 3 classes: a and 1 more",
        "warning: test has no image of 1 of 3 classes: b",
    ]
    assert not [note for note in source.index.notes if "no image of" in note], "the audit has said it"


def test_copies_of_one_image_alone_leave_nothing_to_validate_on(tmp_path):
    for name in ("a", "b"):
        for number in range(6):
            write_image(tmp_path / name / f"{number}.png", 1 if name == "a" else 2)
    with pytest.raises(UserError, match="validation needs an image"):
        folder_source(root=str(tmp_path))


def test_a_manifest_names_files_that_are_missing_as_unreadable(tmp_path):
    write_folder(tmp_path, {"a": 3, "b": 3})
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in sorted(tmp_path.rglob("*.png"))]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows, "a/gone.png,a"]))
    with pytest.raises(UserError, match=r"a/gone\.png: There is no such file\."):
        manifest_source(path=str(tmp_path / "t.csv"))
    assert len(manifest_source(path=str(tmp_path / "t.csv"), on_unreadable="skip").index) == 6


def test_a_file_that_vanishes_later_is_named_when_it_is_read(tmp_path):
    source = folder_source(root=str(write_folder(tmp_path, {"a": 4, "b": 4})))
    path = source.index.path(0)
    (tmp_path / source.index.paths[0]).unlink()
    with pytest.raises(UnreadableImage, match=path):
        source.read(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_digits_are_the_scanned_digits_on_the_whole_scale(channels):
    source = digits_source(channels=channels)
    assert len(source.index) == 1797
    assert source.index.classes == tuple("0123456789")
    image = source.read(0)
    assert image.shape == (channels, 8, 8)
    assert image.dtype == torch.uint8
    assert max(int(source.read(row).max()) for row in range(20)) == 255
    assert source.index.path(7) == "digits/0007"


def test_reading_a_row_twice_gives_a_fresh_copy():
    source = digits_source()
    source.read(5).zero_()
    assert source.read(5).any()


def test_few_digits_are_read_by_their_own_row():
    whole, few = digits_source(), digits_source(split=SplitSettings(limit_per_class=5))
    assert few.index.counts()["train"] == [5] * 10
    for row in (0, 100, len(few.index) - 1):
        assert torch.equal(few.read(row), whole.read(int(few.index.path(row).split("/")[1])))


def test_every_source_has_a_name_and_survives_the_way_to_a_worker(tmp_path):
    assert {"folder", "manifest", "digits"} <= set(DATA_SOURCES)
    write_folder(tmp_path, {"a": 4, "b": 4})
    for source in (folder_source(root=str(tmp_path)), digits_source()):
        copy = pickle.loads(pickle.dumps(source))
        assert torch.equal(copy.read(3), source.read(3))
        assert copy.index.fingerprint() == source.index.fingerprint()


def test_seed_and_folder_decide_the_fingerprint(tmp_path):
    write_folder(tmp_path, {"a": 9, "b": 9})
    prints = [
        folder_source(root=str(tmp_path), split=SplitSettings(seed=seed)).index.fingerprint() for seed in (0, 0, 1)
    ]
    assert prints[0] == prints[1] != prints[2]
    write_image(tmp_path / "a" / "another.png", 77)
    assert folder_source(root=str(tmp_path)).index.fingerprint() != prints[0]

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from finetune.data.index import SPLITS
from finetune.data.manifest import write_manifest
from finetune.data.sources.digits import digits_source
from finetune.data.sources.folder import folder_source
from finetune.data.sources.manifest import manifest_source
from finetune.errors import ConfigError, UserError
from finetune.split_settings import SplitSettings
from tests.data.folders import write_folder, write_image


def split_of(index):
    return {index.path(row): SPLITS[index.splits[row]] for row in range(len(index))}


def recorded(index, run):
    """A run folder with the split of an index."""
    run.mkdir()
    write_manifest(index, run / "split.csv")
    return str(run)


@pytest.fixture
def pets(tmp_path):
    return write_folder(tmp_path / "pets", {"cat": 20, "dog": 20})


def test_renamed_images_keep_their_split_and_new_ones_are_split_as_usual(pets, tmp_path):
    before = folder_source(root=str(pets)).index
    run, was = recorded(before, tmp_path / "run"), split_of(before)
    tests = [path for path, split in was.items() if split == "test"]
    renamed = {path: path.replace(".png", "-renamed.png") for path in tests}
    for path, to in renamed.items():
        shutil.move(path, to)
    write_folder(tmp_path / "more", {"cat": 20, "owl": 10})
    shutil.copytree(tmp_path / "more", pets, dirs_exist_ok=True)
    after = folder_source(root=str(pets), split=SplitSettings(split_from=run, seed=7)).index
    now = split_of(after)
    assert {now[renamed.get(path, path)] == split for path, split in was.items()} == {True}
    new = [now[path] for path in now.keys() - {renamed.get(path, path) for path in was}]
    assert [new.count(split) for split in SPLITS] == [14 + 6, 3 + 2, 3 + 2]
    assert after.notes[0] == (
        f"data.split_from={run}: 40 of 70 images are in its split and keep it (train 28, val 6, test 6). New: 30."
    )


def test_without_new_images_the_split_is_that_of_the_run_whatever_the_seed(pets, tmp_path):
    before = folder_source(root=str(pets)).index
    run = recorded(before, tmp_path / "run")
    after = folder_source(root=str(pets), split=SplitSettings(split_from=run, seed=3, val_fraction=0.4)).index
    assert after.fingerprint() == before.fingerprint()


def test_a_table_of_moved_files_keeps_the_split_too(pets, tmp_path):
    before = folder_source(root=str(pets)).index
    run = recorded(before, tmp_path / "run")
    shutil.move(pets, tmp_path / "moved")
    rows = [(str(path), path.parent.name) for path in sorted((tmp_path / "moved").rglob("*.png"))]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    after = manifest_source(path=str(tmp_path / "t.csv"), split=SplitSettings(split_from=run)).index
    assert split_of(after) == {
        path.replace(str(pets), str(tmp_path / "moved")): split for path, split in split_of(before).items()
    }


def test_images_in_memory_are_known_by_their_pixels(tmp_path):
    run = recorded(digits_source(split=SplitSettings(seed=1)).index, tmp_path / "run")
    first, again = (digits_source(split=SplitSettings(seed=seed)).index.splits for seed in (1, 2))
    kept = digits_source(split=SplitSettings(seed=2, split_from=run)).index.splits
    assert (first != again).any()
    np.testing.assert_array_equal(kept, first)


def test_new_images_of_a_recorded_group_join_its_split_and_so_do_their_copies(tmp_path):
    root = tmp_path / "pets"
    for name, start in (("cat", 0), ("dog", 100)):
        for number in range(20):
            write_image(root / name / f"p{start + number // 2:03}_{number}.png", start + number)
    groups = r"(p\d+)_"
    before = folder_source(root=str(root), group_pattern=groups).index
    run, was = recorded(before, tmp_path / "run"), split_of(before)
    patient = next(path for path, split in was.items() if split == "test").rpartition("_")[0]
    write_image(Path(f"{patient}_new.png"), 900)
    shutil.copy(f"{patient}_new.png", root / "cat" / "p999_copy.png")
    after = folder_source(root=str(root), group_pattern=groups, split=SplitSettings(split_from=run)).index
    now = split_of(after)
    assert now[f"{patient}_new.png"] == now[str(root / "cat" / "p999_copy.png")] == "test"
    assert {path: now[path] for path in was} == was
    assert "2 new images joined the groups of these." in after.notes[0]


def test_a_run_of_an_earlier_version_is_matched_by_path_which_is_said(pets, tmp_path):
    before = folder_source(root=str(pets)).index
    run = recorded(before, tmp_path / "run")
    table = tmp_path / "run" / "split.csv"
    table.write_text("".join(f"{line.rpartition(',')[0]}\n" for line in table.read_text().splitlines()))
    after = folder_source(root=str(pets), split=SplitSettings(split_from=run, seed=9)).index
    assert split_of(after) == split_of(before)
    assert "by path alone" in after.notes[0]
    with pytest.raises(UserError, match="recorded no contents"):
        digits_source(split=SplitSettings(split_from=run))


def test_data_that_puts_a_test_image_into_training_is_refused(pets, tmp_path):
    before = folder_source(root=str(pets)).index
    run = recorded(before, tmp_path / "run")
    for path, split in split_of(before).items():
        name = "train" if split != "val" else "val"
        target = path.replace(str(pets), str(tmp_path / "own" / name))
        (tmp_path / "own" / name / path.split("/")[-2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for number, name in enumerate(("cat", "dog")):
        write_image(tmp_path / "own" / "test" / name / "1.png", 990 + number)
    with pytest.raises(UserError, match=r"another split: .*\(was test, now train\)"):
        folder_source(root=str(tmp_path / "own"), split=SplitSettings(split_from=run))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no split"),
        ("path,label\n", "needs one column 'split'"),
        ("path,label,split\na,b,c\n", "has the split 'c'"),
        ("path,label,split,content\na,b,train,xyz\n", "32 hexadecimal digits"),
    ],
)
def test_a_folder_without_a_sound_split_is_refused(pets, tmp_path, text, message):
    (tmp_path / "run").mkdir()
    if text is not None:
        (tmp_path / "run" / "split.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        folder_source(root=str(pets), split=SplitSettings(split_from=str(tmp_path / "run")))


def test_folds_and_a_recorded_split_exclude_each_other():
    with pytest.raises(ConfigError, match="folds divide all images anew"):
        SplitSettings(split_from="run", folds=3)

"""Files of embeddings: what is written is read back, and other files are reported as such."""

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import finetune
from finetune.data.path_table import path_table
from finetune.embeddings import files as module
from finetune.embeddings.embeddings import Embeddings
from finetune.errors import UserError
from finetune.file_schema import EMBEDDINGS
from tests.embeddings.embedding_sets import embeddings_of


def sample(dtype: str, count: int = 10_000) -> Embeddings:
    draw = np.random.default_rng(0)
    made = embeddings_of(
        draw.normal(size=(count, 5)).astype(dtype),
        [row % 3 for row in range(count)],
        [row % 4 - 1 for row in range(count)],
        classes=["class 0", "class 1", "class 2"],
        note="é",
    )
    labels = np.where(np.arange(count) % 5 == 0, -1, made.labels).astype(np.int32)
    paths = path_table([f"/pictures {row % 7}/é{'x' * (row % 9)}{row}.png" for row in range(count)])
    return replace(made, labels=labels, paths=paths)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_what_is_saved_comes_back(suffix: str, dtype: str, tmp_path: Path) -> None:
    made = sample(dtype)
    made.save(tmp_path / f"e{suffix}")
    found = finetune.Embeddings.load(tmp_path / f"e{suffix}")
    assert found.features.dtype == np.dtype(dtype)
    for name in ("features", "labels", "splits", "content"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name), err_msg=name)
    assert [found.paths[row] for row in range(len(found))] == [made.paths[row] for row in range(len(made))]
    assert found.classes == made.classes
    assert found.metadata == {"format": 1, **made.metadata}
    assert [path.name for path in tmp_path.iterdir()] == [f"e{suffix}"]


def test_the_npz_opens_with_numpy_and_its_features_are_mapped(tmp_path: Path) -> None:
    made = sample("float16", 100)
    made.save(tmp_path / "e.npz")
    found = Embeddings.load(tmp_path / "e.npz").features
    assert isinstance(found, np.memmap)
    assert found.ctypes.data % 64 == 0
    with np.load(tmp_path / "e.npz", allow_pickle=False) as arrays:
        assert set(arrays) == set(EMBEDDINGS)
        np.testing.assert_array_equal(arrays["features"], made.features)
        assert arrays["path"][11] == made.paths[11]
        assert arrays["label"][:2].tolist() == ["", "class 1"]
        assert arrays["split"][:4].tolist() == ["", "train", "val", "test"]
        assert arrays["content"][3] == made.content[3].tobytes().hex()
        assert json.loads(str(arrays["about"]))["note"] == "é"


def test_the_parquet_file_opens_with_pyarrow(tmp_path: Path) -> None:
    made = sample("float32", 50)
    made.save(tmp_path / "e.parquet")
    table = pq.read_table(tmp_path / "e.parquet")
    assert set(table.column_names) == set(EMBEDDINGS) - {"about"}
    assert table.column("path").to_pylist()[4] == made.paths[4]
    np.testing.assert_array_equal(np.stack(table.column("features").to_pylist()), made.features)


def test_features_of_a_large_parquet_file_wait_in_a_file_that_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = module.scratch_array((2**20, 40), np.float16)
    assert isinstance(array, np.memmap)
    array[-1] = 3
    assert array[-1].tolist() == [3.0] * 40
    assert not os.path.exists(str(array.filename))


def test_names_that_are_no_text_are_spelled_out(tmp_path: Path) -> None:
    made = replace(sample("float32", 2), paths=path_table([os.fsdecode(b"/a\xff.png"), "/b.png"]))
    for suffix in (".npz", ".parquet"):
        made.save(tmp_path / f"e{suffix}")
        assert Embeddings.load(tmp_path / f"e{suffix}").paths[0] == "/a\\udcff.png"


def test_no_rows_at_all_can_be_saved(tmp_path: Path) -> None:
    for suffix in (".npz", ".parquet"):
        sample("float32", 2).take(np.zeros(0, np.int64)).save(tmp_path / f"e{suffix}")
        assert len(Embeddings.load(tmp_path / f"e{suffix}")) == 0


def test_other_and_damaged_files_are_told(tmp_path: Path) -> None:
    good = tmp_path / "good.npz"
    sample("float32", 40).save(good)
    content = good.read_bytes()
    np.savez(tmp_path / "other.npz", features=np.zeros((2, 2)))
    np.savez_compressed(tmp_path / "packed.npz", **np.load(good))
    pq.write_table(pq.read_table(_parquet(tmp_path)).replace_schema_metadata({}), tmp_path / "other.parquet")
    (tmp_path / "short.npz").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "text.parquet").write_text("no table")
    for name, message in {
        "other.npz": "is not a file of finetune embeddings. It lacks about.npy",
        "packed.npz": "Its features are compressed",
        "short.npz": "cannot be read as finetune embeddings",
        "text.npz": "cannot be read as finetune embeddings",
        "text.parquet": "cannot be read as finetune embeddings",
        "other.parquet": "is not a file of finetune embeddings",
        "missing.npz": "no such file. Make one with: finetune embed",
        "x.csv": "no such file",
    }.items():
        with pytest.raises(UserError, match=message):
            Embeddings.load(tmp_path / name)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_one_flipped_bit_in_the_features_is_noticed(suffix: str, tmp_path: Path) -> None:
    made, path = sample("float32", 400), tmp_path / f"e{suffix}"
    made.save(path)
    whole = bytearray(path.read_bytes())
    at = whole.index(made.features[200].tobytes())
    whole[at] ^= 1
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"cannot be read as finetune embeddings.*(CRC|could be corrupt)"):
        Embeddings.load(path)


def _parquet(folder: Path) -> Path:
    sample("float32", 4).save(folder / "p.parquet")
    return folder / "p.parquet"


def test_a_newer_format_and_objects_are_refused(tmp_path: Path) -> None:
    made = sample("float32", 4)
    made.save(tmp_path / "e.npz")
    arrays = dict(np.load(tmp_path / "e.npz"))
    arrays["about"] = np.array(json.dumps({"format": 2}))
    np.savez(tmp_path / "newer.npz", **arrays)
    with pytest.raises(UserError, match="format 2 is newer than this program reads"):
        Embeddings.load(tmp_path / "newer.npz")
    arrays["about"] = np.array(json.dumps({"format": 1}))
    arrays["path"] = np.array([print] * 4, object)
    np.savez(tmp_path / "pickled.npz", **arrays)
    with pytest.raises(UserError, match="An array has the unexpected type object"):
        Embeddings.load(tmp_path / "pickled.npz")


def test_texts_and_records_of_absurd_size_are_refused_before_they_are_read(tmp_path: Path) -> None:
    made = sample("float32", 2)
    made.save(tmp_path / "e.npz")
    arrays = dict(np.load(tmp_path / "e.npz"))
    wide = {**arrays, "label": np.zeros(2, "<U5000000")}
    np.savez_compressed(tmp_path / "wide.npz", **wide)
    with zipfile.ZipFile(tmp_path / "wide.npz") as packed, zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        for name in packed.namelist():
            kind = zipfile.ZIP_STORED if name == "features.npy" else zipfile.ZIP_DEFLATED
            archive.writestr(name, packed.read(name), compress_type=kind)
    assert (tmp_path / "bomb.npz").stat().st_size < 100_000
    with pytest.raises(UserError, match=r"label\.npy has texts of 5,000,000 characters"):
        Embeddings.load(tmp_path / "bomb.npz")


def test_features_that_claim_to_be_larger_than_the_file_are_refused(tmp_path: Path) -> None:
    sample("float32", 4).save(tmp_path / "e.npz")
    content = (tmp_path / "e.npz").read_bytes()
    assert content.count(b"(4, 5)") == 1
    (tmp_path / "e.npz").write_bytes(content.replace(b"(4, 5)", b"(9, 5)"))
    with pytest.raises(UserError, match="do not have the size that their header states"):
        Embeddings.load(tmp_path / "e.npz")
    with zipfile.ZipFile(tmp_path / "e.npz") as archive, pytest.raises(zipfile.BadZipFile):
        archive.read("features.npy")

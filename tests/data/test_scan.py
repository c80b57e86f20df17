import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from finetune.data import scan_cache as facts_cache
from finetune.data.image_file import UnreadableImage, content_hash
from finetune.data.image_folder import list_training_folders
from finetune.data.path_table import path_table
from finetune.data.perceptual_hash import distance, looks
from finetune.data.scan import FACT_TYPE, facts_of_arrays, facts_of_bytes, scan_files
from finetune.data.scan_cache import cached_facts
from finetune.data.sources.manifest import manifest_source
from finetune.errors import FileError, UserError
from tests.data.folders import write_folder, write_image
from tests.data.odd_images import picture, saved, stored_for
from tests.data.raw_formats import exif, icc_profile, png, tiff


def settle(folder):
    """Make files look as if they were changed a while ago; fresher ones are not trusted to the cache."""
    for parent, _, names in os.walk(folder):
        for name in names:
            os.utime(os.path.join(parent, name), (1_700_000_000, 1_700_000_000))


@pytest.fixture
def opened(monkeypatch):
    """The paths that are opened from now on."""
    seen = []
    original = facts_cache.scan_files

    def spy(root, paths, rows, **options):
        seen.extend(paths[int(row)] for row in rows)
        return original(root, paths, rows, **options)

    monkeypatch.setattr(facts_cache, "scan_files", spy)
    return seen


def test_facts_say_what_the_files_are(tmp_path):
    files = {
        "a.png": saved(picture(), "PNG"),
        "b.jpg": saved(stored_for(picture(), 6), "JPEG", exif=exif(6)),
        "c.gif": saved(Image.fromarray(picture()).quantize(8), "GIF", save_all=True,
                       append_images=[Image.fromarray(255 - picture()).quantize(8)]),
        "d.png": saved(np.full((5, 6), 7, np.uint8), "PNG"),
        "e.jpg": b"",
        "f.png": png(np.full((5, 6, 2), 999, np.uint16)),
        "g.tif": tiff(np.zeros((5, 6, 3), np.uint8), orientation=6),
        "h.tif": tiff(np.zeros((5, 6, 3), np.uint16), orientation=8),
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    facts = scan_files(str(tmp_path), path_table(files))
    assert [facts.mode_of(row) for row in range(4)] == ["PNG RGB", "JPEG RGB", "GIF P", "PNG L"]
    assert facts.table["width"][:4].tolist() == [40, 24, 40, 6]
    assert facts.table["height"][:4].tolist() == [24, 40, 24, 5]
    assert facts.table["orientation"][:4].tolist() == [1, 6, 1, 1]
    # as they are stored, whatever a decoder makes of them
    for row, mode, channels, orientation in (
        (5, "PNG LA;16", 2, 1),
        (6, "TIFF RGB", 3, 6),
        (7, "TIFF RGB;16", 3, 8),
    ):
        assert facts.mode_of(row) == mode
        assert facts.table[["width", "height", "channels", "orientation"]][row].tolist() == (
            6,
            5,
            channels,
            orientation,
        )
    assert facts.grey().tolist() == [row in (3, 5) for row in range(8)]
    assert facts.table["several"].tolist() == [row == 2 for row in range(8)]
    assert (facts.table["darkest"][3], facts.table["brightest"][3]) == (7, 7)
    assert facts.unreadable() == [(4, "The file is empty.")]
    assert (facts.content[0] == content_hash(files["a.png"])).all()


def test_the_second_time_no_file_is_opened(tmp_path, opened):
    listing = list_training_folders(str(write_folder(tmp_path, {"a": 3, "b": 2})))
    (tmp_path / "a" / "broken.png").write_bytes(b"nothing")
    listing = list_training_folders(str(tmp_path))
    settle(tmp_path)
    first = cached_facts(listing.root, listing.paths)
    assert len(opened) == 6
    opened.clear()
    second = cached_facts(listing.root, listing.paths)
    # what could not be read may be readable by now
    assert opened == ["a/broken.png"]
    assert (first.table == second.table).all()
    assert first.unreadable() == second.unreadable()


def test_only_new_changed_and_renamed_files_are_opened_again(tmp_path, opened):
    write_folder(tmp_path, {"a": 3, "b": 2})
    settle(tmp_path)
    listing = list_training_folders(str(tmp_path))
    cached_facts(listing.root, listing.paths)
    opened.clear()
    first, second, third = sorted((tmp_path / "a").iterdir())
    write_image(first, 999)
    os.utime(first, (1_700_000_001, 1_700_000_001))
    second.rename(tmp_path / "a" / "renamed.png")
    third.unlink()
    write_image(tmp_path / "b" / "new.png", 1000)
    listing = list_training_folders(str(tmp_path))
    facts = cached_facts(listing.root, listing.paths)
    assert sorted(opened) == sorted([f"a/{first.name}", "a/renamed.png", "b/new.png"])
    fresh = scan_files(listing.root, listing.paths)
    assert (facts.table == fresh.table).all()


def test_a_file_changed_a_moment_ago_is_not_trusted_to_the_cache(tmp_path, opened):
    write_folder(tmp_path, {"a": 1, "b": 1})
    listing = list_training_folders(str(tmp_path))
    cached_facts(listing.root, listing.paths)
    opened.clear()
    path = next((tmp_path / "a").iterdir())
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cached_facts(listing.root, listing.paths).content[0].tolist() == content_hash(data).tolist()


def test_a_damaged_cache_is_as_good_as_none(tmp_path, own_cache, opened):
    write_folder(tmp_path, {"a": 1, "b": 1})
    settle(tmp_path)
    listing = list_training_folders(str(tmp_path))
    cached_facts(listing.root, listing.paths)
    (file,) = (own_cache / "facts").iterdir()
    for data in (b"", b"PK\x03\x04 nonsense", file.read_bytes()[:200]):
        file.write_bytes(data)
        opened.clear()
        assert not cached_facts(listing.root, listing.paths).unreadable()
        assert len(opened) == 2


def test_of_processes_that_start_together_one_opens_the_files(tmp_path, own_cache, opened):
    write_folder(tmp_path / "images", {"a": 2, "b": 2})
    settle(tmp_path)
    listing = list_training_folders(str(tmp_path / "images"))
    other = """
import sys, time
from finetune.data import scan_cache
from finetune.data.image_folder import list_training_folders

def slowly(*given, original=scan_cache.scan_files, **options):
    print("scanning", flush=True)
    time.sleep(0.5)
    return original(*given, **options)

scan_cache.scan_files = slowly
listing = list_training_folders(sys.argv[1])
scan_cache.cached_facts(listing.root, listing.paths)
"""
    command = [sys.executable, "-c", other, str(tmp_path / "images")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "scanning\n"
        assert len(cached_facts(listing.root, listing.paths)) == 4
        assert opened == []
        assert process.wait() == 0


def test_the_cache_can_be_turned_off(tmp_path, own_cache, opened, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", "off")
    write_folder(tmp_path, {"a": 1, "b": 1})
    settle(tmp_path)
    listing = list_training_folders(str(tmp_path))
    for _ in range(2):
        opened.clear()
        cached_facts(listing.root, listing.paths)
        assert len(opened) == 2
    assert not (own_cache / "facts").exists()


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    monkeypatch.setenv("FINETUNE_CACHE", str(blocked))
    write_folder(tmp_path / "data", {"a": 1, "b": 1})
    listing = list_training_folders(str(tmp_path / "data"))
    assert len(cached_facts(listing.root, listing.paths)) == 2


def test_a_lower_limit_of_pixels_is_not_answered_from_facts_of_a_higher_one(tmp_path):
    write_folder(tmp_path, {"a": 1, "b": 1})
    settle(tmp_path)
    listing = list_training_folders(str(tmp_path))
    assert not cached_facts(listing.root, listing.paths).unreadable()
    assert len(cached_facts(listing.root, listing.paths, max_pixels=10).unreadable()) == 2


def test_facts_of_arrays_tell_equal_bytes_of_different_shape_apart():
    facts = facts_of_arrays([np.zeros((2, 8), np.uint8), np.zeros((8, 2), np.uint8), np.zeros((2, 8), np.uint8)])
    first, second, third = facts.content.tolist()
    assert first == third != second


def test_looks_hardly_change_when_a_picture_is_scaled_compressed_or_brightened(tmp_path):
    generator = np.random.default_rng(0)
    coarse = generator.integers(30, 220, (9, 11), np.uint8)
    picture_ = Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)
    original = looks(np.asarray(picture_))
    smaller = looks(np.asarray(picture_.resize((97, 71), Image.Resampling.BILINEAR)))
    brighter = looks(np.asarray(picture_.point(lambda value: min(255, value + 12))))
    path = tmp_path / "x.jpg"
    picture_.save(path, quality=40)
    compressed = looks(np.asarray(Image.open(path)))
    for changed in (smaller, brighter, compressed):
        assert distance(original, changed) <= 6
    other = looks(np.asarray(Image.fromarray(generator.integers(30, 220, (9, 11), np.uint8)).resize((320, 240))))
    assert distance(original, other) > 30


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (8, 9), (9, 9), (10, 2000)])
def test_looks_take_pictures_of_any_size(shape):
    assert looks(np.zeros(shape, np.uint8)).tolist() == [0, 0]


def test_moving_a_folder_costs_one_more_look_and_gives_the_same_facts(tmp_path):
    write_folder(tmp_path / "one", {"a": 1, "b": 1})
    listing = list_training_folders(str(tmp_path / "one"))
    before = cached_facts(listing.root, listing.paths)
    shutil.move(tmp_path / "one", tmp_path / "two")
    listing = list_training_folders(str(tmp_path / "two"))
    assert (cached_facts(listing.root, listing.paths).table == before.table).all()


def test_a_file_replaced_by_one_of_its_size_and_date_is_opened_again(tmp_path, own_cache, opened):
    root = tmp_path / "data"
    write_folder(root, {"a": 1, "b": 1})
    settle(root)
    listing = list_training_folders(str(root))
    cached_facts(listing.root, listing.paths)
    path = next((root / "a").iterdir())
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    other = tmp_path / "other"
    other.write_bytes(data)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    opened.clear()
    assert cached_facts(listing.root, listing.paths).content[0].tolist() == content_hash(data).tolist()
    assert len(opened) == 1


def test_a_cache_that_the_disk_does_not_give_back_is_named_and_made_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert facts_cache._load(Path("/nowhere/facts.npz")) is None
    assert caplog.text == ""

    def fail(file: Path) -> None:
        raise FileError(f"{file}: could not be read, the disk reports an input/output error.")

    monkeypatch.setattr(facts_cache, "check_zip", fail)
    assert facts_cache._load(Path("facts.npz")) is None
    assert "facts.npz: could not be read, the disk reports an input/output error. The images are opened" in caplog.text


@pytest.mark.parametrize("step", ["read_image_file", "open_image"])
def test_a_file_that_could_not_be_read_once_is_opened_the_next_time(tmp_path, monkeypatch, step):
    """Too many files were open, or a library was missing."""
    write_folder(tmp_path, {"a": 2, "b": 2})
    settle(tmp_path)
    listing = list_training_folders(str(tmp_path))

    def fails(*args, **options):
        raise UnreadableImage("x", "The reason lies elsewhere.")

    with monkeypatch.context() as patched:
        patched.setattr(f"finetune.data.scan.{step}", fails)
        assert len(cached_facts(listing.root, listing.paths).unreadable()) == 4
    assert not cached_facts(listing.root, listing.paths).unreadable()


def test_memory_that_runs_out_is_no_fault_of_a_file(tmp_path, monkeypatch):
    write_folder(tmp_path, {"a": 1, "b": 1})
    listing = list_training_folders(str(tmp_path))

    def fails(*args, **options):
        raise MemoryError

    monkeypatch.setattr("finetune.data.decode._pixels_of", fails)
    monkeypatch.setattr("finetune.data.decode._decode_with_pillow", fails)
    with pytest.raises(MemoryError):
        scan_files(listing.root, listing.paths)


def test_a_path_with_a_null_byte_is_told_as_an_unreadable_file(tmp_path):
    table = tmp_path / "table.parquet"
    write_folder(tmp_path, {"a": 2, "b": 2})
    paths = [*(str(path) for path in sorted(tmp_path.glob("[ab]/*"))), "a\0b.png"]
    pyarrow.parquet.write_table(pyarrow.table({"path": paths, "label": ["a", "a", "b", "b", "b"]}), table)
    with pytest.raises(UserError, match="1 file cannot be read"):
        manifest_source(path=str(table))


@pytest.mark.parametrize(("kind", "followed"), [(np.uint8, True), (np.uint16, False)])
def test_a_profile_counts_only_where_it_is_followed(kind, followed):
    values = np.arange(64, dtype=kind).reshape(8, 8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", icc_profile=icc_profile("GRAY", gamma=1))
    row = np.zeros(1, FACT_TYPE)
    facts_of_bytes(bytearray(file.getvalue()), row, path="x.png", max_pixels=100)
    assert row["profile"][0] == followed

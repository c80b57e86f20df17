"""Rows on disk: shared, checked, resumed."""

import multiprocessing
import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from finetune.activation_cache.store import CHUNKS, DATA, META, ROWS, USED, Entry, Layout, delete, why_unusable
from finetune.errors import FileError

LAYOUT = Layout(rows=50, shape=(3, 2), dtype="float32", chunk_rows=8)


def expected(rows: range) -> np.ndarray:
    values = np.arange(rows.start * 6, rows.stop * 6, dtype=np.float32)
    return values.view(np.uint8).reshape(len(rows), LAYOUT.row_bytes)


def fill(folder: Path, die_after: int | None = None) -> list[int]:
    """Writes what is missing; returns the chunks it wrote."""
    entry = Entry(folder, layout=LAYOUT, about={})
    wrote = []
    for chunk in entry.claimed():
        if die_after is not None and len(wrote) == die_after:
            # with a chunk claimed and not written
            os.kill(os.getpid(), signal.SIGKILL)
        entry.write(chunk, expected(LAYOUT.rows_of(chunk)))
        wrote.append(chunk)
    entry.close()
    return wrote


def whole(folder: Path) -> bool:
    entry = Entry(folder, layout=LAYOUT, about={})
    same = np.array_equal(entry.read(np.arange(50)), expected(range(50)))
    complete = not entry.missing
    entry.close()
    return complete and same


def test_chunks_are_nearly_equal_and_cover_the_rows() -> None:
    rows = [row for chunk in range(LAYOUT.chunks) for row in LAYOUT.rows_of(chunk)]
    assert rows == list(range(50))
    assert {len(LAYOUT.rows_of(chunk)) for chunk in range(LAYOUT.chunks)} == {7, 8}


def test_rows_come_back_in_any_order(tmp_path: Path) -> None:
    assert fill(tmp_path) == list(range(7))
    entry = Entry(tmp_path, layout=LAYOUT, about={})
    found = entry.read(np.array([49, 0, 7])).copy().view(np.float32)
    assert found[:, 0].tolist() == [49 * 6, 0, 42]


def test_a_killed_process_leaves_its_claim_to_others(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=fill, args=(tmp_path, 3))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    # what it had written is not written again
    assert fill(tmp_path) == [3, 4, 5, 6]
    assert whole(tmp_path)


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        parts = pool.map(fill, [tmp_path, tmp_path], chunksize=1)
    assert sorted(parts[0] + parts[1]) == list(range(7))
    assert whole(tmp_path)


def test_an_entry_that_another_process_holds_open_is_opened_at_once(tmp_path: Path) -> None:
    # the processes of a run wait for one another while each holds its entries open: nobody may wait for that to end
    first = Entry(tmp_path / "entry", layout=LAYOUT, about={})
    opened: list[Entry] = []
    other = threading.Thread(
        target=lambda: opened.append(Entry(tmp_path / "entry", layout=LAYOUT, about={})), daemon=True
    )
    other.start()
    other.join(20)
    assert opened
    opened[0].close()
    first.close()


def test_a_chunk_with_other_bytes_counts_as_missing(tmp_path: Path) -> None:
    fill(tmp_path)
    with (tmp_path / DATA).open("r+b") as file:
        file.seek(10 * LAYOUT.row_bytes)
        file.write(b"\xff\xfe")
    assert fill(tmp_path) == [1]
    assert whole(tmp_path)


def test_an_entry_of_another_layout_is_begun_anew(tmp_path: Path) -> None:
    fill(tmp_path)
    other = Layout(rows=50, shape=(3, 2), dtype="float16", chunk_rows=8)
    assert len(Entry(tmp_path, layout=other, about={}).missing) == other.chunks


def test_an_entry_writes_and_deletes_nothing_through_a_link(tmp_path: Path) -> None:
    mine, folder = tmp_path / "mine", tmp_path / "cache" / "entry"
    mine.mkdir()
    folder.parent.mkdir()
    for name in (ROWS, DATA, USED):
        (mine / name).write_text("mine")
    before = {path.name: (path.read_text(), path.stat().st_mtime_ns) for path in mine.iterdir()}
    folder.symlink_to(mine)
    assert fill(folder)
    for name in (ROWS, DATA, USED):
        (folder / name).unlink()
        (folder / name).symlink_to(mine / name)
    assert fill(folder)
    assert whole(folder)
    (folder.parent / "other").symlink_to(mine)
    assert delete(folder.parent / "other")
    assert list(folder.parent.iterdir()) == [folder]
    assert {path.name: (path.read_text(), path.stat().st_mtime_ns) for path in mine.iterdir()} == before


def test_a_disk_without_room_is_found_at_the_start(tmp_path: Path) -> None:
    vast = Layout(rows=10**9, shape=(10**6,), dtype="float32", chunk_rows=64)
    with pytest.raises(OSError, match=r"space|large|device"):
        Entry(tmp_path, layout=vast, about={})
    assert not (tmp_path / DATA).exists()


def damage(path: Path, at: int, value: int = 0x10) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ value]))


@pytest.mark.parametrize("name", [DATA, ROWS])
def test_a_bit_that_flips_while_the_rows_are_read_is_an_error_and_is_computed_again(name: str, tmp_path: Path) -> None:
    fill(tmp_path)
    entry = Entry(tmp_path, layout=LAYOUT, about={})
    row_bytes = LAYOUT.row_bytes if name == DATA else 4
    for bit in range(8):
        damage(tmp_path / name, 10 * row_bytes + bit % row_bytes, 1 << bit)
        with pytest.raises(FileError, match=rf"{DATA}: changed or damaged .* row 10 differs from what was written"):
            entry.read(np.array([3, 10, 40]))
        damage(tmp_path / name, 10 * row_bytes + bit % row_bytes, 1 << bit)
    # rows beside it are as they were
    assert np.array_equal(
        entry.read(np.array([3, 40])), np.concatenate([expected(range(3, 4)), expected(range(40, 41))])
    )
    entry.close()
    assert fill(tmp_path) == [1]
    assert whole(tmp_path)


def test_a_file_that_is_cut_off_while_it_is_read_is_an_error_and_kills_nobody(tmp_path: Path) -> None:
    fill(tmp_path)
    entry = Entry(tmp_path, layout=LAYOUT, about={})
    os.truncate(tmp_path / DATA, 100)
    with pytest.raises(FileError, match="its length has changed"):
        entry.read(np.array([3, 10, 40]))
    entry.close()
    assert fill(tmp_path) == list(range(7))


def test_no_flipped_bit_of_an_entry_gives_other_rows(tmp_path: Path) -> None:
    fill(tmp_path)
    draw = random.Random(0)
    for name in (DATA, ROWS, CHUNKS, META):
        for _ in range(12):
            at, bit = draw.randrange((tmp_path / name).stat().st_size), 1 << draw.randrange(8)
            damage(tmp_path / name, at, bit)
            fill(tmp_path)
            assert whole(tmp_path), (name, at, bit)


def test_a_cache_that_cannot_be_used_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", "off")
    assert why_unusable() == "FINETUNE_CACHE=off"
    (tmp_path / "file").touch()
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "file" / "cache"))
    assert why_unusable() == f"{tmp_path / 'file/cache/features'} cannot be a folder: {tmp_path / 'file'} is a file"
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "new"))
    assert why_unusable() == ""
    # as on a disk that is mounted read-only; root may write anywhere else
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert why_unusable() == f"{tmp_path} is not writable; choose another place with FINETUNE_CACHE=DIR"
    monkeypatch.setattr("finetune.activation_cache.store.fcntl", None)
    assert why_unusable() == "this system lacks the file locks that the cache needs"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileError("meta.json: could not be read"), "could not be read"),
        (ValueError(), "did not read back as written after 3 attempts"),
    ],
)
def test_what_was_just_written_and_does_not_come_back_is_not_begun_for_ever(
    error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr("finetune.activation_cache.store.read_json", fail)
    with pytest.raises(FileError, match=message):
        Entry(tmp_path / "entry", layout=LAYOUT, about={})

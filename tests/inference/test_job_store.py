"""Rows of a job survive kills, belong to one process at a time, and are dropped once they are out of date."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.errors import UserError
from finetune.inference.job_store import JobRow, JobStore, file_stamp


def store(folder: Path, **settings: object) -> JobStore:
    return JobStore(folder / "rows.job", settings={"top_k": 1, **settings}, batch_size=3)


def row(path: str) -> JobRow:
    return JobRow(path=path, stamp=file_stamp(path), result=[path, 0.5], data=path.encode("utf-8", "replace"))


# stores two batches, then dies in the middle of the third
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.inference.test_job_store import row, store
rows = store(Path(sys.argv[1]))
rows.append([row("a"), row("b"), row("c")])
rows.append([row("d"), row("e"), row("f")])
def dying():
    yield row("g")
    os.kill(os.getpid(), signal.SIGKILL)
rows.append(type("Rows", (list,), {"__iter__": lambda self: dying()})())
"""


def test_killed_in_the_midst_of_a_batch_the_batches_before_it_are_whole(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    with store(tmp_path) as rows:
        remaining, kept = rows.resume(iter("abcdefgh"), str)
        assert (kept, list(remaining)) == (6, ["g", "h"])
        assert [entry.path for entry in rows.rows()] == list("abcdef")
        rows.append([row("g")])
        rows.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    rows = [row("a.png"), row(os.fsdecode(b"a\xff.png")), JobRow(path="b", stamp="", error="It is bad.")]
    with store(tmp_path) as opened:
        opened.append(rows)
        assert list(opened.rows()) == rows
    with store(tmp_path) as opened:
        assert list(opened.rows()) == rows
        assert not opened.discarded


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with store(tmp_path), pytest.raises(UserError, match="another process is writing this output"):
        store(tmp_path)
    with store(tmp_path) as opened:
        opened.append([row("a")])
        with pytest.raises(UserError, match="another process is writing this output"):
            store(tmp_path)


def test_rows_of_other_settings_and_damaged_files_are_begun_anew(tmp_path: Path) -> None:
    with store(tmp_path) as opened:
        opened.append([row("a")])
    with store(tmp_path, top_k=2) as opened:
        assert opened.discarded
        assert list(opened.rows()) == []
    (tmp_path / "rows.job").write_text("no database, but many more bytes than its header has" * 10)
    with store(tmp_path) as opened:
        assert not opened.discarded
        opened.append([row("a")])
        assert len(list(opened.rows())) == 1


def test_batches_are_kept_whole_up_to_the_first_file_that_changed(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in "abcdefg"]
    for path in paths:
        Path(path).write_text("x")
    with store(tmp_path) as opened:
        opened.append([row(path) for path in paths[:3]])
        opened.append([row(path) for path in paths[3:6]])
        opened.append([row(path) for path in paths[6:]])
    Path(paths[4]).write_text("longer")
    with store(tmp_path) as opened:
        remaining, kept = opened.resume(paths, str)
        assert (kept, list(remaining)) == (3, paths[3:])
    with store(tmp_path) as opened:
        remaining, kept = opened.resume(paths[:2], str)
        assert (kept, list(remaining)) == (0, paths[:2])


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.job").mkdir()
    with pytest.raises(UserError, match=r"must be a regular file\. It is a folder"):
        store(tmp_path)


def changed(tmp_path: Path, *statements: str) -> JobStore:
    """Return a store of six rows that another program has changed."""
    with store(tmp_path) as opened:
        opened.append([row(name) for name in "abc"])
        opened.append([row(name) for name in "def"])
    with contextlib.closing(sqlite3.connect(tmp_path / "rows.job")) as connection, connection:
        for statement in statements:
            connection.execute(statement)
    return store(tmp_path)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE rows SET result = '{' WHERE position = 4",
        "UPDATE rows SET result = x'37' WHERE position = 3",
        "UPDATE rows SET path = 7 WHERE position = 5",
        "UPDATE rows SET error = NULL WHERE position = 5",
        "UPDATE rows SET path = x'ff' WHERE position = 5",
        "UPDATE rows SET position = 9 WHERE position = 5",
        "UPDATE rows SET result = '" + "[" * 100_000 + "' WHERE position = 5",
    ],
)
def test_rows_from_a_damaged_one_on_are_made_again(tmp_path: Path, statement: str) -> None:
    with changed(tmp_path, statement) as opened:
        remaining, kept = opened.resume("abcdef", str)
        assert (kept, "".join(remaining)) == (3, "def")
        opened.append([row(name) for name in "def"])
        assert [entry.path for entry in opened.rows()] == list("abcdef")


def test_rows_that_the_job_does_not_write_are_made_again(tmp_path: Path) -> None:
    with changed(tmp_path) as opened:
        remaining, kept = opened.resume("abcdef", str, is_whole=lambda entry: entry.path != "e")
        assert (kept, "".join(remaining)) == (3, "def")


def test_a_database_with_a_view_that_never_ends_or_a_trigger_is_begun_anew(tmp_path: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n) SELECT i AS position, i AS path FROM n"
    for statements in (
        ["DROP TABLE rows", f"CREATE VIEW rows AS {endless}"],
        ["CREATE TRIGGER t AFTER DELETE ON rows BEGIN INSERT INTO job VALUES ('x'); END"],
    ):
        with changed(tmp_path, *statements) as opened:
            assert list(opened.rows()) == []
            opened.remove()


def test_a_value_that_is_too_large_names_the_file(tmp_path: Path) -> None:
    with (
        changed(tmp_path, "UPDATE rows SET data = zeroblob(70000000)") as opened,
        pytest.raises(UserError, match=r"rows\.job: damaged"),
    ):
        opened.resume("abcdef", str)

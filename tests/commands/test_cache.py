"""``finetune cache`` lists entries, and deletes those that no process uses."""

from pathlib import Path

import pytest

from finetune.activation_cache.store import Entry, Layout, entry_key, features_folder
from finetune.cli import main

LAYOUT = Layout(rows=10, shape=(4,), dtype="float32", chunk_rows=4)


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    folder = features_folder()
    assert folder is not None
    return folder


def make(base: Path, name: str) -> Entry:
    about = {"backbone": name, "cached_stage": "layer4", "split": "train", "rows": 10, "augment": "none", "view": 0}
    return Entry(base / entry_key({"name": name}), layout=LAYOUT, about=about)


def test_list_names_what_there_is(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(base, "resnet18").close()
    assert main(["cache", "list"]) == 0
    out = capsys.readouterr().out
    assert "resnet18 after layer4, 10 train images, none view 0  unfinished" in out
    assert "in 1 entry" in out


def test_clear_keeps_what_is_in_use(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = make(base, "held")
    make(base, "free").close()
    assert main(["cache", "clear"]) == 0
    out = capsys.readouterr().out
    assert "deleted 1 entries" in out
    assert "1 entries are in use" in out
    held.close()
    assert main(["cache", "clear"]) == 0
    assert not any(base.iterdir())


def test_an_empty_cache_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "list"]) == 0
    assert "0.0 MB in 0 entries" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["lst"], ["list", "clear"]])
def test_other_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", *words]) == 2
    assert "takes list or clear" in capsys.readouterr().err

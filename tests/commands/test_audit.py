import json
import shutil

import pytest

from finetune.cli import main
from tests.data.folders import write_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def leaking(tmp_path):
    """A folder whose test split holds a training image."""
    root = write_folder(tmp_path / "data", {"train/a": 6, "train/b": 6, "test/a": 2, "test/b": 2})
    shutil.copy(next((root / "train" / "a").iterdir()), root / "test" / "a" / "leak.png")
    return root


def test_an_audit_prints_a_table_writes_json_and_a_page_and_exits_with_1_for_leakage(leaking, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(["audit", f"data.root={leaking}", f"output={output}"]) == 1
    printed = capsys.readouterr().out
    assert "in more than one split" in printed
    assert "leak.png" in printed
    found = json.loads((output / "audit.json").read_text())
    assert found["findings"][0]["kind"] == "leakage"
    page = (output / "audit.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert "leak.png" in page


def test_a_clean_folder_exits_with_0_and_its_views_can_be_looked_at(tmp_path, capsys):
    root = write_folder(tmp_path / "data", {"a": 6, "b": 6})
    output = tmp_path / "out"
    assert main(["audit", f"data.root={root}", f"output={output}", "views=true", "input.size=16"]) == 0
    assert (output / "audit.html").read_text().count("data:image/jpeg;base64,") == 2 * 16
    assert "Nothing wrong was found." in capsys.readouterr().out


@pytest.mark.parametrize("name", ["output", "views"])
def test_a_folder_that_is_called_as_an_option_is_a_folder(tmp_path, monkeypatch, capsys, name):
    write_folder(tmp_path / name, {"a": 6, "b": 6})
    monkeypatch.chdir(tmp_path)
    assert main(["audit", name, "output=out"]) == 0
    assert "PNG RGB 12" in capsys.readouterr().out


def test_unreadable_files_are_a_finding_and_not_the_end(tmp_path, capsys):
    root = write_folder(tmp_path / "data", {"a": 6, "b": 6})
    (root / "a" / "empty.jpg").write_bytes(b"")
    assert main(["audit", f"data.root={root}", f"output={tmp_path / 'out'}"]) == 1
    assert "a/empty.jpg: The file is empty." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.root=/nowhere/at/all"], "no such folder"),
        (["data=digits", "views=perhaps"], "views='perhaps': must be true or false"),
        (["data=digits", "vews=true"], "vews=true: no such key"),
    ],
)
def test_mistakes_exit_with_2(words, message, capsys):
    assert main(["audit", *words]) == 2
    assert message in capsys.readouterr().err


def test_every_source_that_holds_files_or_arrays_can_be_audited(tmp_path, capsys):
    assert main(["audit", "data=digits", f"output={tmp_path / 'out'}"]) == 0
    assert "8 x 8 pixels" in capsys.readouterr().out

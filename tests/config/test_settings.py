"""Settings are looked up in one place, and each has a text."""

import os
import shlex
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.config import check_overrides
from finetune.config.groups import group_choices
from finetune.config.keys import all_keys
from finetune.config.schema import setting_of
from finetune.config.settings import about_choice, as_markdown, explain, setting_texts
from finetune.errors import UserError

Captured = pytest.CaptureFixture[str]


def test_every_setting_has_a_meaning_and_examples_are_accepted() -> None:
    keys = list(all_keys())
    assert len(keys) > 90
    assert [key.path for key in keys if not setting_of(key.field).meaning] == []
    for text in setting_texts():
        if text.example:
            check_overrides(shlex.split(text.example))


def test_the_overview_has_a_line_for_every_key(capsys: Captured) -> None:
    assert main(["settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {text.key for text in setting_texts()} <= {line.partition("=")[0] for line in lines}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("schedule.lr", ["schedule.lr=0.001", "  allowed: a number, above 0"]),
        ("lr", ["lr=null", "schedule.lr=0.001"]),
        ("batch_size", ["data.batch_size=32", "  shorter: batch_size="]),
        ("batch-norm", ["  allowed: train | eval", "  of one phase: schedule.phases.N.batch_norm, with N from 0"]),
        ("freeze", ["  example: freeze=stem,layer1"]),
        ("schedule", ["schedule=full", "    All stages train from the first step on.", "schedule.epochs=5"]),
        ("schedule=full", ["name: full # name of the schedule; schedule=NAME chooses it"]),
        ("permanent wave", []),
        ("patience", ["schedule.patience=null"]),
        ("mixup", ["schedule.mixup=0.0"]),
        ("precision", ["precision: written trainer.precision=VALUE", "  example: trainer.devices=2"]),
        ("gpus=2", ["gpus: written trainer.devices=2"]),
        ("trainer.max_time", ["trainer.max_time: written trainer.max_time=VALUE"]),
        ("bs", ["data.batch_size=32"]),
        ("trainer.max_epochs", ["trainer.max_epochs: written epochs=VALUE"]),
        ("median", []),
    ],
)
def test_a_word_is_looked_up(word: str, expected: list[str]) -> None:
    if not expected:
        with pytest.raises(UserError, match="no setting is about that"):
            explain(word)
    else:
        lines = explain(word)
        assert [line for line in expected if line not in lines] == []


def test_the_markdown_page_has_every_key() -> None:
    page = as_markdown()
    assert all(f"| `{text.key}={text.default.replace('|', chr(92) + '|')}` |" in page for text in setting_texts())


def test_the_markdown_page_shows_every_character_of_a_text() -> None:
    page = as_markdown()
    assert "@package" not in page
    assert r"a \_target\_ and its arguments" in page
    assert "DIR/&lt;class&gt;/" in page


def test_a_choice_is_explained_by_whole_sentences() -> None:
    for group, names in group_choices().items():
        for name in names:
            assert not about_choice(group, name).endswith("et al."), f"{group}={name}"


def test_a_folder_of_ones_own_is_listed(tmp_path: Path) -> None:
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule/tops.yaml").write_text("# Only the tops.\nname: tops\n")
    lines = explain("schedule", [tmp_path])
    assert lines[lines.index("schedule=tops") + 1] == "    Only the tops."


def test_what_differs_from_the_defaults_is_printed_first(tmp_path: Path, capsys: Captured) -> None:
    import yaml

    (tmp_path / "mine.yaml").write_text("defaults: [train, _self_]\nseed: 3\n")
    words = ["plan", "--config-dir", str(tmp_path), "-cn", "mine", "data=digits", "freeze=stem", "--cfg"]
    assert main(words) == 0
    text = capsys.readouterr().out
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert head[0] == "# differs from the defaults:"
    assert {"#   seed: 0 -> 3", "#   freeze: [] -> ['stem']", "#   data.source: folder -> digits"} <= set(head)
    assert not [line for line in head if "monitor" in line]
    assert yaml.safe_load(text)["seed"] == 3


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("finetune set", ["settings"]),
        ("finetune schedule.batch_norm=", ["schedule.batch_norm=train", "schedule.batch_norm=eval"]),
        ("finetune plan schedule.phases.1.solver=l", ["schedule.phases.1.solver=lbfgs"]),
        ("finetune report=", ["report=true", "report=false"]),
        ("finetune epo", ["epochs="]),
        ("finetune backbone.w", ["backbone.weights="]),
        ("finetune data.bat", ["data.batch_size="]),
        ("finetune bat", ["batch_size="]),
        ("finetune optimiz", ["optimizer="]),
        ("finetune predict run --top", ["--top-k"]),
    ],
)
def test_completion_knows_settings_and_their_values(
    line: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == expected
    assert os.environ["COMP_LINE"] == line


def test_completion_shows_meanings_in_fish(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("COMP_LINE", "finetune plan head.dr")
    assert main(["-sc", "query=fish"]) == 0
    assert capsys.readouterr().out == "head.drop_rate=\tprobability of dropping a feature in training\n"

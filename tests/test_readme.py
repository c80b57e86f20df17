"""Every block of the README runs, made small: tiny network, few epochs, images made here."""

import re
import shlex
from pathlib import Path

import pytest

from finetune.cli import main
from tests.conftest import TINY_RESNET10T, make_pets

README = Path(__file__).parent.parent / "README.md"
SHORT = ["schedule.epochs=1", *TINY_RESNET10T]
EPOCHS = {"frozen": 1, "full": 1, "lp_ft": 2, "gradual": 3}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def short(words: list[str]) -> list[str]:
    """A command that takes a configuration, with the preset's phases cut to one epoch."""
    schedule = next((word.split("=")[1] for word in words if word.startswith("schedule=")), "gradual")
    # a sweep over presets has as few phases as the shortest of them
    phases = min(EPOCHS[name] for name in schedule.split(","))
    return [*words, *SHORT, *[f"schedule.phases.{number}.epochs=1" for number in range(phases)]]


@pytest.mark.usefixtures("resized_in_two_parts")
def test_the_commands_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_pets(tmp_path / "pets", count=10)
    lines = [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines()]
    lines = [line for line in lines if line]
    assert len(lines) > 10
    assert all(line[0] == "finetune" for line in lines)
    trained = 0
    for _, *words in lines:
        if words[0] == "ladder":
            assert main([*words, *TINY_RESNET10T]) == 0, words
            continue
        composes = words[0] in ("plan", "audit", "lr-find", "pets") or words[0].startswith("-")
        if composes:
            words = short(words)
            if words[0] not in ("plan", "audit", "lr-find") and "-m" not in words:
                words.append(f"run_dir={'my_run' if trained == 0 else f'other_{trained}'}")
                trained += 1
        assert main(words) == 0, words
    assert (tmp_path / "predictions.csv").is_file()
    assert list((tmp_path / "my_run/exports").rglob("head*.safetensors"))


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import finetune

    monkeypatch.chdir(tmp_path)
    make_pets(tmp_path / "pets", count=10)
    real = finetune.fit

    def small(**settings: object) -> object:
        return real(**settings, overrides=short([])[0:])  # type: ignore[arg-type]

    monkeypatch.setattr(finetune, "fit", small)
    (block,) = blocks("python")
    exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "python_run/results.json").is_file()


def test_the_readme_is_short_and_its_files_exist() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    for name in re.findall(r"`((?:finetune|conf|tests)/[\w/.*]+)`", text):
        assert list(README.parent.glob(name.rstrip("/"))), name

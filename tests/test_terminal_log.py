"""The package's log is shown by default, and a program that uses the package can silence or redirect it."""

import io
import logging
from collections.abc import Iterator

import pytest

from finetune.terminal_log import PACKAGE, show, show_log


@pytest.fixture(autouse=True)
def untouched_log() -> Iterator[None]:
    """The package's logger as it is in a new process."""
    handlers, level = PACKAGE.handlers[:], PACKAGE.level
    PACKAGE.handlers, PACKAGE.level = [], logging.NOTSET
    PACKAGE.manager._clear_cache()  # type: ignore[attr-defined]  # levels are cached in the loggers below
    yield
    PACKAGE.handlers, PACKAGE.level = handlers, level
    PACKAGE.manager._clear_cache()  # type: ignore[attr-defined]


def test_lines_for_the_user_are_printed_with_control_characters_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    show_log()
    show("100% of \x1b[31mred\x1b[0m\nand more")
    logging.getLogger("finetune.models.build").info("backbone %s", "resnet18")
    captured = capsys.readouterr()
    assert captured.out == "100% of \\x1b[31mred\\x1b[0m\nand more\nbackbone resnet18\n"
    assert captured.err == ""


def test_a_warning_goes_to_standard_error_with_its_mark(capsys: pytest.CaptureFixture[str]) -> None:
    show_log()
    logging.getLogger("finetune.training.precision").warning("%s is damaged", "a\x1b[31mb")
    assert capsys.readouterr() == ("", "warning: a\\x1b[31mb is damaged\n")


def test_a_program_can_silence_what_the_package_says(capsys: pytest.CaptureFixture[str]) -> None:
    PACKAGE.setLevel(logging.WARNING)
    show_log()
    show("run: runs/pets")
    assert capsys.readouterr().out == ""


def test_a_program_can_send_what_the_package_says_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = io.StringIO()
    PACKAGE.addHandler(logging.StreamHandler(elsewhere))
    show_log()
    show("run: runs/pets")
    assert elsewhere.getvalue() == "run: runs/pets\n"
    assert capsys.readouterr().out == ""


def test_a_process_that_is_not_the_first_prints_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show_log()
    monkeypatch.setattr("finetune.terminal_log.is_rank_zero", lambda: False)
    show("run: runs/pets")
    assert capsys.readouterr().out == ""

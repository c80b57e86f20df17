"""What is shown of a run: a bar on a terminal, plain lines elsewhere, a table at the end."""

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.phases import ResolvedPhase
from finetune.training.time_left import TimeLeft
from tests.runs import train_tiny

Words = Callable[..., list[str]]
STAGES = ("stem", "layer1", "layer2", "head")


class Screen(io.StringIO):
    """A terminal that keeps what was written to it."""

    def isatty(self) -> bool:
        return True


def phase(name: str, *train: str, epochs: int = 1) -> ResolvedPhase:
    return ResolvedPhase(name=name, train=train, stages=STAGES, epochs=epochs, lr=0.1, batch_size=8, augment="none")


def test_in_a_pipe_each_epoch_is_one_plain_line_and_the_end_a_table(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["schedule=head_then_all", "schedule.phases.0.epochs=1", "schedule.phases.1.epochs=2", "schedule.lr=0.004"]
    run = train_tiny(words(*more, "schedule.phases.1.lr=0.002"), tmp_path / "run")
    printed = capsys.readouterr().out
    # no escape sequence, no carriage return: nothing that a log would keep as rubbish
    assert re.findall(r"[\x00-\x09\x0b-\x1f\x7f]", printed) == []
    lines = printed.splitlines()
    assert any(line.startswith("phase 1 of 2: head, training head, lr ") for line in lines)
    epochs = [line for line in lines if line.startswith("  epoch ")]
    assert len(epochs) == 3
    assert all(re.search(r"val/acc \d\.\d{4}  lr \S+", line) for line in epochs)
    assert max(map(len, epochs)) <= 80
    # after the first epoch there is something to go by; after the last nothing is left
    assert re.search(r"about .* left$", epochs[1])
    start = lines.index(next(line for line in lines if line.startswith("phase  trains")))
    assert [line.split()[0] for line in lines[start + 1 : start + 3]] == ["head", "all"]
    test = run.results.test
    rows = {line[: line.index("  ")]: line.split()[-1] for line in lines[start + 4 : start + 9] if line.strip()}
    assert rows["accuracy"] == f"{test.acc:.4f}"
    assert rows["macro F1"] == f"{test.f1_macro:.4f}"
    assert rows["calibration error"] == f"{test.ece:.4f}"


def test_on_a_terminal_the_bar_tells_phase_stages_rate_and_time_left(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    for name, value in {"COLUMNS": "240", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CI", raising=False)
    more = ["schedule=frozen", "schedule.phases.0.name='[red]tops'", "schedule.phases.0.epochs=3"]
    train_tiny(words(*more), tmp_path / "run")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "[red]tops (head) epoch 2/3" in shown
    assert re.search(r"lr: [\d.e-]+", shown)
    assert re.search(r"run: about \d+ s left", shown)


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("TERM", "dumb")])
def test_logs_of_ci_and_simple_terminals_get_lines(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.training.callbacks.progress_display import PhaseProgressBar

    monkeypatch.setattr(sys, "stdout", Screen())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    assert PhaseProgressBar.fits_terminal()
    monkeypatch.setenv(name, value)
    assert not PhaseProgressBar.fits_terminal()


def test_time_left_goes_by_what_was_done_and_by_what_later_phases_cost() -> None:
    now = [100.0]
    # 10 images: head alone costs 1.5 each, all stages 3
    left = TimeLeft([phase("head", "head", epochs=2), phase("all", *STAGES, epochs=1)], images=10, clock=lambda: now[0])
    assert left.at(0, 0.0) is None
    now[0] = 103.0
    # 15 of 60 units took 3 s
    assert left.at(0, 0.5) == pytest.approx(9.0)
    now[0] = 106.0
    assert left.at(1, 0.0) == pytest.approx(6.0)
    now[0] = 115.0
    assert left.at(1, 1.0) == 0.0


def test_a_resumed_run_counts_only_what_it_did_itself() -> None:
    now = [0.0]
    left = TimeLeft([phase("all", *STAGES, epochs=10)], images=10, clock=lambda: now[0])
    assert left.at(0, 0.6) is None
    now[0] = 10.0
    assert left.at(0, 0.8) == pytest.approx(10.0)

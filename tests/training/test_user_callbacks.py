"""Callbacks of the user's: every phase begins with them as they were given."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping

from finetune.errors import UserError
from finetune.training.user_callbacks import copies_for_a_phase
from tests.runs import train_tiny

Words = Callable[..., list[str]]
STOP = "lightning.pytorch.callbacks.EarlyStopping"


def test_early_stopping_counts_its_patience_within_each_phase(words: Words, tmp_path: Path) -> None:
    # no epoch improves by 10, so each phase stops after its second
    stop = [f"callbacks.stop._target_={STOP}", "callbacks.stop.monitor=val/loss", "callbacks.stop.min_delta=10"]
    phases = ["schedule=head_then_all", "schedule.phases.0.epochs=3", "schedule.phases.1.epochs=3"]
    run = train_tiny(words(*phases, *stop, "callbacks.stop.patience=1", "schedule.solver=gradient"), tmp_path / "run")
    assert [phase.epochs for phase in run.results.phases] == [2, 2]


def test_the_callback_that_was_given_stays_as_it_was_and_one_in_another_stays_it() -> None:
    class Watches(Callback):
        def __init__(self, watched: Callback) -> None:
            self.watched = watched

    stop = EarlyStopping(monitor="val/loss")
    copied, watches = copies_for_a_phase([stop, Watches(stop)])
    copied.wait_count = 7
    assert stop.wait_count == 0
    assert watches.watched is copied


def test_a_callback_that_cannot_be_copied_is_named() -> None:
    class Holds(Callback):
        def __init__(self) -> None:
            self.lock = threading.Lock()

    with pytest.raises(UserError, match=r"callbacks: .*Holds cannot be copied, and each phase trains with a copy"):
        copies_for_a_phase([Holds()])

"""Callbacks of the user's: those with state begin every phase as they were given."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping

from finetune.errors import UserError
from finetune.training.user_callbacks import UserCallbacks
from tests.runs import train_tiny

Words = Callable[..., list[str]]
STOP = "lightning.pytorch.callbacks.EarlyStopping"


def test_early_stopping_counts_its_patience_within_each_phase(words: Words, tmp_path: Path) -> None:
    # no epoch improves by 10, so each phase stops after its second
    stop = [f"callbacks.stop._target_={STOP}", "callbacks.stop.monitor=val/loss", "callbacks.stop.min_delta=10"]
    phases = ["schedule=head_then_all", "schedule.phases.0.epochs=3", "schedule.phases.1.epochs=3"]
    run = train_tiny(words(*phases, *stop, "callbacks.stop.patience=1", "schedule.solver=gradient"), tmp_path / "run")
    assert [phase.epochs for phase in run.results.phases] == [2, 2]


def test_a_callback_with_state_begins_each_phase_as_given_and_one_without_records_the_run() -> None:
    class Watches(Callback):
        def __init__(self, watched: Callback) -> None:
            self.watched, self.seen = watched, 0

        def state_dict(self) -> dict[str, int]:
            return {"seen": self.seen}

    class Counts(Callback):
        batches = 0

    stop, counts = EarlyStopping(monitor="val/loss"), Counts()
    watches = Watches(stop)
    callbacks = UserCallbacks([stop, watches, counts])
    for _ in range(2):
        assert callbacks.for_a_phase() == [stop, watches, counts]
        assert (stop.wait_count, watches.seen, watches.watched is stop) == (0, 0, True)
        stop.wait_count, watches.seen = 7, 7
        counts.batches += 5
    assert counts.batches == 10


def test_a_callback_whose_state_cannot_be_copied_is_named() -> None:
    class Holds(Callback):
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def state_dict(self) -> dict[str, int]:
            return {}

    with pytest.raises(UserError, match=r"callbacks: the state of .*Holds cannot be copied"):
        UserCallbacks([Holds()])

"""What the history of a phase decides."""

import math
import random

import torch
from torchmetrics import MeanAbsoluteError

from finetune.monitors import minimizes
from finetune.training.epoch_history import EpochHistory


def test_the_plateau_is_torchs_reduce_on_plateau() -> None:
    draw = random.Random(0)
    for _ in range(50):
        losses = [round(draw.uniform(0, 1), 1) for _ in range(20)]
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, patience=2, factor=0.1, threshold=0.0, eps=0.0
        )
        progress = EpochHistory(monitor="val/loss")
        for loss in losses:
            scheduler.step(loss)
            progress.history.append((loss, loss))
            assert math.isclose(progress.plateau_factor(), optimizer.param_groups[0]["lr"], rel_tol=1e-9)


def test_a_tie_is_decided_by_the_loss_and_then_by_the_earlier_epoch() -> None:
    assert EpochHistory(monitor="val/acc", history=[(0.9, 0.5), (0.9, 0.4), (0.9, 0.4)]).best_epoch == 1


def test_a_loss_is_better_when_smaller() -> None:
    assert EpochHistory(monitor="val/loss", history=[(0.5, 0.5), (0.4, 0.4), (0.6, 0.6)]).best_epoch == 1


def test_a_metric_of_the_users_own_says_itself_which_way_is_better() -> None:
    history = [(0.5, 0.5), (0.4, 0.4), (0.6, 0.6)]
    assert EpochHistory(monitor="val/mae", minimize=True, history=list(history)).best_epoch == 1
    assert EpochHistory(monitor="val/gloss", minimize=False, history=list(history)).best_epoch == 2
    assert minimizes("val/mae", higher_is_better=MeanAbsoluteError().higher_is_better)
    assert not minimizes("val/share", higher_is_better=None)


def test_a_value_that_is_no_number_is_never_the_best() -> None:
    nan = float("nan")
    assert EpochHistory(monitor="val/acc", history=[(nan, 1.0), (0.1, 1.0), (nan, 1.0)]).best_epoch == 1
    assert EpochHistory(monitor="val/loss", history=[(0.3, nan), (nan, nan)]).best_epoch == 0


def test_patience_counts_epochs_since_the_best() -> None:
    progress = EpochHistory(monitor="val/acc", patience=2)
    stops = []
    for value in (0.5, 0.6, 0.5, 0.7, 0.6, 0.6):
        progress.history.append((value, 0.0))
        stops.append(progress.stop)
    assert stops == [False, False, False, False, False, True]

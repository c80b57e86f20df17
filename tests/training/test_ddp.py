"""Several processes are one run: the same images, the same weights, one voice, and no waiting for the dead."""

from ast import literal_eval
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.runs import train_tiny
from tests.training.ranks import TWO, forked_ranks, recorded, said

Words = Callable[..., list[str]]

# 48 images in 3 classes: 30 to train on, in batches of 8 and 7; 9 to validate and 9 to test, which 2 does not divide
JOB = (
    "data.val_fraction=0.2",
    "data.test_fraction=0.2",
    "schedule=head_then_all",
    "schedule.phases.0.epochs=1",
    "schedule.phases.1.epochs=2",
    "schedule.restore=last",
    "data.augment=standard",
    "data.eval_batch_size=2",
)


def rows_seen(folder: Path, world: int) -> list[dict[tuple[str, int, int], list[tuple[int, int]]]]:
    """Of each process: images and their views by phase, epoch and batch."""
    seen = []
    for rank in range(world):
        lines = [literal_eval(line) for line in (folder / f"rows.{rank}").read_text().splitlines()]
        seen.append(
            {(phase, epoch, step): list(zip(rows, views, strict=True)) for phase, epoch, step, rows, views in lines}
        )
    return seen


@pytest.fixture(scope="module")
def one(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("one")
    words = ["data=folder", f"data.root={pets}", *TINY, *JOB, *recorded(folder)]
    return train_tiny(words, folder / "run").run_dir


@pytest.fixture(scope="module")
def two(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in two."""
    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("two")
    words = ["data=folder", f"data.root={pets}", *TINY, *JOB, *TWO, *recorded(folder)]
    statuses = forked_ranks(lambda: train_tiny(words, folder / "run"), folder / "out")
    assert statuses == [0, 0], said(folder / "out")
    return folder / "run"


def test_two_processes_share_the_batches_of_one_in_the_same_order_with_the_same_views(one: Path, two: Path) -> None:
    (whole,) = rows_seen(one.parent, 1)
    first, second = rows_seen(two.parent, 2)
    assert list(first) == list(second) == list(whole)
    for at, batch in whole.items():
        shared = [None] * len(batch)
        shared[0::2], shared[1::2] = first[at], second[at]
        assert shared == batch
    # and the last batches are uneven, so that equal weights for the two shares would be wrong
    assert {len(first[at]) - len(second[at]) for at in whole} == {0, 1}


def test_two_processes_end_at_the_weights_of_one(one: Path, two: Path) -> None:
    ours, theirs = load_file(one / "final.safetensors"), load_file(two / "final.safetensors")
    start = load_file(one / "phases/0-head/start.safetensors")
    assert set(ours) == set(theirs)
    moved = max(float((ours[name] - start[name]).abs().max()) for name in ours)
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    print(f"largest difference {apart:.2g}, largest movement {moved:.2g}")
    assert moved > 1e-3
    assert apart < 1e-6

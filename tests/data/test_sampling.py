"""Order and randomness are functions of their keys."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.sampling import EvalBatches, TrainBatches, drawn, key, shuffled, uniform


def batches(n: int = 103, batch_size: int = 16, seed: int = 0, phase: str = "head", **more: int) -> TrainBatches:
    return TrainBatches(rows=np.arange(n) * 10, batch_size=batch_size, seed=seed, phase=phase, **more)


def test_the_numbers_of_a_key_never_change() -> None:
    # of the first release; a change here changes every result that anybody has recorded
    assert key(0, "order", "head", 0) == 1220439628643647637
    assert uniform(3, 0, "order", "head", 0).tolist() == [
        13771217789945960081,
        16303545345994573231,
        3895893039296826907,
    ]
    assert shuffled(np.arange(8), 0, "order").tolist() == [1, 2, 0, 6, 4, 3, 5, 7]


def test_keys_with_the_same_letters_in_other_places_differ() -> None:
    assert len({key("a", "bc"), key("ab", "c"), key("abc"), key("a", "b", "c")}) == 4


@given(n=st.integers(1, 300), batch_size=st.integers(1, 70), epoch=st.integers(0, 5))
def test_an_epoch_has_every_row_once_in_batches_of_nearly_equal_size(n: int, batch_size: int, epoch: int) -> None:
    sampler = batches(n, batch_size)
    sampler.start_at(epoch, 0)
    seen = list(sampler)
    assert len(seen) == len(sampler)
    assert sorted(row for batch in seen for row in batch.rows.tolist()) == list(range(0, n * 10, 10))
    sizes = {len(batch.rows) for batch in seen}
    # an odd number of images in batches of two makes one of three: a single image has no statistics
    assert max(sizes) <= (batch_size if batch_size != 2 or n % 2 == 0 else 3)
    assert batch_size == 1 or n == 1 or min(sizes) > 1
    assert max(sizes) - min(sizes) <= 1


@given(n=st.integers(20, 200), world=st.integers(2, 5), batch_size=st.integers(10, 64))
def test_processes_together_see_the_batches_of_one_process(n: int, world: int, batch_size: int) -> None:
    whole = list(batches(n, batch_size))
    shares = [list(batches(n, batch_size, rank=rank, world=world)) for rank in range(world)]
    for step, batch in enumerate(whole):
        together = [shares[rank][step].rows for rank in range(world)]
        assert sorted(np.concatenate(together)) == sorted(batch.rows)
        assert all(shares[rank][step].global_size == len(batch.rows) for rank in range(world))
        assert max(map(len, together)) - min(map(len, together)) <= 1


@pytest.mark.parametrize("n", [3, 5, 7, 41])
def test_no_batch_is_a_single_image_where_batches_hold_two(n: int) -> None:
    batches = [batch.rows for batch in TrainBatches(rows=np.arange(n), batch_size=2, seed=0, phase="p")]
    assert sorted(map(len, batches)) == [2] * (n // 2 - 1) + [3]
    assert sorted(np.concatenate(batches).tolist()) == list(range(n))


def test_epochs_phases_and_seeds_have_orders_of_their_own() -> None:
    orders = [
        batches().order(0),
        batches().order(1),
        batches(phase="all").order(0),
        batches(seed=1).order(0),
    ]
    assert len({tuple(order) for order in orders}) == 4


@given(epoch=st.integers(0, 3), step=st.integers(0, 6))
def test_starting_inside_an_epoch_gives_what_would_have_come(epoch: int, step: int) -> None:
    whole = batches()
    expected = [(b.epoch, b.step, b.rows.tolist()) for _ in range(5) for b in whole]
    resumed = batches()
    resumed.start_at(epoch, step)
    found = [(b.epoch, b.step, b.rows.tolist()) for _ in range(5 - epoch) for b in resumed]
    assert found == expected[epoch * len(whole) + step :]


def test_a_batch_smaller_than_the_number_of_processes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.batch_size=2: the smallest batch has 2 images for 4 processes"):
        batches(n=8, batch_size=2, rank=0, world=4)


@given(n=st.integers(0, 100), world=st.integers(1, 7), batch_size=st.integers(1, 40))
def test_evaluation_counts_every_row_once_over_all_processes(n: int, world: int, batch_size: int) -> None:
    shares = [EvalBatches(rows=np.arange(n), batch_size=batch_size, rank=r, world=world) for r in range(world)]
    assert sorted(row for share in shares for batch in share for row in batch.rows.tolist()) == list(range(n))


def test_rows_are_drawn_in_proportion_to_their_weights() -> None:
    rows = np.arange(1000)
    weights = np.where(rows < 100, 9.0, 1.0)
    counts = [int((drawn(rows, weights, 0, epoch) < 100).sum()) for epoch in range(20)]
    assert abs(np.mean(counts) - 500) < 15  # 4.5 standard errors
    assert (drawn(rows, np.where(rows == 7, 1.0, 0.0), 0) == 7).all()

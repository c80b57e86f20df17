import pytest
import torch

from finetune.pretraining.keyed import Draw, fold, mix, normals, uniforms


def splitmix64(state: int) -> int:
    """The published finaliser in Python's own unbounded integers."""
    mask = (1 << 64) - 1
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def test_mixing_is_splitmix64_bit_for_bit() -> None:
    values = [0, 1, 2, 12345, 2**31, 2**62 + 7, -1, -(2**63)]
    mixed = mix(torch.tensor(values)).tolist()
    assert [number % 2**64 for number in mixed] == [splitmix64(value % 2**64) for value in values]


def test_the_numbers_of_a_key_do_not_depend_on_its_batch_or_on_how_many_are_drawn() -> None:
    keys = torch.arange(100, 120)
    alone = torch.cat([uniforms(key[None], 9) for key in keys])
    assert torch.equal(uniforms(keys, 30)[:, :9], alone)


def test_uniform_numbers_are_uniform_and_neighbouring_keys_unrelated() -> None:
    numbers = uniforms(torch.arange(4000), 50).double()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    shares = torch.histc(numbers, bins=20, min=0, max=1) / numbers.numel()
    # 200,000 numbers in 20 bins: three standard deviations of a share are 0.0015
    assert (shares - 0.05).abs().max() < 0.002
    centred = numbers - 0.5
    assert ((centred[1:] * centred[:-1]).mean() / centred.square().mean()).abs() < 0.01
    assert ((centred[:, 1:] * centred[:, :-1]).mean() / centred.square().mean()).abs() < 0.01


def test_normal_numbers_have_the_moments_of_the_normal_distribution() -> None:
    numbers = normals(torch.arange(4000), 51).double()
    assert numbers.shape == (4000, 51)
    assert numbers.mean().abs() < 0.01
    assert (numbers.std() - 1).abs() < 0.01
    assert (numbers.pow(4).mean() - 3).abs() < 0.1


def test_other_purposes_give_other_keys() -> None:
    keys = torch.arange(1000)
    folded = torch.cat([fold(keys, salt) for salt in range(5)])
    assert len(folded.unique()) == 5000


def test_a_draw_refuses_to_give_more_numbers_than_announced() -> None:
    draw = Draw(torch.arange(3), 0, count=2)
    draw.several(2)
    with pytest.raises(AssertionError, match="announced fewer than 3"):
        draw.uniform()


def test_draws_lie_where_they_were_asked_for() -> None:
    draw = Draw(torch.arange(2000), 0, count=8)
    low = draw.uniform(-2.0, 3.0)
    assert low.min() >= -2
    assert low.max() < 3
    wide = draw.log_uniform(0.1, 10.0)
    # half of a log-uniform number lies below the geometric mean
    assert abs((wide < 1.0).float().mean() - 0.5) < 0.05
    assert draw.integer(4).unique().tolist() == [0, 1, 2, 3]
    assert abs(draw.chance(0.2).float().mean() - 0.2) < 0.03

"""Keyed random numbers in batches: a pure function of a key, equal on every device, in every batch and order.

A stream (``torch.Generator``) gives image 17 other numbers if image 16 is skipped. Here number ``j`` of key ``k`` is a
hash of ``(k, j)`` by the finaliser of SplitMix64 (Steele, Lea and Flood 2014), in wrapping int64 arithmetic, so that a
CPU and a GPU agree on every bit.
"""

# B = images, N = numbers per image

import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shift right logically; torch's own shift keeps the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def mix(values: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser, a bijection of the 64-bit numbers that makes neighbours unrelated.

    Args:
        values: int64 of any shape.

    Returns:
        int64 of the same shape.
    """
    values = (values ^ _shifted(values, 30)) * _MIX_1
    values = (values ^ _shifted(values, 27)) * _MIX_2
    return values ^ _shifted(values, 31)


def fold(keys: Tensor, salt: int) -> Tensor:
    """Derive new keys for another purpose: equal keys stay equal, and the new numbers are unrelated to the old ones.

    Args:
        keys: int64 of any shape.
        salt: Number that identifies the purpose.

    Returns:
        int64 of the same shape.
    """
    # keys are mixed first, because a plain sum would make key 5 for purpose 1 equal to key 4 for purpose 2
    return mix(mix(keys) + _wrapped((salt + 1) * 0x9E3779B97F4A7C15))


def _wrapped(value: int) -> int:
    """Wrap a Python integer to the signed 64-bit number with the same low bits."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= (1 << 63) else value


def uniforms(keys_B: Tensor, count: int) -> Tensor:
    """Return independent numbers, uniform on [0, 1), for each key.

    Args:
        keys_B: int64 keys, one per image.
        count: Number N of random numbers for each key.

    Returns:
        float32 (B, N).

    >>> a = uniforms(torch.tensor([3, 4]), 5)
    >>> b = uniforms(torch.tensor([4]), 7)
    >>> bool((a[1] == b[0, :5]).all())
    True
    """
    counters_N = torch.arange(1, count + 1, device=keys_B.device, dtype=torch.int64) * _GOLDEN
    bits_BN = mix(mix(keys_B)[:, None] + counters_N)
    return _shifted(bits_BN, 40).to(torch.float32) * 2.0**-24


def normals(keys_B: Tensor, count: int) -> Tensor:
    """Return independent standard normal numbers for each key, by the Box-Muller transform.

    Args:
        keys_B: int64 keys, one per image.
        count: Number N of random numbers for each key.

    Returns:
        float32 (B, N).
    """
    half = (count + 1) // 2
    uniforms_BN = uniforms(keys_B, 2 * half)
    radius_BN = torch.sqrt(-2.0 * torch.log(1.0 - uniforms_BN[:, :half]))
    angle_BN = 2.0 * math.pi * uniforms_BN[:, half:]
    return torch.cat([radius_BN * torch.cos(angle_BN), radius_BN * torch.sin(angle_BN)], dim=1)[:, :count]


class Draw:
    """Random numbers for a batch of keys, taken one after another from one table.

    A renderer needs some tens of numbers per image. They are hashed together at the start, because one large kernel
    costs as much as one small kernel.

    Args:
        keys_B: int64 keys, one per image.
        salt: Number that separates the draws of two renderers of the same image.
        count: Most numbers per image that the renderer may take.
    """

    def __init__(self, keys_B: Tensor, salt: int, count: int = 64) -> None:
        self._uniforms_BN = uniforms(fold(keys_B, salt), count)
        self._taken = 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Take one number per image, uniform on [low, high): float32 (B,)."""
        return self.several(1, low, high)[:, 0]

    def several(self, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Take several numbers per image, uniform on [low, high): float32 (B, count)."""
        start, self._taken = self._taken, self._taken + count
        assert self._taken <= self._uniforms_BN.shape[1], f"this renderer announced fewer than {self._taken} numbers"
        return low + (high - low) * self._uniforms_BN[:, start : self._taken]

    def log_uniform(self, low: float, high: float) -> Tensor:
        """Take one number per image whose logarithm is uniform between those of low and high: float32 (B,)."""
        return torch.exp(self.uniform(math.log(low), math.log(high)))

    def chance(self, probability: float) -> Tensor:
        """Return True with this probability: bool (B,)."""
        return self.uniform() < probability

    def integer(self, count: int) -> Tensor:
        """Take one integer per image, from 0 to count - 1: int64 (B,)."""
        return (self.uniform() * count).long().clamp_max(count - 1)

"""Chooses one range of numbers for all deep images of a data set, so that equal numbers become equal levels.

Integers that are never negative fill the smallest of 8, 10, 12, 14 and 16 bits that holds the largest of them: a 12-bit camera
that writes 16-bit files uses 12. Floating point fills the smallest of 0..1, 0..255 and 0..65535 that holds all but the darkest
and the brightest thousandth of each image, to a hundredth. All other numbers fill the smallest to the largest of the set.
"""

from dataclasses import dataclass, replace

import numpy as np

from finetune.data.color import Range, declared_range
from finetune.data.decode import DecodeOptions
from finetune.data.scan import DEEP, Facts

BIT_DEPTHS = (8, 10, 12, 14, 16)
# below this share of its levels a range is too wide: 8-bit levels come out fewer than 64
_FEW = 0.25


@dataclass(frozen=True)
class Measured:
    """The numbers of one kind in a data set.

    Args:
        images: Number of images.
        low: Smallest number.
        high: Largest number.
    """

    images: int
    low: float
    high: float


def measured(facts: Facts, kind: str) -> Measured | None:
    """Return the numbers of the deep images of a kind, ``integer`` or ``float``; None if there are none."""
    rows = facts.table[(facts.table["deep"] == DEEP.index(kind)) & (facts.table["problem"] == 0)]
    return Measured(len(rows), float(rows["low"].min()), float(rows["high"].max())) if len(rows) else None


def with_ranges(decode: DecodeOptions, facts: Facts) -> tuple[DecodeOptions, tuple[str, ...]]:
    """Return the options with ranges for the deep images of a scan, and what the user should know of them.

    Ranges that are given already, and ``high_depth=stretch``, stay.
    """
    notes: list[str] = []
    for kind, key in (("integer", "integer_range"), ("float", "float_range")):
        numbers = measured(facts, kind)
        if numbers is None or decode.high_depth != "full":
            continue
        given: Range | None = getattr(decode, key)
        chosen = given or _choose(numbers, kind)
        decode = replace(decode, integer_range=chosen) if kind == "integer" else replace(decode, float_range=chosen)
        notes.append(_note(numbers, kind, chosen, given=given is not None))
    return decode, tuple(notes)


def _choose(numbers: Measured, kind: str) -> Range:
    if kind == "float":
        return declared_range(numbers.low, numbers.high, floating=True)
    fitting = [bits for bits in BIT_DEPTHS if numbers.high < 2**bits]
    return (0.0, 2.0 ** fitting[0] - 1) if numbers.low >= 0 and fitting else (numbers.low, numbers.high)


def _note(numbers: Measured, kind: str, chosen: Range, *, given: bool) -> str:
    black, white = chosen
    bits = np.log2(white + 1) if black == 0 and white > 0 else 0.0
    depth = f" ({bits:.0f} bits)" if kind == "integer" and bits == int(bits) and bits else ""
    setting = f"data.{'integer' if kind == 'integer' else 'float'}_range"
    whole = (
        f"{numbers.images:,} deep image{'s' * (numbers.images != 1)} of {kind} numbers from {numbers.low:g} to {numbers.high:g}: "
        f"{black:g} becomes black and {white:g} white{depth}, {'as given' if given else 'measured over the set'}."
    )
    used = (min(numbers.high, white) - max(numbers.low, black)) / (white - black) if white > black else 1.0
    if used < _FEW:
        whole = f"warning: {whole} Only {max(used, 0):.1%} of the levels are used: the images are nearly flat."
        return f"{whole} Set {setting}, or data.high_depth=stretch for a range of each image."
    return whole

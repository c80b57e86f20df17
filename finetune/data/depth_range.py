"""Choose one value range for all high-bit-depth images of a data set, so that equal values become equal pixels.

Integers that are never negative use the smallest of 8, 10, 12, 14 and 16 bits that holds the largest value: 12 for a 12-bit
camera that writes 16-bit files. Floating point uses the smallest of 0..1, 0..255 and 0..65535 that holds all but the darkest
and the brightest thousandth of each image, within 1%. All other values use the minimum and maximum of the data set.

Integers keep their brightest pixels, which may be meant. Where all but the brightest thousandth of each image use less than a
quarter of the range, a few hot pixels or a scale bar may have chosen it: a warning names the setting without them.
"""

from dataclasses import dataclass, replace

import numpy as np

from finetune.data.color import Range, declared_range
from finetune.data.decode import DecodeOptions
from finetune.data.scan import SAMPLE_KINDS, Facts

BIT_DEPTHS = (8, 10, 12, 14, 16)
# a range is too wide if the images use less than this share of it: fewer than 64 of 256 values
_FEW = 0.25


@dataclass(frozen=True)
class Measured:
    """The sample values of one kind in a data set.

    Args:
        images: Number of images.
        low: Smallest value.
        high: Largest value.
        most: Largest value without the brightest thousandth of each image.
    """

    images: int
    low: float
    high: float
    most: float


def measured(facts: Facts, kind: str) -> Measured | None:
    """Return the value range of the high-bit-depth images of a kind, ``integer`` or ``float``; None if there are none."""
    rows = facts.table[(facts.table["deep"] == SAMPLE_KINDS.index(kind)) & (facts.table["problem"] == 0)]
    if not len(rows):
        return None
    return Measured(len(rows), float(rows["low"].min()), float(rows["high"].max()), float(rows["most"].max()))


def with_ranges(decode_options: DecodeOptions, facts: Facts) -> tuple[DecodeOptions, tuple[str, ...]]:
    """Return the options with ranges for the high-bit-depth images of a scan, and notes for the user about them.

    Given ranges and ``high_depth=stretch`` are kept; where no image has samples to which they apply, a note says so.
    """
    notes: list[str] = []
    if decode_options.high_depth == "stretch" and not facts.table["deep"].any():
        notes.append("data.high_depth=stretch: has no effect. No image holds more than 8 bits.")
    for kind, key in (("integer", "integer_range"), ("float", "float_range")):
        numbers = measured(facts, kind)
        if numbers is None and getattr(decode_options, key) is not None:
            what = "integers of more than 8 bits" if kind == "integer" else "floating-point numbers"
            setting = "data.integer_range or data.bit_depth" if kind == "integer" else "data.float_range"
            notes.append(f"{setting}: has no effect. No image holds {what}.")
        if numbers is None or decode_options.high_depth != "full":
            continue
        given: Range | None = getattr(decode_options, key)
        chosen = given or _choose(numbers, kind)
        decode_options = (
            replace(decode_options, integer_range=chosen)
            if kind == "integer"
            else replace(decode_options, float_range=chosen)
        )
        notes.append(_note(numbers, kind, chosen, given=given is not None))
    return decode_options, tuple(notes)


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
        f"{numbers.images:,} image{'s' * (numbers.images != 1)} with more than 8 bits ({kind}, {numbers.low:g} to "
        f"{numbers.high:g}): {black:g} becomes black and {white:g} white{depth}, "
        f"{'as given' if given else 'measured over the data set'}."
    )
    used = (min(numbers.high, white) - max(numbers.low, black)) / (white - black) if white > black else 1.0
    if used < _FEW:
        whole = f"warning: {whole} The images use only {max(used, 0):.1%} of that range, so they are nearly flat."
        return f"{whole} Set {setting}, or data.high_depth=stretch for a range of each image."
    if kind == "integer" and white > black and numbers.most - max(numbers.low, black) < _FEW * (white - black):
        fitting = [bits for bits in BIT_DEPTHS if numbers.most < 2**bits]
        better = (
            f"data.bit_depth={fitting[0]}"
            if numbers.low >= 0 and fitting
            else f"data.integer_range=[{numbers.low:.0f},{numbers.most:.0f}]"
        )
        few = (
            f"All but the brightest thousandth of each image is at most {numbers.most:g}, so most of the range is left"
        )
        return f"warning: {whole} {few} to a few bright pixels. If they do not matter, set {better}."
    if depth and given and numbers.most > white / _FEW:
        lost = f"All values above {white:g} become white, up to {numbers.high:g}."
        return f"warning: {whole} {lost} Leave {setting} and data.bit_depth out, and the range is measured."
    return whole

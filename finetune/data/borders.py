"""Find plain borders around pictures: frames, letterboxes and pillarboxes of one grey value with a straight inner edge."""

import numpy as np
import numpy.typing as npt

# 8-bit values by which a border may vary, from recompression and noise
_SAME = 20
# share of a line that must have the border's value, and share of the first line inside that must not
_PLAIN, _INSIDE = 0.9, 0.5
# lines at the inner edge that recompression blurs
_BLURRED = 2
# share of the picture's side: a thicker border is a background
_THICKEST = 0.4
_SIDES = 4
_BUCKETS = 4


def border_of(grey_HW: npt.NDArray[np.uint8]) -> int:
    """Return a number that encodes which sides have a border and its grey value; 0 for none.

    >>> letterbox = np.pad(np.random.default_rng(0).integers(60, 200, (40, 60), np.uint8), ((6, 6), (0, 0)))
    >>> border_of(letterbox), border_of(letterbox[6:-6])
    (3, 0)
    """
    number = 0
    levels = []
    for side in range(_SIDES):
        lines = np.rot90(grey_HW, side)  # what was on the right comes to the top, and so on
        level = _level_of_border(lines)
        if level is not None:
            number |= 1 << _ORDER[side]
            levels.append(level)
    if not levels:
        return 0
    # dark, two shades between, or light
    return number + (int(np.mean(levels)) * _BUCKETS // 256 << _SIDES)


# bits of top, right, bottom and left: those of a letterbox stand together
_ORDER = (0, 2, 1, 3)


def _level_of_border(lines_HW: npt.NDArray[np.uint8]) -> float | None:
    """Return the grey value of the border at the top, or None if there is none."""
    level = float(np.median(lines_HW[0]))
    most = int(_THICKEST * len(lines_HW))
    plain = (np.abs(lines_HW[: most + 1].astype(np.int16) - level) <= _SAME).mean(axis=1) >= _PLAIN
    thickness = len(plain) if plain.all() else int(plain.argmin())
    inside = lines_HW[thickness : thickness + _BLURRED + 1].astype(np.int16)
    if not 0 < thickness <= most or not len(inside):
        return None
    edge = (np.abs(inside - level) > _SAME).mean(axis=1).max() >= _INSIDE
    return level if edge else None

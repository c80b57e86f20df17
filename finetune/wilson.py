"""Wilson's interval of a share, such as an accuracy: the one interval that is shown wherever the accuracy is.

``scipy.stats`` has it too (``binomtest(...).proportion_ci(method="wilson")``), but takes a second to import, in which
``finetune runs`` has printed its table.
"""

import math


def wilson(share: float, images: int, *, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share.

    >>> low, high = wilson(1.0, 10)
    >>> round(low, 3), high
    (0.722, 1.0)
    """
    centre = share + z * z / (2 * images)
    half = z * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    whole = 1 + z * z / images
    return max((centre - half) / whole, 0.0), min((centre + half) / whole, 1.0)

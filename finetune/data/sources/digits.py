"""``data=digits``: scikit-learn's scanned digits, which are on every machine that has scikit-learn."""

from typing import TYPE_CHECKING

from finetune.data.sources.kind import SourceKind
from finetune.split_settings import SplitSettings

if TYPE_CHECKING:
    from finetune.data.image_source import ArraySource


def digits_source(*, channels: int = 1, split: SplitSettings = SplitSettings()) -> "ArraySource":
    """Build a source from scikit-learn's 1,797 scanned digits: 8 x 8 pixels, one channel, 0..16 scaled to 0..255."""
    import numpy as np
    from sklearn.datasets import load_digits

    from finetune.data.image_source import arrays_source

    digits = load_digits()
    return arrays_source(
        images=np.rint(digits.images * (255 / 16)).astype(np.uint8),
        targets=digits.target.astype(np.int64),
        classes=[str(name) for name in digits.target_names],
        name="digits",
        channels=channels,
        split=split,
    )


DIGITS = SourceKind(builder=lambda: digits_source, channels=1)

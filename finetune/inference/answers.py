"""What a model answers about images: probabilities, and how unlike the training images each image is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from finetune.errors import UserError

# N = images, K = classes

# what is predicted for an image that is unlike the training images, where that is asked for
UNKNOWN = "unknown"


def is_known(unknown_score: float | None) -> bool | None:
    """Return whether a score is that of an image like the training images; None without a score.

    >>> is_known(0.8), is_known(1.2), is_known(None)
    (True, False, None)
    """
    return None if unknown_score is None else unknown_score <= 1


def check_named(classes: Sequence[str], *, tells_unknown: bool, names_unknown: bool) -> None:
    """Check that ``unknown`` can be predicted if it is asked for.

    Raises:
        UserError: The model cannot tell unknown images, or has a class of that name.
    """
    if names_unknown and not tells_unknown:
        raise UserError(
            "--unknown: this model cannot tell unknown images. Models of several labels or of earlier versions, and those of few "
            "validation images or accept_known=null cannot; results.json of the run says why."
        )
    if names_unknown and UNKNOWN in classes:
        raise UserError(
            f"--unknown: the model has a class {UNKNOWN!r}. Leave it out; the column known tells unknown images."
        )


class ImageAnswer(NamedTuple):
    """What a model answers about one image."""

    probabilities_K: npt.NDArray[np.float32]
    # above 1 the image is unlike the training images; None where the model cannot tell
    unknown_score: float | None


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a model answers about some images.

    Args:
        probabilities_NK: Probabilities.
        unknown_N: Scores of unknown images; None where the model cannot tell.
    """

    probabilities_NK: npt.NDArray[np.float32]
    unknown_N: npt.NDArray[np.float32] | None = None

    def each(self) -> Iterator[ImageAnswer]:
        """Yield the answer about each image."""
        scores = [None] * len(self.probabilities_NK) if self.unknown_N is None else map(float, self.unknown_N)
        for probabilities_K, score in zip(self.probabilities_NK, scores, strict=True):
            yield ImageAnswer(probabilities_K, score)

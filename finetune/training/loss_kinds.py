"""The losses that ``loss.name`` can select; :mod:`finetune.training.losses` computes them for one label and for several.

Each is a cross-entropy whose terms are weighted by how far the network is from the true class. A new one of this family is a
function and a line in :data:`LOSSES`; any other loss is a user-supplied module: ``loss._target_``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a configuration is checked against this table before torch is loaded
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LossKind:
    """A value of ``loss.name``.

    Args:
        weigh: Function that returns the weight of each term from 1 minus the probability of the true class and from the
            loss's specific settings; None weights all terms alike.
        specific: Settings under ``loss`` that this loss alone reads, each with its name in a plan.
    """

    weigh: "Callable[[Tensor, Mapping[str, float]], Tensor] | None" = None
    specific: Mapping[str, str] = field(default_factory=dict)

    def specific_settings(self, section: object) -> dict[str, float]:
        """Return the values of the specific settings from the ``loss`` section of a configuration."""
        return {key: getattr(section, key) for key in self.specific}

    def in_words(self, name: str, section: object) -> str:
        """Return the loss as a plan names it: ``focal, gamma 2``."""
        settings = self.specific_settings(section)
        return ", ".join([name, *(f"{word} {settings[key]:g}" for key, word in self.specific.items())])


def _focal(distance: "Tensor", settings: Mapping[str, float]) -> "Tensor":
    """Weight by ``(1 - p) ** gamma`` (Lin et al. 2017, arXiv 1708.02002, without its alpha)."""
    weights: Tensor = distance ** settings["focal_gamma"]
    return weights


LOSSES: dict[str, LossKind] = {
    "cross_entropy": LossKind(),
    "focal": LossKind(weigh=_focal, specific={"focal_gamma": "gamma"}),
}

"""What a head is: a module with the settings that rebuild it, and the rules of its kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from finetune.errors import UserError
from finetune.plain import Json

# B = batch, D = features, E = hidden features, K = classes


class Head(nn.Module):
    """A head of the package, from ``(B, D)`` features to ``(B, K)`` logits.

    A subclass takes ``num_features``, ``num_classes``, ``drop_rate`` and the specific settings of its kind, and stores them with
    its ``name`` in ``settings``, from which :func:`finetune.models.heads.build_head` builds it again.
    """

    settings: dict[str, Json]


@dataclass(frozen=True, kw_only=True)
class HeadSetting:
    """A setting of one kind of head.

    Args:
        default: Value where none is given.
        holds: Whether a value is in range.
        rule: The range in words: ``must be positive``.
        is_size: Whether it is a number of units, which a file of another origin may not make too large.
    """

    default: float
    holds: Callable[[float], bool]
    rule: str
    is_size: bool = False


@dataclass(frozen=True, kw_only=True)
class HeadKind:
    """A value of ``head.name``.

    Args:
        module: Class of the head.
        logits_alone: Computes the logits from features, the state dict and ``torch.nn.functional``. The check of an exported
            head runs the text of this function in a process that cannot import this package, so it uses its arguments alone.
        specific: Settings that this kind alone has.
        is_linear: Whether it is one linear layer ``fc``, which ``solver=lbfgs`` solves to convergence.
    """

    module: type[Head]
    logits_alone: Callable[[Any, Mapping[str, Any], Any], Any]
    specific: Mapping[str, HeadSetting] = field(default_factory=dict)
    is_linear: bool = False

    def specific_settings(self, section: object) -> dict[str, Any]:
        """Return the values of the specific settings; one without a field in the ``head`` section has its default."""
        return {key: getattr(section, key, setting.default) for key, setting in self.specific.items()}

    def check(self, settings: Mapping[str, Any]) -> None:
        """Check those of the settings that belong to this kind.

        Raises:
            UserError: A value is out of range.
        """
        for key, setting in self.specific.items():
            if key in settings and not setting.holds(settings[key]):
                raise UserError(f"head.{key}={settings[key]}: {setting.rule}.")

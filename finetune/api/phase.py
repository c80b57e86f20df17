"""A phase of a schedule, and phases in order, as Python users write them."""

import inspect
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from finetune.arguments import KINDS, check_kinds, check_names
from finetune.config.schema import PhaseConfig, setting_of
from finetune.errors import UserError, type_in_words


class Phase(PhaseConfig):
    """One phase of a schedule: the stages that train, for how long and at which rates."""

    if not TYPE_CHECKING:  # type checkers see the fields

        def __init__(self, *args: Any, **settings: Any) -> None:
            if args:
                raise UserError(
                    "finetune.Phase: takes its settings by name. Use finetune.Phase(train=['head'], epochs=3)."
                )
            if "freeze" in settings:
                raise UserError(
                    "freeze: not an argument of finetune.Phase. A phase trains the stages in train= and no others; freeze= of "
                    "finetune.fit names those that no phase trains."
                )
            check_names(list(settings), list(PhaseConfig.__dataclass_fields__), of="finetune.Phase")
            _check_train(settings.get("train", ["head"]))
            check_kinds(settings, {name: KINDS[name] for name in ("lr", "epochs", "batch_size")})
            super().__init__(**settings)

    def __repr__(self) -> str:
        """Show the settings that are not the defaults."""
        shown = (
            f"{field.name}={value!r}"
            for field in fields(self)
            if (value := getattr(self, field.name)) != _default(field)
        )
        return f"Phase({', '.join(shown)})"


def _check_train(train: Any) -> None:
    several = isinstance(train, (list, tuple)) and all(isinstance(stage, str) for stage in train)
    if not train or not (isinstance(train, str) or several):
        raise UserError(
            f"train={train!r}: must name the stages that train. Give ['head'], ['last', 'head'] or ['all']."
        )


def _default(field: Any) -> Any:
    return field.default if field.default is not MISSING else field.default_factory()


def _described() -> str:
    """Return the text of the class with every setting's meaning, from the schema."""
    lines = []
    # what a phase is about comes first
    order = sorted(fields(PhaseConfig), key=lambda field: field.name not in ("train", "name", "epochs", "lr"))
    for field in order:
        lines.append(f"    {field.name}: {setting_of(field).meaning}.")
    return "\n".join(
        [str(Phase.__doc__), "", "Settings that are None are taken from the schedule.", "", "Args:", *lines]
    )


Phase.__doc__ = _described()
Phase.__signature__ = inspect.signature(PhaseConfig)  # type: ignore[attr-defined]  # of inspect


@dataclass(frozen=True)
class PhaseList:
    """The phases of a schedule in order, or the name of a schedule in ``conf/schedule``.

    Args:
        phases: A name, a phase, or phases in order; those without a name get that of their stages.

    Raises:
        UserError: They are something else.
    """

    phases: str | PhaseConfig | Sequence[PhaseConfig]

    def __post_init__(self) -> None:
        if isinstance(self.phases, str):
            return
        if not isinstance(self.phases, (PhaseConfig, list, tuple)):
            raise UserError(
                f"schedule: must be a name or phases. It is {type_in_words(self.phases)}. Give 'gradual', or "
                "[finetune.Phase(train=['head'], epochs=3), finetune.Phase(train=['all'], lr=1e-4)]."
            )
        given = [self.phases] if isinstance(self.phases, PhaseConfig) else self.phases
        object.__setattr__(self, "phases", tuple(_named(given)))


def _named(given: Sequence[Any]) -> list[PhaseConfig]:
    phases, taken = [], set()
    for phase in given:
        if not isinstance(phase, PhaseConfig):
            raise UserError(
                f"schedule: is a list with {type_in_words(phase)}. Give finetune.Phase(train=['head'], epochs=3, lr=1e-3), "
                "or the name of a schedule."
            )
        train = [phase.train] if isinstance(phase.train, str) else list(phase.train)
        name = phase.name if phase.name != PhaseConfig().name else "-".join(train) or phase.name
        number = 2
        while name in taken:
            name, number = f"{name.rstrip('0123456789').rstrip('-')}-{number}", number + 1
        taken.add(name)
        phases.append(replace(phase, name=name, train=train))
    return phases

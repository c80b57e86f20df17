"""A schedule that trains: phases in order, or the name of a preset, with ``fit`` and ``plan``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.api.phase import PhaseList
from finetune.errors import UserError

if TYPE_CHECKING:
    from finetune.api.steps import Plan
    from finetune.training.run_result import RunResult


@dataclass(frozen=True)
class Schedule(PhaseList):
    """Phases in order, or the name of a preset; it trains on whatever data it is given.

        schedule = finetune.Schedule([finetune.Phase(train=["head"], epochs=3), finetune.Phase(train=["all"], lr=1e-4)])
        run = schedule.fit("pets", backbone="resnet50")

    ``finetune.fit(data, schedule=schedule)`` does the same.

    Args:
        phases: Phases in order, a phase, or the name of a schedule in ``conf/schedule``. Phases without a name get that of
            their stages.

    Raises:
        UserError: They are something else.
    """

    def fit(self, data: Any, **arguments: Any) -> "RunResult":
        """Train the phases on data, test, and write the bundle and the report.

        Args:
            data: Data set, as for :func:`finetune.fit`.
            **arguments: The other arguments of :func:`finetune.fit`.

        Raises:
            UserError: An argument, the data or the weights are wrong.
            RunError: Training could not continue.
        """
        from finetune.api.fit import fit

        return fit(data, schedule=self, **_without_schedule(arguments, "fit"))

    def plan(self, data: Any, **arguments: Any) -> "Plan":
        """Return what :meth:`fit` would do with the same arguments; nothing is trained and nothing is written.

        Args:
            data: Data set, as for :func:`finetune.fit`.
            **arguments: The other arguments of :func:`finetune.fit`.

        Raises:
            UserError: An argument, the data or the weights are wrong.
        """
        from finetune.api.steps import plan

        return plan(data, schedule=self, **_without_schedule(arguments, "plan"))


def _without_schedule(arguments: Mapping[str, Any], of: str) -> Mapping[str, Any]:
    if "schedule" in arguments:
        raise UserError(
            f"schedule={arguments['schedule']!r}: not an argument of Schedule.{of}, which trains its own phases. Leave it out, "
            f"or call finetune.{of}(data, schedule=...)."
        )
    return arguments

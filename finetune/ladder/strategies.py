"""The strategies that a ladder compares, cheapest first, and the overrides that each adds to the command line."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from finetune.errors import UserError
from finetune.ladder.networks import Network
from finetune.plain import Json

# {E}, {A}, {B}, {C} stand for epochs; None marks a baseline on features, which trains nothing
STRATEGIES: dict[str, tuple[str, ...] | None] = {
    "majority": None,
    "knn": None,
    "probe": ("schedule=probe",),
    "frozen": ("schedule=frozen", "schedule.phases.0.epochs={E}"),
    "norm_only": ("schedule=norm_only", "schedule.phases.0.epochs={E}"),
    "last": (
        "schedule=frozen",
        "schedule.name=last",
        "schedule.phases.0.name=last",
        "schedule.phases.0.train=[last,head]",
        "schedule.phases.0.epochs={E}",
        "schedule.phases.0.layer_decay=0.5",
    ),
    "gradual": (
        "schedule=gradual",
        "schedule.phases.0.epochs={A}",
        "schedule.phases.1.epochs={B}",
        "schedule.phases.2.epochs={C}",
    ),
    "lp_ft": ("schedule=lp_ft", "schedule.phases.1.epochs={E}"),
    "full": ("schedule=full", "schedule.phases.0.epochs={E}"),
    "scratch": (
        "schedule=full",
        "schedule.name=scratch",
        "schedule.phases.0.epochs={E}",
        "schedule.phases.0.layer_decay=1.0",
        "schedule.lr=1e-3",
        "schedule.phases.0.lr=1e-3",
        "schedule.batch_norm=train",
        "backbone.weights=none",
    ),
}
# of networks that are only compared
PROBE_ALONE = ("probe",)


# settings that the ladder gives each of its runs, with what to write in their place
_OWN = dict.fromkeys(("schedule", "experiment", "seed", "run_dir", "name"), "") | {"epochs": " Use --epochs N."}


def refuse_own_settings(overrides: Sequence[str]) -> None:
    """Refuse settings that the ladder gives each of its runs.

    Raises:
        UserError: One of them is among the overrides.
    """
    for word in overrides:
        key = word.lstrip("+~").partition("=")[0]
        if key in _OWN:
            raise UserError(f"{word}: the ladder sets {key} itself, rung by rung.{_OWN[key]}")


@dataclass(frozen=True, kw_only=True)
class LadderOptions:
    """Options of one ladder.

    Args:
        seeds: Number of runs per strategy; a seed is one split and one initialisation.
        epochs: Number of passes over the training images for every strategy that trains.
        rungs: Names of the strategies, cheapest first.
        output: Folder of the ladder; None chooses ``runs/ladder-DATA``.
        networks: Networks to compare, each by a solved head on its frozen features; ``rungs`` then train the ``finalists``
            best of them on validation. None compares strategies of one network.
        finalists: Number of networks that the other rungs train.
    """

    seeds: int = 3
    epochs: int = 8
    rungs: tuple[str, ...] = tuple(STRATEGIES)
    output: str | None = None
    networks: tuple[Network, ...] = ()
    finalists: int = 2

    def to_plain(self) -> dict[str, Json]:
        """Return plain JSON values, for ``ladder.json``."""
        return {**asdict(self), "rungs": list(self.rungs), "networks": [asdict(network) for network in self.networks]}

    def folder(self, data: str) -> Path:
        """Return the folder of the ladder for data of this name."""
        return Path(self.output or f"runs/ladder-{data}").expanduser()


def strategy_overrides(name: str, *, epochs: int) -> list[str]:
    """Return the overrides of a strategy that trains.

    >>> strategy_overrides("gradual", epochs=8)
    ['schedule=gradual', 'schedule.phases.0.epochs=2', 'schedule.phases.1.epochs=2', 'schedule.phases.2.epochs=4']
    """
    template = STRATEGIES[name]
    assert template is not None, f"{name} trains nothing"
    first = max(1, epochs // 4)
    epochs_of = {"E": epochs, "A": first, "B": first, "C": max(1, epochs - 2 * first)}
    return [word.format(**epochs_of) if "{" in word else word for word in template]

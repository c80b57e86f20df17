"""The contents of ``ladder.json``: the strategies of a ladder, and the one that its rule recommends."""

from collections.abc import Mapping
from dataclasses import dataclass

from finetune.errors import did_you_mean
from finetune.html import html_table
from finetune.plain import Json


@dataclass(frozen=True, kw_only=True)
class RungResult:
    """A strategy with its means over the seeds.

    Args:
        name: Name of the strategy.
        runs: For each seed ``val``, ``test`` (accuracies), ``seconds`` (of training) and ``trained`` (parameters).
        val: Mean validation accuracy.
        test: Mean test accuracy.
        test_interval: Half the width of its 95 % interval; None from one seed, which has no spread.
        seconds: Mean time of training.
        trained: Mean number of trained parameters.
        parameters: Number of parameters of the network; None where all rungs have the same.
        licence: Licence of its pretrained weights; None likewise, and for random weights.
    """

    name: str
    runs: tuple[Mapping[str, float], ...]
    val: float
    test: float
    test_interval: float | None = None
    seconds: float
    trained: float
    parameters: int | None = None
    licence: str | None = None

    def test_in_words(self, *, scale: float = 1.0, digits: int = 4) -> str:
        """Return the test accuracy with its interval, where there is one.

        >>> runs = ({"test": 0.85},)
        >>> RungResult(name="full", runs=runs, val=0.9, test=0.85, seconds=1.0, trained=9.0).test_in_words()
        '0.8500'
        """
        ends = self.test_range()
        if ends is None or self.test_interval is None:
            return f"{scale * self.test:.{digits}f}"
        if self.test - self.test_interval >= 0 and self.test + self.test_interval <= 1:
            return f"{scale * self.test:.{digits}f} ± {scale * self.test_interval:.{digits}f}"
        low, high = (f"{scale * end:.{digits}f}" for end in ends)
        return f"{scale * self.test:.{digits}f} ({low} to {high})"

    def test_range(self) -> tuple[float, float] | None:
        """Return the ends of the interval, which an accuracy cannot leave; None from one seed."""
        if self.test_interval is None:
            return None
        return max(0.0, self.test - self.test_interval), min(1.0, self.test + self.test_interval)


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The strategy that the rule chose.

    Args:
        name: Name of the strategy.
        confidence: Fraction of resamples of the seeds in which the rule chooses it again; None from one seed.
        best: Name of the strategy with the best mean on validation.
        rule: The rule, in words.
        seeds: Number of seeds; None where it is not known.
    """

    name: str
    confidence: float | None = None
    best: str
    rule: str
    seeds: int | None = None

    def confidence_in_words(self) -> str:
        """Return how sure the recommendation is.

        >>> Recommendation(name="full", confidence=0.75, best="full", rule="").confidence_in_words()
        'confidence 75%'
        >>> Recommendation(name="full", confidence=1.0, best="full", rule="", seeds=2).confidence_in_words()
        'confidence 100%, of two seeds only; --seeds 3 or more gives one to rely on'
        """
        if self.confidence is None:
            return "one seed: no interval, no confidence; --seeds 3 gives both"
        few = ", of two seeds only; --seeds 3 or more gives one to rely on" if self.seeds == 2 else ""
        return f"confidence {self.confidence:.0%}{few}"


@dataclass(frozen=True, kw_only=True)
class LadderResult:
    """A finished ladder.

    Args:
        command: Command that made it.
        options: Its options.
        rungs: The strategies.
        recommended: The strategy that the rule chose; None if no strategy trains.
        train_it: Command that trains with it; None likewise.
        learning_curve: For each seed, accuracies by the number of images.
    """

    command: str
    options: Mapping[str, Json]
    rungs: tuple[RungResult, ...]
    recommended: Recommendation | None
    train_it: str | None
    learning_curve: tuple[tuple[Mapping[str, float], ...], ...]

    def rung(self, name: str) -> RungResult:
        """Return the results of one strategy.

        Raises:
            KeyError: It is not a rung of this ladder.
        """
        known = [rung.name for rung in self.rungs]
        if name not in known:
            raise KeyError(
                f"{name!r}: not a rung of this ladder. Rungs: {', '.join(known)}.{did_you_mean(name, known)}"
            )
        return self.rungs[known.index(name)]

    def _repr_html_(self) -> str:
        rows = [
            (rung.name, rung.val, rung.test_in_words(), f"{rung.seconds:.1f} s", *self.size_cells(rung))
            for rung in self.rungs
        ]
        chosen = self.recommended
        caption = (
            "recommended: none" if chosen is None else f"recommended: {chosen.name}, {chosen.confidence_in_words()}"
        )
        return html_table([self.title, "val", "test", "time", *self.size_titles], rows, caption=caption)

    @property
    def compares_networks(self) -> bool:
        """Return whether the rungs are networks."""
        return any(rung.parameters is not None for rung in self.rungs)

    @property
    def title(self) -> str:
        """Return the title of the column of names."""
        return "network" if self.compares_networks else "strategy"

    @property
    def size_titles(self) -> tuple[str, ...]:
        """Return the titles of the columns on size: of the network, or of what a strategy trains."""
        return ("parameters", "licence") if self.compares_networks else ("trained parameters",)

    def size_cells(self, rung: RungResult) -> tuple[str, ...]:
        """Return the cells of the columns on size."""
        if self.compares_networks:
            return f"{rung.parameters or 0:,}", rung.licence or "none needed"
        return (f"{rung.trained:,.0f}",)

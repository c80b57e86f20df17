"""The settings of a data set's splits: their ranges and defaults, for configuration and sources alike."""

from dataclasses import dataclass

from finetune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """A rule for splitting samples where the data has no splits of its own.

    Args:
        seed: Seed of the splits; another seed gives other splits.
        val_fraction: Share of each class that goes to validation, at least 0 and below 1; 0 suits data that has a
            validation split.
        test_fraction: Share of each class that goes to the test split, at least 0 and below 1; 0 for no test split.
        folds: Number of folds, at least 2, that all samples outside test are divided into; one of them is used for
            validation. None for a single split.
        fold: Fold used for validation, counted from 0.
        limit_per_class: Most training samples per class, at least 1; validation and test stay whole. None for no limit.
        split_from: Run folder; the images that it recorded keep their splits. None splits all images anew.

    Raises:
        ConfigError: Values are out of range; it lists all of them.
    """

    seed: int = 0
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    folds: int | None = None
    fold: int = 0
    limit_per_class: int | None = None
    split_from: str | None = None

    def __post_init__(self) -> None:
        if problems := self._problems():
            raise ConfigError(problems)

    def _problems(self) -> list[str]:
        problems = [
            f"data.{name}={value}: must be at least 0 and below 1."
            for name, value in (("val_fraction", self.val_fraction), ("test_fraction", self.test_fraction))
            if not 0 <= value < 1
        ]
        if not problems and self.val_fraction + self.test_fraction >= 1:
            problems.append(
                f"data.val_fraction={self.val_fraction}, data.test_fraction={self.test_fraction}: "
                "must leave something to train on. Together they take everything."
            )
        if self.folds is None and self.fold:
            problems.append(f"data.fold={self.fold}: needs data.folds, the number of folds.")
        elif self.folds is not None and self.folds < 2:
            problems.append(f"data.folds={self.folds}: must be at least 2.")
        elif self.folds is not None and not 0 <= self.fold < self.folds:
            problems.append(
                f"data.fold={self.fold}: must lie between 0 and {self.folds - 1}, as data.folds={self.folds}."
            )
        if self.split_from is not None and self.folds is not None:
            problems.append(
                f"data.split_from={self.split_from!r}, data.folds={self.folds}: folds divide all images anew. Leave one out."
            )
        if self.limit_per_class is not None and self.limit_per_class < 1:
            problems.append(f"data.limit_per_class={self.limit_per_class}: must be at least 1.")
        return problems

"""Where pretrained weights come from, in which revision and under which licence."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import UserError
from finetune.models.hub import cached_revision
from finetune.models.package_weights import package_of
from finetune.safe_files import read_json

UNKNOWN = "unknown"
# licences that allow everything a user may want to do with a trained model
PERMISSIVE = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")
# licences that forbid commercial use without "nc" or "noncommercial" in their names
_RESEARCH_ONLY = ("apple-amlr", "seer-license")


@dataclass(frozen=True, kw_only=True)
class WeightsOrigin:
    """Where weights come from.

    Args:
        place: Repository, address, package or file.
        licence: Its name in timm's spelling, ``unknown`` if none is recorded; None for random weights.
        revision: Commit of the hub's repository, if known.
    """

    place: str
    licence: str | None
    revision: str | None = None

    def in_words(self) -> str:
        """Return one line for the plan and the card."""
        revision = f", revision {self.revision[:12]}" if self.revision else ""
        return f"{self.place}{revision}; licence: {self.licence or 'none needed'}"

    @property
    def warning(self) -> str | None:
        """What the user should know before training; None if the licence is permissive."""
        if self.licence is None or self.licence in PERMISSIVE:
            return None
        if self.licence == UNKNOWN:
            # files belong to the user and need no reminder
            fetched = self.place.startswith(("hub:", "http"))
            return f"licence: none is recorded for {self.place}. Look there before commercial use." if fetched else None
        words = self.licence.lower().replace("_", "-").split("-")
        if "nc" in words or "noncommercial" in words or self.licence in _RESEARCH_ONLY:
            return f"licence: {self.licence} forbids commercial use of these weights and of what is trained from them."
        return f"licence: {self.licence} has its own terms. Read them before commercial use of these weights."


def origin_of(*, source: str, name: str, weights: str) -> WeightsOrigin:
    """Return the origin of a backbone's weights, without loading them.

    Args:
        source: ``backbone.source``.
        name: ``backbone.name``.
        weights: ``backbone.weights``.
    """
    if weights == "none":
        return WeightsOrigin(place="random weights", licence=None)
    if weights == "embedded":
        return WeightsOrigin(place="inside this package, trained on formula-generated images", licence="apache-2.0")
    if weights == "package":
        package = package_of(name)
        return WeightsOrigin(place=package.place, licence=package.licence)
    if weights.startswith("hub:"):
        return _of_hub(weights.removeprefix("hub:"), licence=UNKNOWN)
    if weights != "imagenet" and not weights.isupper():
        return _of_path(Path(weights))
    if source == "timm":
        from finetune.models.sources.from_timm import pretrained_cfg

        cfg = pretrained_cfg(name)
        licence = str(cfg.license or UNKNOWN)
        if cfg.hf_hub_id:
            return _of_hub(str(cfg.hf_hub_id), licence=licence)
        return WeightsOrigin(place=str(cfg.url or "timm"), licence=licence)
    if source == "transformers":
        return _of_path(Path(name)) if Path(name).is_dir() else _of_hub(name, licence=UNKNOWN)
    return WeightsOrigin(place=f"torchvision, {weights}", licence=UNKNOWN)


def _of_hub(repo: str, *, licence: str) -> WeightsOrigin:
    """Return the origin of a hub repository, with the commit in the hub's cache."""
    name, _, marked = repo.partition("@")
    return WeightsOrigin(place=f"hub:{name}", licence=licence, revision=cached_revision(repo) or marked or None)


def _of_path(path: Path) -> WeightsOrigin:
    """Return the origin of a file or folder; a bundle inherits the licence of the weights that its training started from."""
    for file, keys in (
        (path / "model.json", ("training", "backbone", "licence")),
        (path / "model" / "model.json", ("training", "backbone", "licence")),
        (path / "config.json", ("pretrained_cfg", "license")),
        (path / "config.json", ("license",)),
    ):
        value: object = _content(file)
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str) and value:
            return WeightsOrigin(place=str(path), licence=value[:100])
    return WeightsOrigin(place=str(path), licence=UNKNOWN)


def _content(file: Path) -> Mapping[str, object]:
    if not file.is_file():
        return {}
    try:
        return read_json(file, dict)
    except (UserError, OSError, ValueError):
        # loading the weights reports the problem
        return {}

"""Networks that a ladder compares (``--backbones``), and the overrides that choose each."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.config import check_overrides
from finetune.config.overrides import TypedLine
from finetune.errors import UserError
from finetune.plain import Json

AUTO = "auto"
# with ``auto``, from small to large, where their weights are in the hub's cache
_COMMON = ("mobilenetv4_conv_small", "resnet50", "vit_small_patch14_dinov2", "convnext_tiny")


@dataclass(frozen=True, kw_only=True)
class Network:
    """A pretrained network.

    Args:
        name: A choice of ``backbone=`` or a name of timm.
        weights: Value of ``backbone.weights``; None for ``imagenet``.
    """

    name: str
    weights: str | None = None

    @property
    def label(self) -> str:
        """Return its name in tables and folders."""
        return self.name if self.weights is None else f"{self.name}-{Path(self.weights).stem}"

    def identity(self) -> dict[str, Json]:
        """Return what tells it from others, as plain values: of a file of weights, its path, size and time of modification."""
        described: dict[str, Json] = {"name": self.name, "weights": self.weights}
        if self.weights is not None and os.path.isfile(path := Path(self.weights).expanduser()):
            status = os.stat(path)
            described |= {"weights": os.path.realpath(path), "bytes": status.st_size, "changed_ns": status.st_mtime_ns}
        return described

    def overrides(self) -> list[str]:
        """Return the checked overrides that choose it.

        Raises:
            UserError: There is no such network.
        """
        words = [f"backbone={self.name}", *([] if self.weights is None else [f"backbone.weights={self.weights}"])]
        return check_overrides(words, line=TypedLine("ladder"))


def parse_networks(names: Sequence[str]) -> tuple[Network, ...]:
    """Return the networks that were typed, ``NAME`` or ``NAME=WEIGHTS``; ``auto`` stands for :func:`networks_at_hand`.

    Raises:
        UserError: A name is empty or given twice.
    """
    networks: list[Network] = []
    for text in names:
        name, equals, weights = text.partition("=")
        if not name or (equals and not weights):
            raise UserError(f"--backbones {','.join(names)}: must be names with a comma between them, or NAME=WEIGHTS.")
        networks += networks_at_hand() if text == AUTO else [Network(name=name, weights=weights or None)]
    labels = [network.label for network in networks]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"--backbones {','.join(names)}: {label} is given twice. Leave one of them out.")
    return tuple(networks)


def networks_chosen(names: Sequence[str], rungs: Sequence[str] | None, overrides: Sequence[str]) -> tuple[Network, ...]:
    """Return the networks of a ladder that compares them.

    Args:
        names: The networks, as :func:`parse_networks` takes them.
        rungs: Strategies of the best networks; None compares the networks only.
        overrides: Other settings of the ladder.

    Raises:
        UserError: A network is unknown or given twice, another setting chooses a network, or a rung is not a way to train one.
    """
    for word in overrides:
        if word.lstrip("+~").startswith(("backbone=", "backbone.")):
            raise UserError(f"{word}: --backbones chooses the networks. Leave one of the two out.")
    if without := [name for name in rungs or () if name in ("majority", "knn", "scratch")]:
        raise UserError(f"--rungs {without[0]}: trains no pretrained network. With --backbones, leave it out.")
    networks = parse_networks(names)
    for network in networks:
        # all of them before the first is trained
        network.overrides()
    return networks


def networks_at_hand() -> list[Network]:
    """Return the networks whose weights are on this machine: in this package, in installed packages, in the hub's cache."""
    from finetune.models.hub import cached_revision
    from finetune.models.package_weights import PACKAGES
    from finetune.models.sources.from_timm import pretrained_cfg

    packaged = [Network(name=name, weights="package") for name, package in PACKAGES.items() if package.is_installed]
    cached = [
        Network(name=name)
        for name in _COMMON
        if (repository := pretrained_cfg(name).hf_hub_id) and cached_revision(repository) is not None
    ]
    return [Network(name="resnet18", weights="embedded"), *packaged, *cached]

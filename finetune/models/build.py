"""Builds backbones: by name from a library, from a user-supplied module, or from a description."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.errors import UserError
from finetune.input_spec import InputSpec
from finetune.models.backbone import Backbone
from finetune.models.hub import cache_alone
from finetune.models.pretrained import WORDS, load_weights
from finetune.models.sources import FILE_KEYS, OWNED_KEYS, fit_pool, fit_to_size, source_module
from finetune.models.sources.from_own import backbone_of
from finetune.models.user_modules import OWN

# B = batch, S = input channels of the stem, H/W = image height/width, D = features


def build_backbone(
    name: str | nn.Module,
    *,
    weights: str | Path | None = None,
    source: str = "timm",
    stages: Mapping[str, Sequence[str]] | None = None,
    input_spec: InputSpec | None = None,
    pool: str | None = None,
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
        source: Library of the network, one of :data:`finetune.models.sources.NETWORK_SOURCES`; of no meaning for a module.
        stages: For a module: the child modules of each stage, in order from the input, for instance
            ``{"stem": ["conv1", "bn1"], "layer1": ["layer1"]}``. Together they hold every parameter once.
        input_spec: For a module: input that its weights expect. None: 224 x 224 pixels, three channels, ImageNet's mean
            and standard deviation.
        pool: For timm: how the last maps or tokens become features: ``cls`` (the class token), ``mean``, ``cls_mean`` (both,
            ``2D`` features), ``map`` (the network's attention pool), ``gem`` (generalised mean of a map). None: as the network
            was made, or the weights were saved.
        seed: Seed of random weights: the same seed gives the same weights; the global random state is left alone.
        **kwargs: Further keywords of the network's constructor (``drop_path_rate``, ``img_size``, ...).

    Raises:
        UserError: A source, name or keyword is unknown, the weights cannot be obtained or do not fit, or the stages do
            not cover the parameters of a module exactly once; the message names the parameter.
    """
    if isinstance(name, nn.Module):
        if kwargs:
            raise UserError(f"{next(iter(kwargs))}: not taken for a module of your own, which is built already.")
        backbone = backbone_of(name, stages=stages, input_spec=input_spec)
        fit_pool(backbone, pool)
        load_own_weights(backbone, weights)
        return backbone
    for key, value in (("stages", stages), ("input_spec", input_spec)):
        if value is not None:
            raise UserError(f"{key}: only for a module of your own. For {name!r} its library sets it. Leave it out.")
    backbone = _architecture(source, name, kwargs, seed=seed)
    weights = "imagenet" if weights is None else str(weights)
    if weights != "none":
        load_weights(backbone, weights)
    fit_pool(backbone, pool)
    return backbone


def load_own_weights(backbone: Backbone, weights: str | Path | None) -> None:
    """Load weights into a user-supplied module, which has none in a library.

    Args:
        backbone: Network of source ``own``.
        weights: A path; ``none`` or None keeps the weights that the module has.

    Raises:
        UserError: The weights are those of a library, or do not fit.
    """
    if weights is None or str(weights) == "none":
        return
    if str(weights) in WORDS or str(weights).isupper():
        raise UserError(
            f"backbone.weights={str(weights)!r}: no library has weights for {backbone.name}. Give a path, or "
            "'none' to keep the weights that the module has."
        )
    load_weights(backbone, str(weights))


def backbone_from_description(
    description: Mapping[str, Any], *, module: nn.Module | None = None, adapted: tuple[int, str] | None = None
) -> Backbone:
    """Build the architecture that :meth:`Backbone.describe` described, with random weights; download nothing.

    Args:
        description: Plain values.
        module: The network, if it is user-supplied; None for a library's.
        adapted: Channels and adaptation of the model that was described. A user-supplied network may have been adapted already.

    Raises:
        UserError: The description does not fit this version, or the module does not fit the description.
    """
    if missing := {"source", "name", "kwargs", "input_spec"} - set(description):
        raise UserError(f"model description: the backbone needs the keys {sorted(missing)}.")
    if description["source"] == OWN:
        if module is None:
            raise UserError(f"backbone: {description['name']} is a user-supplied class. Give a module of it.")
        kwargs = description["kwargs"]
        spec = InputSpec.from_dict(description["input_spec"])
        return backbone_of(
            module, stages=kwargs["stages"], input_spec=spec, target=kwargs.get("target"), adapted=adapted
        )
    with cache_alone():
        backbone = _architecture(description["source"], description["name"], description["kwargs"], seed=0)
    spec = InputSpec.from_dict(description["input_spec"])
    fit_pool(backbone, description.get("pool"))
    fit_to_size(backbone, spec.size)
    backbone.input_spec = spec
    return backbone


def _architecture(source: str, name: str, kwargs: Mapping[str, Any], *, seed: int) -> Backbone:
    """Build the network with seeded random weights."""
    module = source_module(source)
    for key in OWNED_KEYS:
        if key in kwargs:
            instead = "Use backbone.pool" if key == "global_pool" else "Leave it out"
            raise UserError(f"backbone.kwargs.{key}={kwargs[key]!r}: is set by finetune itself. {instead}.")
    for key in sorted(FILE_KEYS & set(kwargs)):
        raise UserError(
            f"backbone.kwargs.{key}={str(kwargs[key])[:200]!r}: would let {source} open a file or an address by itself, and "
            "execute what lies there. Give weights as backbone.weights=PATH; only their tensors are read."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            backbone: Backbone = module.architecture(name, dict(kwargs))
        except TypeError as error:
            raise UserError(f"backbone.kwargs={dict(kwargs)}: {name} cannot be built with them. {error}.") from None
    return backbone

"""Builds ResNets of transformers from a snapshot folder or a name on the hub such as ``microsoft/resnet-50``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import ResNetConfig, ResNetModel

from finetune.errors import UserError
from finetune.models.backbone import Backbone
from finetune.models.hub import UnavailableError, hub_file
from finetune.models.library_input_spec import spec_from_transformers
from finetune.models.stages import StageMap, groups_by_prefix
from finetune.models.weights import read_json

# Fields that define the network; the rest of a config.json concerns labels and provenance.
_FIELDS = (
    "embedding_size",
    "hidden_sizes",
    "depths",
    "layer_type",
    "hidden_act",
    "downsample_in_first_stage",
    "downsample_in_bottleneck",
)
_BASIC = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}
# The published checkpoints, so that their networks can be built without asking the hub.
_PUBLISHED: dict[str, dict[str, Any]] = {
    "microsoft/resnet-18": {**_BASIC, "depths": [2, 2, 2, 2]},
    "microsoft/resnet-34": {**_BASIC, "depths": [3, 4, 6, 3]},
    "microsoft/resnet-26": {"depths": [2, 2, 2, 2]},
    "microsoft/resnet-50": {"depths": [3, 4, 6, 3]},
    "microsoft/resnet-101": {"depths": [3, 4, 23, 3]},
    "microsoft/resnet-152": {"depths": [3, 8, 36, 3]},
}


def architecture(name: str, kwargs: dict[str, Any]) -> Backbone:
    """Build the ``ResNetModel`` of transformers with random weights.

    Args:
        name: Snapshot folder (with ``config.json``) or name on the hub.
        kwargs: Fields of ``ResNetConfig``; missing ones come from the folder, the hub, or the published configurations.

    Raises:
        UserError: There is no such configuration, it does not describe a ResNet, or a field is unknown.
    """
    if unknown := set(kwargs) - set(_FIELDS):
        raise UserError(f"backbone.kwargs: {sorted(unknown)} are not fields of ResNetConfig. Fields: {list(_FIELDS)}.")
    # a description holds every field, so that a bundle can be opened without the folder it came from
    fields = kwargs if set(kwargs) == set(_FIELDS) else {**_published_or_read(name), **kwargs}
    config = ResNetConfig(**fields)
    assert config.depths
    assert config.hidden_sizes
    net = ResNetModel(config)
    prefixes: dict[str, tuple[str, ...]] = {"stem": ("embedder.",)}
    prefixes |= {f"layer{i + 1}": (f"encoder.stages.{i}.",) for i in range(len(config.depths))}
    steps: dict[str, list[nn.Module]] = {"stem": [net.embedder]}
    steps |= {f"layer{i + 1}": [stage] for i, stage in enumerate(net.encoder.stages)}
    steps[f"layer{len(config.depths)}"] += [net.pooler, nn.Flatten(1)]
    return Backbone(
        net,
        source="transformers",
        name=name,
        kwargs={field: getattr(config, field) for field in _FIELDS},
        stage_map=StageMap(net, names=tuple(prefixes), groups=groups_by_prefix(net, prefixes)),
        num_features=config.hidden_sizes[-1],
        # from the preprocessor_config.json of microsoft/resnet-50; loading weights from a folder replaces it
        input_spec=spec_from_transformers({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}),
        first_convs=["embedder.embedder.convolution"],
        steps=steps,
    )


def load_imagenet(backbone: Backbone, member: str | None = None) -> None:
    """Load the weights of the snapshot folder or hub repository that the network is named after.

    Raises:
        UnavailableError: The weights are neither in the folder, nor cached, nor reachable.
        UserError: ``member`` is given: transformers has one set of weights per name.
    """
    from finetune.models.pretrained import load_folder, load_hub

    if member is not None:
        raise UserError(f"backbone.weights={member!r}: transformers has one set of weights per name. Use imagenet.")
    if Path(backbone.name).is_dir():
        load_folder(backbone, Path(backbone.name))
    else:
        load_hub(backbone, backbone.name)


def _published_or_read(name: str) -> dict[str, Any]:
    if name in _PUBLISHED:
        return _PUBLISHED[name]
    if Path(name).is_dir():
        path = Path(name) / "config.json"
        if not path.is_file():
            raise UserError(f"backbone.name={name!r}: a snapshot folder needs a config.json. Found none.")
    else:
        try:
            path = hub_file(name, ["config.json"])
        except UnavailableError as tried:
            raise UserError(
                f"backbone.name={name!r}: neither a snapshot folder nor a name whose configuration is available. "
                f"Tried {tried}. Known without a network: {', '.join(_PUBLISHED)}."
            ) from None
    config = read_json(path)
    if config.get("model_type") != "resnet":
        raise UserError(
            f"backbone.name={name!r}: its config.json says model_type={config.get('model_type')!r}, not 'resnet'."
        )
    return {field: config[field] for field in _FIELDS if field in config}


def network_alone(name: str, kwargs: Mapping[str, Any], channels: int, size: list[int]) -> Any:
    """Build the network with transformers alone; an exported backbone is loaded into it where this package cannot be imported."""
    import transformers

    return transformers.ResNetModel(transformers.ResNetConfig(**{**kwargs, "num_channels": channels}))

"""Checks the description of a network in a file, which somebody else may have written, before anything is built from it."""

from collections.abc import Mapping
from typing import Any

from finetune.errors import UserError
from finetune.input_spec import InputSpec
from finetune.models.heads import sizes_of_heads
from finetune.models.pools import POOLS
from finetune.models.sources import FILE_KEYS, NETWORK_SOURCES, OWNED_KEYS
from finetune.models.user_modules import OWN

MAX_HEAD_WIDTH = 10_000_000


def description_problems(model: Mapping[str, Any]) -> list[str]:
    """Return the problems with the ``model`` entry of ``model.json``, before anything is built from it.

    >>> description_problems({})[0]
    'model: needs the keys adapt, backbone, classes, head, input_spec'
    """
    required: dict[str, type] = {"adapt": str, "backbone": dict, "classes": list, "head": dict, "input_spec": dict}
    if set(model) - {"multi_label"} != set(required):  # bundles written before multi-label data lack that key
        return [f"model: needs the keys {', '.join(sorted(required))}"]
    required["multi_label"] = bool
    problems = [f"model.{key}: has the wrong type" for key in model if not isinstance(model[key], required[key])]
    if problems:
        return problems
    classes, backbone, head = model["classes"], model["backbone"], model["head"]
    if not all(isinstance(name, str) for name in classes) or len(set(classes)) != len(classes) or len(classes) < 2:
        problems.append("model.classes: must be at least two different names")
    if head.get("num_classes") != len(classes):
        problems.append(f"model.head.num_classes: must be the number of classes, {len(classes)}")
    sizes = [value for key, value in head.items() if key in ("num_features", "num_classes", *sizes_of_heads())]
    if not all(type(size) is int and 0 < size <= MAX_HEAD_WIDTH for size in sizes):
        problems.append(f"model.head: sizes must be whole numbers from 1 to {MAX_HEAD_WIDTH:,}")
    if not isinstance(head.get("name"), str):
        problems.append("model.head.name: must be the name of a head")
    elif head["name"] == OWN:
        problems += _own_problems(head, "model.head", class_key="class")
    problems += _spec_problems(model["input_spec"], "model.input_spec")
    return [*problems, *backbone_problems(backbone)]


def _own_problems(values: Mapping[str, Any], where: str, *, class_key: str) -> list[str]:
    """Return the problems with the description of a user-supplied module, apart from its sizes."""
    name, target = values.get(class_key), values.get("target")
    problems = []
    if not isinstance(name, str) or len(name) > 200 or not name.isprintable():
        problems.append(f"{where}.{class_key}: must be the name of a class")
    if not (target is None or (isinstance(target, dict) and isinstance(target.get("_target_"), str))):
        problems.append(f"{where}.target: must be an object with a _target_")
    return problems


def _spec_problems(values: Mapping[str, Any], where: str) -> list[str]:
    try:
        InputSpec.from_dict(values)
    except UserError as error:
        return [f"{where}: {str(error).removeprefix('input.').removeprefix('input: ')}"]
    return []


def backbone_problems(backbone: Mapping[str, Any]) -> list[str]:
    """Return the problems with the description of a backbone, which somebody else may have written.

    >>> backbone_problems({"source": "timm", "name": "resnet18", "kwargs": {"file": "x"}, "input_spec": {}})
    ['model.backbone.kwargs: file would read files or the network']
    """
    problems = []
    if set(backbone) - {"pool"} != {"source", "name", "kwargs", "input_spec"} or not isinstance(
        backbone["kwargs"], dict
    ):
        return ["model.backbone: needs the keys input_spec, kwargs, name, source"]
    if backbone["source"] not in (*NETWORK_SOURCES, OWN):
        problems.append(f"model.backbone.source: must be one of {', '.join((*NETWORK_SOURCES, OWN))}")
    if not isinstance(backbone["name"], str) or not isinstance(backbone["input_spec"], dict):
        return [*problems, "model.backbone: name must be a string, and input_spec an object"]
    if backbone["source"] == OWN:
        stages = backbone["kwargs"].get("stages")
        if not isinstance(stages, dict) or not all(
            isinstance(children, list) and all(isinstance(child, str) for child in children)
            for children in stages.values()
        ):
            problems.append("model.backbone.kwargs.stages: must be an object of lists of names")
        problems += _own_problems({**backbone["kwargs"], "name": backbone["name"]}, "model.backbone", class_key="name")
    if backbone.get("pool") not in (None, *POOLS):
        problems.append(f"model.backbone.pool: must be one of {', '.join(POOLS)}")
    if len(backbone["name"]) > 200 or not backbone["name"].isprintable():
        problems.append("model.backbone.name: must be the name of a network")
    refused = sorted(set(backbone["kwargs"]) & (FILE_KEYS | set(OWNED_KEYS)))
    if refused:
        problems.append(f"model.backbone.kwargs: {', '.join(refused)} would read files or the network")
    if backbone["source"] == "transformers" and "depths" not in backbone["kwargs"]:
        problems.append("model.backbone.kwargs: must hold the whole architecture, else it would be fetched")
    # the description of a single backbone may leave its input open
    if backbone["input_spec"]:
        problems += _spec_problems(backbone["input_spec"], "model.backbone.input_spec")
    return problems

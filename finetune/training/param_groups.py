"""Build named optimizer groups, ``<stage>/decay`` and ``<stage>/no_decay``, that cover the trainable parameters exactly."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from finetune.errors import UserError, shortened
from finetune.models.classifier import Classifier
from finetune.phases import ResolvedPhase

# groups as torch.optim.Optimizer takes them: params, lr, weight_decay, name, stage, and peak_lr, which Guards reads
ParamGroups = list[dict[str, Any]]
OptimizerFactory = Callable[[ParamGroups], torch.optim.Optimizer]
# state of an optimizer by parameter name; its entries depend on the optimizer
OptimizerState = Mapping[str, Mapping[str, Any]]


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Return whether weight decay applies: to weights of two or more dimensions, not to biases, norms, gates and tokens.

    The rule of timm's ``param_groups_weight_decay``, with class tokens and position embeddings added, which timm's
    networks list in ``no_weight_decay()``.
    """
    leaf = name.rsplit(".", 1)[-1]
    return parameter.ndim > 1 and leaf not in ("cls_token", "reg_token", "dist_token", "pos_embed")


def build_param_groups(classifier: Classifier, *, rates: Mapping[str, float], weight_decay: float) -> ParamGroups:
    """Build groups of the parameters that require a gradient, in the order of the network.

    Args:
        classifier: Network to which the phase has been applied.
        rates: Peak learning rate of each trainable stage.
        weight_decay: Weight decay of the ``decay`` groups; the others get 0.

    Returns:
        The groups, as torch's optimizers take them.

    Raises:
        UserError: A stage with a rate has no trainable parameter, or a trainable parameter has no rate.
    """
    by_group: dict[tuple[str, bool], list[nn.Parameter]] = {}
    seen: set[int] = set()
    uncovered = []
    for name, parameter in classifier.named_parameters():
        if not parameter.requires_grad or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        stage = classifier.stage_of(name)
        if stage not in rates:
            uncovered.append(name)
            continue
        by_group.setdefault((stage, decays(name, parameter)), []).append(parameter)
    if uncovered:
        raise UserError(
            f"{shortened(uncovered)}: trainable, but their stage has no learning rate. Stages with one: "
            f"{', '.join(rates)}. Freeze these parameters or give their stage a rate."
        )
    empty = [stage for stage in rates if not any(stage == matched for matched, _ in by_group)]
    if empty:
        raise UserError(
            f"{', '.join(empty)}: named as trainable, but without a trainable parameter. "
            "Take the stage out of the phase, or choose parameters that it has."
        )
    order = {stage: position for position, stage in enumerate(classifier.stages)}
    return [
        {
            "params": parameters,
            "lr": rates[stage],
            "weight_decay": weight_decay if decay else 0.0,
            "name": f"{stage}/{'decay' if decay else 'no_decay'}",
            "stage": stage,
            "peak_lr": rates[stage],
        }
        for (stage, decay), parameters in sorted(by_group.items(), key=lambda item: (order[item[0][0]], not item[0][1]))
    ]


def phase_param_groups(classifier: Classifier, phase: ResolvedPhase) -> ParamGroups:
    """Build the groups of a phase that has been applied to the classifier."""
    return build_param_groups(classifier, rates=phase.rates(), weight_decay=phase.weight_decay)


def check_cover(optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
    """Check that the optimizer holds every trainable parameter once and no other, by identity.

    Raises:
        UserError: Parameters are missing, doubled or not trainable; the message names them.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    trainable = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    problems = []
    if missing := [names[i] for i in trainable - set(held)]:
        problems.append(f"in no optimizer group: {shortened(sorted(missing))}")
    if foreign := [names.get(i, "(not in the network)") for i in set(held) - trainable]:
        problems.append(f"in the optimizer, though frozen: {shortened(sorted(foreign))}")
    if len(held) != len(set(held)):
        problems.append("a parameter is in two groups")
    if problems:
        raise UserError(f"optimizer: its groups must cover the trainable parameters exactly. {'; '.join(problems)}.")

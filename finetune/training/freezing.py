"""One meaning of frozen: no gradient and evaluation mode, so that neither weights nor buffers can move.

Since Lightning 2.2 the Trainer never calls ``train()`` itself and keeps the modes that it finds, and the modes are not in
a checkpoint. So the modes have one owner, :func:`apply_phase`, called before every fit, fresh or resumed.
"""

from collections.abc import Collection

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from finetune.models.classifier import Classifier
from finetune.training.phases import HEAD, Phase


def trainable_names(classifier: Classifier, *, train: Collection[str], parameters: str = "all") -> set[str]:
    """Names of the parameters that a phase trains, as in ``classifier.named_parameters()``.

    Args:
        classifier: The network.
        train: Trainable stages.
        parameters: ``all`` of the trainable backbone stages, or only their ``norms`` or ``gates``; the head always
            trains whole.
    """
    # gates scale what norms and head are fitted to, so these train with them
    kinds = {"norms": ("norms",), "gates": ("gates", "norms")}
    chosen = None if parameters == "all" else classifier.select(*kinds[parameters])
    return {
        name
        for name, _ in classifier.named_parameters()
        if (stage := classifier.stage_of(name)) in train and (chosen is None or stage == HEAD or name in chosen)
    }


def apply_phase(classifier: Classifier, phase: Phase) -> None:
    """Set the gradient flag of every parameter and the mode of every module to what a phase asks for.

    Frozen stages get no gradient and evaluation mode, BatchNorm and dropout included. Trainable stages get training
    mode, except BatchNorm where ``phase.batch_norm`` is ``eval``.
    """
    names = trainable_names(classifier, train=phase.train, parameters=phase.parameters)
    for name, parameter in classifier.named_parameters():
        parameter.requires_grad_(name in names)
        # a stale gradient would move a frozen parameter at the next step
        parameter.grad = None
    # modules that belong to no stage have neither weights nor randomness; evaluation is the mode that cannot surprise
    classifier.eval()
    for stage, modules in classifier.stage_modules().items():
        for module in modules:
            keep = isinstance(module, _NormBase) and phase.batch_norm == "eval"
            module.training = stage in phase.train and not keep


def wrong_modes(classifier: Classifier, phase: Phase) -> list[str]:
    """Names of modules and parameters whose mode or gradient flag is not the phase's; empty while all is well."""
    names = trainable_names(classifier, train=phase.train, parameters=phase.parameters)
    wrong = [name for name, parameter in classifier.named_parameters() if parameter.requires_grad != (name in names)]
    by_identity = {id(module): name for name, module in classifier.named_modules()}
    for stage, modules in classifier.stage_modules().items():
        for module in modules:
            keep = isinstance(module, _NormBase) and phase.batch_norm == "eval"
            if module.training != (stage in phase.train and not keep):
                wrong.append(by_identity[id(module)])
    return wrong


def tensors_of(classifier: Classifier, stages: Collection[str]) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers of some stages, by their names in the state dict; no copies."""
    return {name: tensor for name, tensor in classifier.state_dict().items() if classifier.stage_of(name) in stages}


def module_mode_flags(module: nn.Module) -> dict[str, bool]:
    """Training mode by module name, to be compared or restored."""
    return {name: inner.training for name, inner in module.named_modules()}

"""Freeze stages: no gradient and evaluation mode, so that neither weights nor buffers can move.

Since Lightning 2.2 the Trainer never calls ``train()`` itself and keeps the modes that modules already have, and a checkpoint
does not hold them. So the modes have one owner, :func:`apply_phase`, called before every fit, fresh or resumed.

``batch_norm`` decides whether running statistics of *trainable* stages move. The default, ``eval``, was chosen by
measurement. ResNet-18 was pretrained on formula images for 14 minutes on one core (these weights are not in a release). It was
fine-tuned at 32 pixels on 20 labelled images per class, through the default schedule's phases in 120 steps in all. Test accuracy
in % over three seeds, with standard error:

| data | batch | ``train`` | ``eval`` | ``eval`` - ``train``, paired |
|---|---|---|---|---|
| digits | 8 | 91.4 ± 0.4 | 94.8 ± 0.5 | 3.3 ± 0.2 |
| digits | 16 | 94.4 ± 0.9 | 96.3 ± 0.2 | 1.9 ± 0.8 |
| digits | 32 | 95.4 ± 0.8 | 96.5 ± 0.2 | 1.1 ± 0.6 |
| digits | 64 | 96.0 ± 0.5 | 97.0 ± 0.2 | 1.1 ± 0.4 |
| automata | 8 | 51.5 ± 0.3 | 56.3 ± 0.7 | 4.9 ± 0.6 |
| automata | 16 | 54.5 ± 1.7 | 58.4 ± 0.6 | 3.9 ± 1.2 |
| automata | 32 | 57.4 ± 1.4 | 60.0 ± 1.9 | 2.6 ± 1.9 |
| automata | 64 | 58.9 ± 1.3 | 60.9 ± 1.4 | 2.0 ± 1.3 |

    uv run python tests/benchmarks/batch_norm_modes.py --weights PATH --seeds 3

From random weights the statistics must move (``train``): those of a new network are 0 and 1.
"""

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from finetune.errors import UserError
from finetune.models.classifier import Classifier
from finetune.phases import HEAD, ResolvedPhase
from finetune.training.low_rank import LORA, adapted_layers, adapter_names


def trainable_names(classifier: Classifier, *, train: Collection[str], parameters: str = "all") -> set[str]:
    """Return the names of the parameters that a phase trains, as in ``classifier.named_parameters()``.

    Args:
        classifier: The network.
        train: Trainable stages.
        parameters: ``all`` of the trainable backbone stages, or only their ``norms``, ``bias`` or ``gates``, or the
            ``lora`` products that :func:`~finetune.training.low_rank.low_rank` has added; the head always trains whole.
    """
    if parameters == LORA:
        adapters = adapter_names(classifier)
        return {
            name
            for name, _ in classifier.named_parameters()
            if (stage := classifier.stage_of(name)) in train and (stage == HEAD or name in adapters)
        }
    chosen = None if parameters == "all" else classifier.select(parameters)
    return {
        name
        for name, _ in classifier.named_parameters()
        if (stage := classifier.stage_of(name)) in train and (chosen is None or stage == HEAD or name in chosen)
    }


def without_empty_stages(classifier: Classifier, phase: ResolvedPhase) -> ResolvedPhase:
    """Return the phase without the backbone stages that have no parameters of its kind, such as a stem without norms.

    Raises:
        UserError: The network has no parameters of that kind; for ``lora``, none in the stages of the phase.
    """
    if phase.parameters == "all" or phase.train == (HEAD,):
        return phase
    if phase.parameters == LORA:
        names = {f"{name}.weight" for name in adapted_layers(classifier, train=phase.train, rank=phase.lora_rank)}
        if not names:
            raise UserError(
                f"schedule.phases.parameters='{LORA}': {classifier.backbone.name!r} has no linear layers of more than "
                f"lora_rank={phase.lora_rank} rows and columns, nor such 1 x 1 convolutions, in {', '.join(phase.train)}. "
                f"Transformers and ConvNeXt have them. Set parameters=norms in phase {phase.name}, or train other stages."
            )
    else:
        names = trainable_names(classifier, train=phase.train, parameters=phase.parameters)
    filled = {HEAD, *map(classifier.stage_of, names)}
    return replace(phase, train=tuple(stage for stage in phase.train if stage in filled))


def in_training_mode(module: nn.Module, stage: str, phase: ResolvedPhase) -> bool:
    """Return whether a module of a stage is in training mode in a phase.

    Those of trainable stages are, except BatchNorm where ``phase.batch_norm`` is ``eval``.
    """
    keeps_statistics = isinstance(module, _NormBase) and phase.batch_norm == "eval"
    return stage in phase.train and not keeps_statistics


def apply_phase(classifier: Classifier, phase: ResolvedPhase) -> None:
    """Set the gradient flag of every parameter and the mode of every module to what a phase asks for.

    Frozen stages get no gradient and evaluation mode, BatchNorm and dropout included; see :func:`in_training_mode`.
    """
    names = trainable_names(classifier, train=phase.train, parameters=phase.parameters)
    for name, parameter in classifier.named_parameters():
        parameter.requires_grad_(name in names)
        # a stale gradient would move a frozen parameter at the next step
        parameter.grad = None
    # modules outside every stage have neither weights nor randomness, so evaluation is the safe mode for them
    classifier.eval()
    for stage, modules in classifier.stage_modules().items():
        for module in modules:
            module.training = in_training_mode(module, stage, phase)


def wrong_modes(classifier: Classifier, phase: ResolvedPhase) -> list[str]:
    """Return the names of modules and parameters whose mode or gradient flag is not the phase's."""
    names = trainable_names(classifier, train=phase.train, parameters=phase.parameters)
    wrong = [name for name, parameter in classifier.named_parameters() if parameter.requires_grad != (name in names)]
    by_identity = {id(module): name for name, module in classifier.named_modules()}
    for stage, modules in classifier.stage_modules().items():
        for module in modules:
            if module.training != in_training_mode(module, stage, phase):
                wrong.append(by_identity[id(module)])
    return wrong


def tensors_of(classifier: Classifier, stages: Collection[str]) -> dict[str, torch.Tensor]:
    """Return the parameters and persistent buffers of some stages by their names in the state dict, without copying them."""
    return {name: tensor for name, tensor in classifier.state_dict().items() if classifier.stage_of(name) in stages}


def module_mode_flags(module: nn.Module) -> dict[str, bool]:
    """Return the training flag of each module by name, to compare or restore them."""
    return {name: inner.training for name, inner in module.named_modules()}

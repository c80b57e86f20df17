"""Save and load the weights between phases.

A phase ends by loading the weights of its chosen epoch and writing all weights of the network, from which the next one starts.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from finetune.checksums import checked_path, remedy, verify
from finetune.distributed import is_rank_zero
from finetune.errors import UserError, first_line, shortened
from finetune.models.classifier import Classifier
from finetune.phases import ResolvedPhase
from finetune.run_folder import PhaseFolder
from finetune.safe_files import inside, load_tensors
from finetune.safetensors_writer import write_tensors
from finetune.training.callbacks.checkpoint_contents import check_best, check_tensors, errors_naming, saved_averages
from finetune.training.callbacks.checkpoints import read_checkpoint
from finetune.training.freezing import tensors_of
from finetune.training.staged_module import PREFIX, checkpoint_tensors


def save_weights(classifier: Classifier, path: Path) -> None:
    """Write all weights and buffers, with a checksum."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state_dict().items()}
    with checked_path(path) as part:
        write_tensors(part, state)


def load_weights(classifier: Classifier, path: Path) -> None:
    """Load all weights and buffers.

    Raises:
        UserError: The file is damaged, holds values that are not finite, or belongs to another network.
    """
    verify(path)
    state = load_tensors(inside(path.parent, path.name))
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UserError(f"{path}: damaged. It holds values that are not finite: {shortened(broken)}. {remedy(path)}.")
    try:
        classifier.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{path}: does not fit this run's network. {first_line(error).rstrip(':')}. {remedy(path)}."
        ) from error


def begin_from_start_weights(classifier: Classifier, path: Path) -> None:
    """Load the weights that a phase starts from if an earlier process wrote them; else write them."""
    if os.path.lexists(path):
        load_weights(classifier, path)
    elif is_rank_zero():
        save_weights(classifier, path)


def restore_chosen_epoch(classifier: Classifier, phase: ResolvedPhase, folder: PhaseFolder) -> None:
    """Load the weights that a phase passes on: those of its best or its last epoch, averaged if the phase averages.

    Raises:
        UserError: The checkpoint is missing or damaged, or belongs to another phase.
    """
    chosen = folder.best if phase.restore == "best" else folder.last
    checkpoint, own = read_checkpoint(chosen), tensors_of(classifier, phase.train)
    averages: Mapping[str, torch.Tensor] | None = None
    with errors_naming(chosen):
        check_best(checkpoint, phase=phase.name, weights=checkpoint_tensors(classifier, phase))
        if phase.restore == "last" and phase.ema_decay:
            averages = saved_averages(checkpoint)
        if averages is not None:
            check_tensors(averages, own, name="averages")
    state = averages or {name.removeprefix(PREFIX): tensor for name, tensor in checkpoint["state_dict"].items()}
    classifier.load_state_dict(state, strict=False)

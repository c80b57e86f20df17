"""Eyes on a running phase: what a user would want to hear about at once, each said once."""

import warnings
from collections.abc import Callable

import torch

from finetune.data.loading import Batch
from finetune.errors import RunError, shortened
from finetune.models.classifier import Classifier
from finetune.training.freezing import tensors_of, wrong_modes
from finetune.training.phases import Phase


class Watchers:
    """Checks that cost next to nothing in a step.

    Args:
        classifier: The network.
        phase: Its phase.
        file_of: Gives the file of a row of the index.
    """

    def __init__(self, *, classifier: Classifier, phase: Phase, file_of: Callable[[int], str] = str) -> None:
        self._classifier, self._phase, self._file_of = classifier, phase, file_of
        self._modes_checked = False
        self._frozen: dict[str, int] | None = None
        self._learning: set[str] = set()
        self._silent: set[str] = set()
        self._steps = 0
        self._told: set[str] = set()
        self._pending: tuple[torch.Tensor, Batch, int] | None = None

    def before_batch(self) -> None:
        """At the first batch: modes and gradient flags are the phase's; note what the frozen stages hold.

        Raises:
            RunError: Something switched a frozen part on, or a trainable one off.
        """
        if self._modes_checked:
            return
        if wrong := wrong_modes(self._classifier, self._phase):
            raise RunError(
                f"phase {self._phase.name!r}: {shortened(wrong)} no longer in the mode that the phase asks for. "
                "A callback or an overridden train() has changed it; nothing was trained."
            )
        self._modes_checked = True
        self._frozen = self._fingerprints()

    def after_loss(self, loss: torch.Tensor, batch: Batch, step: int) -> None:
        """Refuse a loss that is not a number. On a GPU the answer is read one batch later, so that nothing waits.

        Raises:
            RunError: Names the step and the files of its batch.
        """
        if loss.device.type == "cpu":
            self._check_finite(loss, batch, step)
            return
        previous, self._pending = self._pending, (loss.detach(), batch, step)
        if previous is not None:
            self._check_finite(*previous)

    def _check_finite(self, loss: torch.Tensor, batch: Batch, step: int) -> None:
        if torch.isfinite(loss):
            return
        files = [self._file_of(row) for row in batch.rows.tolist()]
        raise RunError(
            f"loss={float(loss.detach())}: not finite at step {step} of phase {self._phase.name!r} (batch {batch.position.step} "
            f"of epoch {batch.position.epoch}). Its images: {shortened(files)}. The last checkpoint is good. Lower "
            "schedule.lr, set schedule.gradient_clip=1, or look at these images."
        )

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note which groups have a gradient; a group is looked at until it has shown one."""
        self._steps += 1
        for group in optimizer.param_groups:
            if group["name"] in self._learning or group["peak_lr"] == 0:
                continue
            if any(p.grad is not None and bool(p.grad.count_nonzero()) for p in group["params"]):
                self._learning.add(group["name"])
                self._silent.discard(group["name"])
            else:
                self._silent.add(group["name"])

    def after_epoch(self, epoch: int) -> None:
        """Hold that frozen tensors are what they were; tell groups that learned nothing in a whole epoch.

        Raises:
            RunError: A frozen tensor changed.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._check_finite(*pending)
        # one or two steps prove nothing: a residual branch whose last gate starts at zero has no gradient at the first
        for name in sorted(self._silent - self._told) if self._steps > 2 else ():
            self._told.add(name)
            warnings.warn(
                f"optimizer group {name!r} has a positive learning rate and had no gradient in the whole of epoch "
                f"{epoch} of phase {self._phase.name!r}: its parameters do not learn.",
                stacklevel=2,
            )
        if self._frozen is not None:
            now = self._fingerprints()
            moved = [name for name, value in self._frozen.items() if now[name] != value]
            if moved:
                raise RunError(
                    f"phase {self._phase.name!r}: frozen, yet changed: {shortened(moved)}. A callback or own code writes "
                    "to them; the last checkpoint is from before this epoch."
                )

    def _fingerprints(self) -> dict[str, int]:
        """A number for each tensor of the frozen stages that changes when one of its bits does."""
        whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        return {
            name: int(tensor.detach().contiguous().view(whole[tensor.element_size()]).sum(dtype=torch.int64))
            for name, tensor in tensors_of(self._classifier, self._phase.frozen).items()
        }

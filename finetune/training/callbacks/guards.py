"""Guard a fit: stop it at once when something is wrong, and warn once about groups that do not learn."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from finetune.errors import RunError, shortened
from finetune.models.classifier import Classifier
from finetune.phases import ResolvedPhase
from finetune.training.freezing import tensors_of, wrong_modes


class _Step(NamedTuple):
    """A batch and its position in the fit."""

    batch: Any
    batch_idx: int
    epoch: int
    global_step: int


class Guards(Callback):
    """Checks modes, that losses are finite, that every group gets gradients and that frozen tensors do not change.

    The checks cost almost nothing per step.

    Args:
        classifier: Network that trains.
        phase: Phase that names the trainable and the frozen stages.
        file_of: Function that returns the file of a row of the index; None if batches do not hold rows.
    """

    def __init__(
        self, *, classifier: Classifier, phase: ResolvedPhase, file_of: Callable[[int], str] | None = None
    ) -> None:
        self._classifier, self._phase, self._file_of = classifier, phase, file_of
        self._modes_checked = False
        self._frozen: dict[str, int] | None = None
        self._learning: set[str] = set()
        self._silent: set[str] = set()
        self._steps = 0
        self._warned: set[str] = set()
        self._step: _Step | None = None
        self._pending: tuple[torch.Tensor, _Step] | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Check modes and gradient flags at the first batch, and record the frozen tensors.

        Raises:
            RunError: A frozen part has been set to train, or a trainable part has been frozen.
        """
        self._step = _Step(batch, batch_idx, trainer.current_epoch, trainer.global_step)
        if self._modes_checked:
            return
        if wrong := wrong_modes(self._classifier, self._phase):
            raise RunError(
                f"phase {self._phase.name!r}: {shortened(wrong)} no longer in the mode that the phase asks for. "
                "A callback or an overridden train() has changed it; nothing was trained."
            )
        self._modes_checked = True
        self._frozen = self._fingerprints()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Stop on a loss that is not finite; on a GPU the loss is read one batch later, so that nothing waits for it.

        Raises:
            RunError: The loss is not finite; the message names the step and the files of its batch.
        """
        assert self._step is not None
        if loss.device.type == "cpu":
            self._check_finite(loss, self._step)
            return
        previous, self._pending = self._pending, (loss.detach(), self._step)
        if previous is not None:
            self._check_finite(*previous)

    def _check_finite(self, loss: torch.Tensor, step: _Step) -> None:
        if torch.isfinite(loss):
            return
        if self._file_of is None:
            advice = "Lower lr, give the Trainer gradient_clip_val=1, or look at the images of this batch."
        else:
            files = [self._file_of(row) for row in step.batch.rows.tolist()]
            advice = (
                f"Its images: {shortened(files)}. The last checkpoint, if there is one, is good. Lower schedule.lr, set "
                "schedule.gradient_clip=1, or look at these images."
            )
        raise RunError(
            f"loss={float(loss.detach())}: not finite at step {step.global_step} of phase {self._phase.name!r} (batch "
            f"{step.batch_idx} of epoch {step.epoch}). {advice}"
        )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what an epoch has come to before it is validated and saved."""
        if trainer.state.fn == "fit":
            self.require_finite(trainer.global_step)

    def require_finite(self, step: int) -> None:
        """Check that the last loss and the trainable weights are finite, before a checkpoint replaces one in which they are.

        Args:
            step: Optimizer steps of the phase so far.

        Raises:
            RunError: They are not.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._check_finite(*pending)
        trained = [(name, p) for name, p in self._classifier.named_parameters() if p.requires_grad]
        if not trained or bool(torch.stack([parameter.isfinite().all() for _, parameter in trained]).all()):
            return
        broken = {self._classifier.stage_of(name) for name, parameter in trained if not parameter.isfinite().all()}
        stages = shortened([stage for stage in self._phase.train if stage in broken])
        advice = (
            "Lower lr, or give the Trainer gradient_clip_val=1."
            if self._file_of is None
            else "The last checkpoint, if there is one, is from before it. Lower schedule.lr, or set schedule.gradient_clip=1."
        )
        raise RunError(f"phase {self._phase.name!r}: weights of {stages} are not finite after step {step}. {advice}")

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Record which groups have had a gradient; each group is checked until its first one."""
        self._steps += 1
        for group in optimizer.param_groups:
            if group["name"] in self._learning or group["peak_lr"] == 0:
                continue
            if any(p.grad is not None and bool(p.grad.count_nonzero()) for p in group["params"]):
                self._learning.add(group["name"])
                self._silent.discard(group["name"])
            else:
                self._silent.add(group["name"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that frozen tensors have not changed, and warn about groups that had no gradient in the whole epoch.

        Raises:
            RunError: A frozen tensor has changed.
        """
        # there may be no validation, where the Trainer is the user's
        self.require_finite(trainer.global_step)
        # one or two steps prove nothing: a residual branch whose last gate starts at zero gets no gradient at first
        for name in sorted(self._silent - self._warned) if self._steps > 2 else ():
            self._warned.add(name)
            warnings.warn(
                f"optimizer group {name!r} has a positive learning rate but had no gradient during epoch "
                f"{trainer.current_epoch} of phase {self._phase.name!r}: its parameters do not learn.",
                stacklevel=2,
            )
        if self._frozen is not None:
            now = self._fingerprints()
            moved = [name for name, value in self._frozen.items() if now[name] != value]
            if moved:
                raise RunError(
                    f"phase {self._phase.name!r}: frozen, yet changed: {shortened(moved)}. A callback or your own code "
                    "writes to them; the last checkpoint is from before this epoch."
                )

    def _fingerprints(self) -> dict[str, int]:
        """Return the sum of the bits of each tensor of the frozen stages, taken as whole numbers.

        A write by a callback or an optimizer changes it; values that only change places do not.
        """
        whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        return {
            name: int(tensor.detach().contiguous().view(whole[tensor.element_size()]).sum(dtype=torch.int64))
            for name, tensor in tensors_of(self._classifier, self._phase.frozen).items()
        }

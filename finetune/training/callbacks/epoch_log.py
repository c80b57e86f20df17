"""Log one row of metrics per epoch: training loss and accuracy, validation, rates and gradient norms."""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from finetune.results import EpochRow, Offset
from finetune.training.callbacks.gradient_norms import GradientNorms
from finetune.training.double_precision import device_of_doubles, doubles
from finetune.training.run_loggers import log_row


class EpochLog(Callback):
    """Sums loss and accuracy over the batches of an epoch, and logs a row when the epoch ends.

    A checkpoint holds the rows, and the sums of an epoch that has begun: one entry per process, because adding them up at a
    checkpoint would round differently from adding them up at the end of the epoch.

    Args:
        phase: Name of the phase.
        offset: Epochs and optimizer steps of the phases before, for the axes of logs.
        accuracy: Whether to log the training accuracy; mixed images have none.
        norms: Callback that measures the gradient norms.
    """

    def __init__(self, *, phase: str, offset: Offset, accuracy: bool, norms: GradientNorms) -> None:
        self.rows: list[EpochRow] = []
        self._phase, self._offset, self._accuracy, self._norms = phase, offset, accuracy, norms
        # sum of losses, number of correct predictions and number of images of the epoch so far
        self._sums = torch.zeros(3, dtype=torch.float64)
        # the sums of every process from a checkpoint, kept until the rank of this process is known
        self._saved_sums: torch.Tensor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore this process's sums, and move them to the device."""
        if (saved := self._saved_sums) is not None:
            self._saved_sums = None
            if len(saved) == trainer.world_size:
                self._sums = saved[trainer.global_rank]
            elif trainer.global_rank == 0:
                self._sums = saved.sum(0)
        self._sums = self._sums.to(device_of_doubles(pl_module.device))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the sums; Lightning does not call this when it resumes inside an epoch."""
        self._sums.zero_()

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Add a batch to the sums."""
        losses_B, right = outputs["losses"], doubles(outputs["right"].sum())
        self._sums += torch.stack([doubles(losses_B.sum()), right, torch.ones_like(right) * len(losses_B)])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the row of the epoch, and send its values to the loggers."""
        loss, right, images = self._sums_by_process().sum(0).tolist()
        values: dict[str, float] = {
            "train/loss": loss / images,
            **({"train/acc": right / images} if self._accuracy else {}),
            **{name: float(value) for name, value in trainer.callback_metrics.items() if "val/" in name},
            **{f"lr/{group['name']}": group["lr"] for group in trainer.optimizers[0].param_groups},
            **{f"grad/{stage}": norm for stage, norm in self._norms.epoch().items()},
        }
        row = EpochRow(
            phase=self._phase,
            epoch=self._offset.epochs + trainer.current_epoch,
            step=self._offset.steps + trainer.global_step,
            values=values,
        )
        self.rows.append(row)
        log_row(trainer.loggers, row)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, and the sums of every process; Lightning calls this on all processes."""
        return {"rows": [row.to_plain() for row in self.rows], "sums": self._sums_by_process().tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the rows and the sums."""
        self.rows = [EpochRow.from_plain(row) for row in state_dict["rows"]]
        self._saved_sums = torch.tensor(state_dict["sums"], dtype=torch.float64)

    def _sums_by_process(self) -> torch.Tensor:
        """Return the sums of every process (world, 3), the same on all of them."""
        if not (dist.is_available() and dist.is_initialized()):
            return self._sums.clone()[None]
        gathered = [torch.zeros_like(self._sums) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, self._sums)
        return torch.stack(gathered)

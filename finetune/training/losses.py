"""The training losses on logits, and mixup and cutmix of images with their targets."""

# B = batch, C = input channels, H/W = image height/width, K = classes

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (the name that torch's own pages use)
from torch import nn
from torchvision.transforms import v2

from finetune.errors import UserError
from finetune.training.loss_kinds import LOSSES

Mixer = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class _Loss(nn.Module):
    """Holds the settings of both losses."""

    class_weights: torch.Tensor | None

    def __init__(
        self,
        *,
        name: str = "cross_entropy",
        label_smoothing: float = 0.0,
        class_weights: torch.Tensor | None = None,
        **specific: float,
    ) -> None:
        super().__init__()
        self._weigh, self._specific = LOSSES[name].weigh, specific
        self._smoothing = label_smoothing
        # settings, not state: they must not enter a checkpoint
        self.register_buffer("class_weights", class_weights, persistent=False)


class TrainingLoss(_Loss):
    """Computes the cross-entropy of each image; the caller takes the mean over images and processes.

    Args:
        name: A key of :data:`finetune.training.loss_kinds.LOSSES`.
        label_smoothing: Share of the target spread over all classes (Szegedy et al. 2016).
        class_weights: One weight per class (K,), or None. The loss of an image is multiplied by its class's weight; unlike
            ``torch.nn.functional.cross_entropy`` the mean is over images, so that a batch's scale does not depend on
            which classes it holds.
        specific: Settings that this loss alone has.
    """

    def forward(self, logits_BK: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the losses (B,).

        Args:
            logits_BK: Logits.
            targets: Class numbers (B,), or class shares (B, K) from mixing.
        """
        count = logits_BK.shape[1]
        shares_BK = F.one_hot(targets, count).to(logits_BK.dtype) if targets.ndim == 1 else targets
        shares_BK = shares_BK * (1 - self._smoothing) + self._smoothing / count
        logs_BK = F.log_softmax(logits_BK, dim=1)
        losses_BK = -shares_BK * logs_BK
        if self._weigh is not None:
            losses_BK = losses_BK * self._weigh(1 - logs_BK.exp(), self._specific)
        if self.class_weights is not None:
            losses_BK = losses_BK * self.class_weights
        return losses_BK.sum(1)


class MultiLabelLoss(_Loss):
    """Computes the binary cross-entropy of each image, the mean over its classes, for images of several classes or none.

    Args:
        name: A key of :data:`finetune.training.loss_kinds.LOSSES`.
        label_smoothing: Moves each target towards a half: 0 and 1 become ``s / 2`` and ``1 - s / 2``.
        class_weights: Weight of the positive images of each class (K,), as ``pos_weight`` of
            ``torch.nn.functional.binary_cross_entropy_with_logits``; or None.
        specific: Settings that this loss alone has.
    """

    def forward(self, logits_BK: torch.Tensor, targets_BK: torch.Tensor) -> torch.Tensor:
        """Return the losses (B,).

        Args:
            logits_BK: Logits.
            targets_BK: Zeros and ones, or shares from mixing.
        """
        shares_BK = targets_BK.to(logits_BK.dtype) * (1 - self._smoothing) + self._smoothing / 2
        positive_BK = -shares_BK * F.logsigmoid(logits_BK)
        negative_BK = -(1 - shares_BK) * F.logsigmoid(-logits_BK)
        if self._weigh is not None:
            positive_BK = positive_BK * self._weigh((-logits_BK).sigmoid(), self._specific)
            negative_BK = negative_BK * self._weigh(logits_BK.sigmoid(), self._specific)
        if self.class_weights is not None:
            positive_BK = positive_BK * self.class_weights
        return (positive_BK + negative_BK).mean(1)


class UserLoss(nn.Module):
    """Adapts a user-supplied loss to a loss of each image.

    Args:
        loss: Module from logits (B, K) and targets, (B,) or (B, K), to one number for the batch, or to losses (B,). One number
            counts for every image, as the mean of a batch does.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits_BK: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return losses (B,).

        Raises:
            UserError: The loss returns neither one number nor one for each image.
        """
        # binary_cross_entropy_with_logits takes float targets; class numbers stay integers
        targets = targets.to(logits_BK.dtype) if targets.ndim == 2 else targets
        value: torch.Tensor = self.loss(logits_BK, targets)
        if value.ndim == 0:
            return value.expand(len(logits_BK))
        if value.shape != (len(logits_BK),):
            raise UserError(
                f"loss: {type(self.loss).__name__} must give one number, or one for each image. For {len(logits_BK)} images "
                f"it gave {tuple(value.shape)}. Reduce the others, for instance by reduction='mean'."
            )
        return value


def build_mixer(*, mixup: float, cutmix: float, num_classes: int) -> Mixer | None:
    """Build torchvision's MixUp (Zhang et al. 2018) and CutMix (Yun et al. 2019); with both, each batch gets one of them.

    Args:
        mixup: Alpha of mixup's Beta distribution; 0 turns mixup off.
        cutmix: Alpha of cutmix's Beta distribution; 0 turns cutmix off.
        num_classes: Classes K; mixed targets have shape (B, K).

    Returns:
        A function of images (B, C, H, W) and targets (B,) or, for several labels, (B, K); None if both are off. It draws
        from torch's global generator.
    """
    mixers: list[Mixer] = []
    if mixup:
        mixers.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
    if cutmix:
        mixers.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
    if len(mixers) == 2:
        both: Mixer = v2.RandomChoice(mixers)
        return both
    return mixers[0] if mixers else None

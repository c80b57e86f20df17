"""Collect a network's outputs on a split: logits of all images, embeddings of a sample, over all processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from finetune.checksums import checked_path
from finetune.results import SplitMetrics
from finetune.safetensors_writer import write_tensors

# largest number of images of a split whose embeddings are kept: as many as the report's map can show
EMBEDDED = 2000


class SplitOutputs:
    """Collects the outputs of one split batch by batch.

    Args:
        embedded_rows: Rows of the index whose embeddings are kept.
    """

    def __init__(self, embedded_rows: torch.Tensor | None = None) -> None:
        self._embedded_rows = torch.zeros(0).long() if embedded_rows is None else embedded_rows
        self._batches: list[dict[str, torch.Tensor]] = []

    def add(
        self, *, rows: torch.Tensor, targets: torch.Tensor, logits_BK: torch.Tensor, features_BD: torch.Tensor
    ) -> None:
        """Add a batch."""
        rows = rows.cpu()
        kept = torch.isin(rows, self._embedded_rows)
        self._batches.append(
            {
                "rows": rows,
                "targets": targets.cpu(),
                "logits": logits_BK.float().cpu(),
                "embedded_rows": rows[kept],
                "embeddings": features_BD[kept.to(features_BD.device)].float().cpu(),
            }
        )

    def gather(self) -> dict[str, torch.Tensor]:
        """Return the outputs in row order, the same on every process; call it while the processes are connected."""
        batches = self._batches
        if dist.is_available() and dist.is_initialized():
            by_rank: list[list[dict[str, torch.Tensor]]] = [[]] * dist.get_world_size()
            dist.all_gather_object(by_rank, batches)
            batches = [batch for of_rank in by_rank for batch in of_rank]
        if not batches:
            return {}
        whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        order, embedded = whole["rows"].argsort(), whole["embedded_rows"].argsort()
        return {name: t[embedded if name.startswith("embed") else order].contiguous() for name, t in whole.items()}


@dataclass(frozen=True, kw_only=True)
class SplitEvaluation:
    """Metrics and outputs of a network on one split.

    Args:
        metrics: Metrics of the split.
        outputs: Outputs as :meth:`SplitOutputs.gather` returns them.
    """

    metrics: SplitMetrics
    outputs: Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Validation(SplitEvaluation):
    """Metrics and outputs of one validation of a fit.

    Args:
        step: Optimizer steps that the phase had made before it.
    """

    step: int


def sample_of(rows: torch.Tensor, most: int = EMBEDDED) -> torch.Tensor:
    """Return at most ``most`` of the given rows, spread evenly over them.

    >>> sample_of(torch.arange(10), 4).tolist()
    [0, 3, 6, 9]
    """
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most).round().long()]


def save_outputs(path: Path, splits: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Write the outputs of splits; :data:`finetune.file_schema.EVALUATION_TENSORS` describes each tensor."""
    tensors = {f"{split}/{name}": tensor for split, outputs in splits.items() for name, tensor in outputs.items()}
    with checked_path(path) as part:
        write_tensors(part, tensors)

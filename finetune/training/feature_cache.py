"""The frozen prefix of a phase, computed once: activations after its last stage, of every view, on disk."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from finetune.data.datamodule import Batch, ImageDataModule
from finetune.data.reading import read_by
from finetune.data.sampling import Rows
from finetune.errors import RunError
from finetune.feature_store import Entry, Layout, opened
from finetune.models.classifier import Classifier
from finetune.models.weights import state_hash
from finetune.training.cache_choice import CacheChoice
from finetune.training.phases import Phase
from finetune.versions import versions

# rows computed, checked and claimed together: large enough for the processor, small enough to share among processes
CHUNK_ROWS = 64


class Prefix:
    """From uint8 images to activations after a stage, without an autograd graph.

    In half precision BatchNorm is folded into the convolutions where torch.fx can read the network; in single precision
    it is not, so that the activations are those of the network to the bit.
    """

    def __init__(self, classifier: Classifier, boundary: str, *, fold: bool) -> None:
        self._classifier = classifier
        self._net, _ = classifier.backbone.split(boundary)
        self.folded = False
        if fold:
            spec = classifier.input_spec
            device = next(classifier.parameters()).device
            example = torch.randint(0, 256, (2, spec.channels, *spec.size), dtype=torch.uint8, device=device)
            with torch.autocast(device.type, enabled=False):
                self._net, self.folded = folded(self._net, classifier.prepare(example))

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Activations of a batch, on the device of the images."""
        activations: Tensor = self._net(self._classifier.prepare(images))
        return activations


@torch.no_grad()
def folded(net: nn.Module, example: Tensor) -> tuple[nn.Module, bool]:
    """A copy with BatchNorm folded into convolutions, or the network itself where that cannot be done.

    Args:
        net: In evaluation mode.
        example: An input; the copy is taken only where it computes the same, within 1e-4 of the largest output in fp32.

    Returns:
        The network to run, and whether it was folded.
    """
    from torch.fx.experimental.optimization import fuse

    try:
        fused: nn.Module = fuse(net)
        expected, found = net(example), fused(example)
    except Exception:  # torch.fx raises its own errors and any that a network's code raises under tracing
        return net, False
    if float((expected - found).abs().max()) > 1e-4 * float(expected.abs().max()):
        return net, False
    return fused.to(memory_format=torch.channels_last), True


class FeatureCache:
    """Cached activations of one phase; the data module reads its batches from it.

    Args:
        classifier: With the phase applied and its prefix's weights loaded.
        phase: The phase.
        choice: Boundary and number of views.
        data: Makes the views that are missing.
        seed: Of the run.
        limit_bytes: Of the whole cache.
        say: Takes a line for the user.
    """

    def __init__(
        self,
        *,
        classifier: Classifier,
        phase: Phase,
        choice: CacheChoice,
        data: ImageDataModule,
        seed: int,
        limit_bytes: int,
        say: Callable[[str], None],
    ) -> None:
        assert choice.boundary is not None
        self.boundary, self.random_views = choice.boundary, phase.augment != "none"
        self._classifier, self._phase, self._data = classifier, phase, data
        self._seed, self._limit, self._say = seed, limit_bytes, say
        self._views = (choice.views or 1) if self.random_views else 1
        self._train: list[Entry] = []
        self._val: Entry | None = None
        self._shape: tuple[int, ...] = ()
        self._dtype = torch.float32

    def prepare(self, *, device: torch.device, context: Callable[[], AbstractContextManager[Any]]) -> None:
        """Open what is there, compute what is missing together with the other processes of the run.

        Args:
            device: Where the prefix runs.
            context: Makes the context of the run's precision.

        Raises:
            RunError: The disk filled up since the plan was made.
        """
        self.close()
        self._classifier.to(device)
        spec = self._classifier.input_spec
        with context():
            probe = torch.zeros(1, spec.channels, *spec.size, dtype=torch.uint8, device=device)
            plain = Prefix(self._classifier, self.boundary, fold=False)(probe)
            prefix = Prefix(self._classifier, self.boundary, fold=plain.dtype != torch.float32)
        self._shape, self._dtype = tuple(plain.shape[1:]), plain.dtype
        base = self._parts(device, folded=prefix.folded)
        found = computed = 0
        for view in range(self._views):
            view_parts: dict[str, Any] = {"augment": self._phase.augment}
            if self.random_views:
                view_parts |= {"seed": self._seed, "phase": self._phase.name, "view": view}
            rows = self._data.source.index.rows("train")
            entry = self._entry({**base, "split": "train", "view": view_parts}, len(rows), "train", view)
            self._train.append(entry)
            loaded = self._fill(entry, rows, prefix, device, context, view=view if self.random_views else None)
            found, computed = found + len(rows) - loaded, computed + loaded
        rows = self._data.source.index.rows("val")
        entry = self._entry({**base, "split": "val", "view": {"augment": "none"}}, len(rows), "val", 0)
        self._val = entry
        loaded = self._fill(entry, rows, prefix, device, context, view=None)
        found, computed = found + len(rows) - loaded, computed + loaded
        # places of the index's rows in the entries
        self._places = np.zeros(len(self._data.source.index), np.int64)
        for split in ("train", "val"):
            rows = self._data.source.index.rows(split)
            self._places[rows] = np.arange(len(rows))
        size = sum(entry.layout.bytes for entry in (*self._train, self._val)) / 1e6
        self._say(f"  cache: {computed} activations after {self.boundary} computed, {found} found; {size:.1f} MB")

    def _parts(self, device: torch.device, *, folded: bool) -> dict[str, Any]:
        """All that an activation depends on, but for the split and the view."""
        classifier, source = self._classifier, self._data.source
        stages = classifier.backbone.stages[: classifier.backbone.stages.index(self.boundary) + 1]
        state = {n: t for n, t in classifier.state_dict().items() if classifier.stage_of(n) in stages}
        model = {
            key: value for key, value in classifier.describe().items() if key in ("backbone", "input_spec", "adapt")
        }
        return {
            "weights": state_hash(state),
            "model": model,
            "boundary": self.boundary,
            "data": source.index.fingerprint(),
            "reading": {**read_by(source), "channels": source.channels},
            "dtype": str(self._dtype),
            "folded": folded,
            "device": device.type,
            "versions": {name: version for name, version in versions().items() if name != "finetune"},
        }

    def _entry(self, parts: dict[str, Any], rows: int, split: str, view: int) -> Entry:
        layout = Layout(
            rows=rows, shape=self._shape, dtype=str(self._dtype).removeprefix("torch."), chunk_rows=CHUNK_ROWS
        )
        about = {
            "backbone": self._classifier.backbone.name,
            "boundary": self.boundary,
            "split": split,
            "augment": parts["view"]["augment"],
            "view": view,
            "rows": rows,
        }
        entry = opened(parts, layout=layout, about=about, limit_bytes=self._limit, say=self._say)
        if entry is None:
            raise RunError(
                f"cache: the {layout.bytes / 1e6:.0f} MB of phase {self._phase.name!r} find no room any more. Make room, "
                "or point FINETUNE_CACHE at another disk, and go on with: finetune resume RUN"
            )
        return entry

    def _fill(
        self,
        entry: Entry,
        rows: Rows,
        prefix: Prefix,
        device: torch.device,
        context: Callable[[], AbstractContextManager[Any]],
        *,
        view: int | None,
    ) -> int:
        """Compute the chunks that nobody has; returns the number of rows computed here."""
        if not entry.missing:
            return 0
        computed = 0
        chunks = ((chunk, rows[entry.layout.rows_of(chunk)]) for chunk in entry.claimed())
        loader: DataLoader[Batch] = self._data.views_dataloader(
            chunks, augment=self._phase.augment if view is not None else "none", phase=self._phase.name, view=view or 0
        )
        for batch in loader:
            with context():
                activations = prefix(batch.images.to(device, non_blocking=True))
            entry.write(batch.position.step, _bytes(activations.to("cpu", self._dtype)))
            computed += len(batch.rows)
        entry.flush()
        return computed

    def _tensor(self, values: Any) -> Tensor:
        flat = torch.from_numpy(values).view(self._dtype)
        return flat.view(-1, *self._shape)

    def train(self, views: Rows, rows: Rows) -> Tensor:
        """Activations (B, ...) of some rows of the index, each of one of its views."""
        places = self._places[rows]
        if len(self._train) == 1:
            return self._tensor(self._train[0].read(places))
        values = np.empty((len(rows), self._train[0].layout.row_bytes), np.uint8)
        for view in np.unique(views):
            chosen = views == view
            values[chosen] = self._train[view].read(places[chosen])
        return self._tensor(values)

    def val(self, rows: Rows) -> Tensor:
        """Activations (B, ...) of the evaluation view of validation rows."""
        assert self._val is not None
        return self._tensor(self._val.read(self._places[rows]))

    def close(self) -> None:
        """Let go of the entries."""
        for entry in (*self._train, self._val):
            if entry is not None:
                entry.close()
        self._train, self._val = [], None


def _bytes(activations: Tensor) -> Any:
    """Rows as bytes (B, row bytes)."""
    return activations.contiguous().view(len(activations), -1).view(torch.uint8).numpy()

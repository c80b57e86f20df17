"""Choose the precision for ``trainer.precision=auto``: bf16 if this machine runs the network faster in it, else fp32."""

import contextlib
import logging
import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.cache_dir import cache_folder
from finetune.checksums import CHECKSUMS, verify, write_checked_json
from finetune.errors import FileError
from finetune.models.classifier import Classifier
from finetune.models.modes import evaluating
from finetune.one_thread import one_thread
from finetune.safe_files import read_json

log = logging.getLogger(__name__)

FULL, HALF = "32-true", "bf16-mixed"
# smallest speed-up that justifies bf16: large enough that a trial under load chooses the same
_WORTH = 1.2
# on images of 16 pixels, torch 2.15's bf16 kernels on a CPU gave gradients that are not finite, and were no faster
_SMALLEST_PX = 64
_TRIAL_S = 0.5
# above this ratio of wall-clock to CPU time, other programs competed for the CPU
_LOADED = 1.2


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The precision that a run computes in.

    Args:
        name: Name of the precision, as Lightning's Trainer takes it.
        why: Reason, in words.
    """

    name: str
    why: str

    @property
    def _half(self) -> torch.dtype:
        return torch.bfloat16 if "bf16" in self.name else torch.float16

    @property
    def weights_dtype(self) -> torch.dtype:
        """Return the dtype of the weights."""
        if self.name.startswith("64"):
            return torch.float64
        return self._half if "16" in self.name and self.name.endswith("true") else torch.float32

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context in which the operations of mixed precision run; in another precision it changes nothing."""
        mixed = "16" in self.name and not self.name.endswith("true")
        return torch.autocast(device.type, self._half, enabled=mixed)


def choose_precision(setting: str, classifier: Classifier, *, accelerator: str) -> Precision:
    """Choose the precision that a run computes in.

    Args:
        setting: ``trainer.precision``: ``auto``, or a precision of Lightning's.
        classifier: The network, which is left unchanged.
        accelerator: ``trainer.accelerator``.
    """
    if setting != "auto":
        return Precision(name=setting, why="as asked for")
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(name=HALF, why=f"{torch.cuda.get_device_name()} computes in bf16")
        return Precision(name=FULL, why=f"{torch.cuda.get_device_name()} has no bf16")
    if accelerator not in ("auto", "cpu") or (accelerator == "auto" and torch.backends.mps.is_available()):
        return Precision(name=FULL, why=f"bf16 has not been tried on {accelerator}")
    if not _has_bf16_instructions():
        return Precision(name=FULL, why="this processor has no bf16 instructions")
    smallest = min(classifier.input_spec.size)
    if smallest < _SMALLEST_PX:
        return Precision(name=FULL, why=f"bf16 gains nothing on images of {smallest} pixels")
    trial = _known_trial(classifier)
    name = HALF if trial.gain >= _WORTH else FULL
    why = f"a trial on this processor ran {trial.gain:.1f} times as fast in bf16"
    busy = "" if trial.undisturbed else "; other programs took the processor meanwhile, so the next run tries again"
    return Precision(name=name, why=why + busy)


def _has_bf16_instructions() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@dataclass(frozen=True, kw_only=True)
class PrecisionTrial:
    """A comparison of fp32 and bf16 on this processor.

    Args:
        gain: Time of a forward pass in fp32 over that in bf16, on one thread; 0 if bf16 gives values that are not finite.
        undisturbed: Whether no other program competed for the CPU during the fastest pass of each.
    """

    gain: float
    undisturbed: bool


def _known_trial(classifier: Classifier) -> PrecisionTrial:
    """Return a trial's result; an undisturbed one is stored, so that every run with this network chooses the same precision."""
    file = cache_folder("precision.json")
    # "one thread": earlier versions stored trials on all threads, whose results depended on the load
    name = "|".join(
        [_processor(), torch.__version__, classifier.backbone.name, str(classifier.input_spec.size), "one thread"]
    )
    known: dict[str, float] = {}
    if file is not None:
        try:
            verify(file)
            known = {str(key): float(value) for key, value in read_json(file, dict).items()}
        except (OSError, ValueError, AttributeError, TypeError):
            known = {}
            # a damaged checksum would block the next write
            with contextlib.suppress(OSError):
                file.with_name(CHECKSUMS).unlink(missing_ok=True)
    if name in known:
        return PrecisionTrial(gain=known[name], undisturbed=True)
    trial = _trial(classifier)
    if file is not None and trial.undisturbed:
        try:
            write_checked_json(file, known | {name: round(trial.gain, 3)})
        except FileError as error:
            log.warning("%s The trial will be repeated next time.", error)
    return trial


def _processor() -> str:
    """Return the processor's name: the cache may lie in a home folder that several machines share."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _is_clear(gain: float) -> bool:
    """Return whether a gain is far enough from the threshold to need no further trials."""
    return not _WORTH / 1.25 < gain < _WORTH * 1.25


def _trial(classifier: Classifier) -> PrecisionTrial:
    """Time forward passes in fp32 and bf16 in turn on one thread, and compare the fastest of each.

    Threads that wait for each other use up CPU time while another program delays one of them, which slows the shorter passes of
    bf16 more. A single thread does not wait.
    """
    spec = classifier.input_spec
    images = torch.randint(0, 256, (8, spec.channels, *spec.size), dtype=torch.uint8)
    # CPU seconds and wall-clock seconds of the fastest pass: equal if nothing else ran
    best = {False: (math.inf, math.inf), True: (math.inf, math.inf)}
    finite = True
    deadline = time.monotonic() + _TRIAL_S
    rounds = 0
    with torch.inference_mode(), evaluating(classifier), one_thread():
        # the first pass of each includes the choice of kernels; a clear result needs no further rounds
        while rounds < 2 or (time.monotonic() < deadline and not _is_clear(best[False][0] / best[True][0])):
            for half in (False, True):
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    began = time.process_time(), time.perf_counter()
                    finite &= bool(classifier(images).isfinite().all())
                    best[half] = min(best[half], (time.process_time() - began[0], time.perf_counter() - began[1]))
            rounds += 1
    if not finite:
        return PrecisionTrial(gain=0.0, undisturbed=True)
    undisturbed = all(clock <= _LOADED * processor for processor, clock in best.values())
    return PrecisionTrial(gain=best[False][0] / best[True][0], undisturbed=undisturbed)

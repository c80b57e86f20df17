"""Speed of an ONNX export compared with the trained model in PyTorch, on the exporting machine under its current load."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.data.transforms import eval_view
from finetune.export.graph import Layout
from finetune.export.parity_report import Speed, Throughput
from finetune.models.classifier import Classifier

BATCHES = (1, 32)
EAGER = "pytorch"
_SECONDS, _FEWEST_ROUNDS, _MOST_ROUNDS = 5.0, 3, 15


def measure_speed(classifier: Classifier, files: Mapping[str, Path], *, layout: Layout) -> Speed:
    """Time the path from pixels to probabilities; the variants are timed in turn and use the same number of threads.

    Args:
        classifier: Trained model in evaluation mode.
        files: The model's ONNX files by precision.
        layout: Layout of the pixels that the files take.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = torch.get_num_threads()
    view, spec = eval_view(classifier.input_spec), classifier.input_spec
    # one and a half times the crop, so that there is something to resize
    height, width = (3 * side // 2 for side in spec.size)
    generator = torch.Generator().manual_seed(0)
    shape = (max(BATCHES), spec.channels, height, width)
    images_BCHW = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    given = np.ascontiguousarray(images_BCHW.permute(0, 2, 3, 1) if layout == "nhwc" else images_BCHW)

    def eager(count: int) -> None:
        with torch.inference_mode():
            classifier.probabilities(classifier(torch.stack([view(image) for image in images_BCHW[:count]])))

    def in_session(session: Any) -> Callable[[int], None]:
        return lambda count: session.run(None, {"images": given[:count]})

    ways: dict[str, Callable[[int], None]] = {EAGER: eager}
    for precision, path in files.items():
        ways[precision] = in_session(
            onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        )
    taken: dict[tuple[str, int], list[float]] = {(way, count): [] for way in ways for count in BATCHES}
    began, rounds = time.perf_counter(), -1  # the first round warms up
    while rounds < _FEWEST_ROUNDS or (rounds < _MOST_ROUNDS and time.perf_counter() - began < _SECONDS):
        for (way, count), seconds in taken.items():
            start = time.perf_counter()
            ways[way](count)
            if rounds >= 0:
                seconds.append(time.perf_counter() - start)
        rounds += 1
    one, many = BATCHES
    return Speed(
        threads=torch.get_num_threads(),
        processor=platform.processor() or platform.machine(),
        pixels=(height, width),
        rounds=rounds,
        ways={
            way: Throughput(
                batch_1_ms=1000 * statistics.median(taken[way, one]),
                batch_32_ms=1000 * statistics.median(taken[way, many]),
                images_per_second=many / statistics.median(taken[way, many]),
            )
            for way in ways
        },
    )

"""ONNX Runtime (fp32, fp16, int8) against eager PyTorch on prepared images, interleaved on one machine.

    python tests/benchmarks/onnx_against_eager.py [NETWORK] [SIZE] [ROUNDS]

Prints the median over the rounds. int8's agreement is with the fp32 answers of the same network on drawn pictures; the
weights are random, which eight bits move more easily than trained ones.

Measured with one thread on a machine of two cores that others used too (so read the ratios), 224 pixels, milliseconds:

| | resnet18, batch 1 | batch 32 | top-1 | resnet50, batch 1 | batch 32 | top-1 |
|---|---|---|---|---|---|---|
| eager | 130 | 3034 | | 460 | 16002 | |
| ONNX fp32 | 60 (2.2 x) | 1806 (1.7 x) | 100 % | 218 (2.1 x) | 6118 (2.6 x) | 100 % |
| ONNX fp16 | 60 | 1835 | 100 % | 196 | 6484 | 100 % |
| ONNX int8 | 26 (5.1 x) | 833 (3.6 x) | 96.9 % | 79 (5.9 x) | 2335 (6.9 x) | 62.5 % |
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from finetune.data.decode import DecodeOptions
from finetune.export.onnx import export_onnx
from finetune.export.quantize import quantise_onnx

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.export.odd_files import write_files
from tests.export.pictures import picture
from tests.export.trained import settled_classifier


def main() -> None:
    """Measure and print."""
    name = sys.argv[1] if len(sys.argv) > 1 else "resnet18"
    side = int(sys.argv[2]) if len(sys.argv) > 2 else 224
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 7
    threads = torch.get_num_threads()
    model = settled_classifier(name=name, size=(side, side), crop_pct=1.0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export_onnx(model, folder / "fp32.onnx")
        export_onnx(model, folder / "fp16.onnx", half=True)
        files = write_files(folder, 64)
        quantise_onnx(
            folder / "fp32.onnx", folder / "int8.onnx", files=files, layout="nhwc", decode_options=DecodeOptions()
        )
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        sessions = {
            p: onnxruntime.InferenceSession(str(folder / f"{p}.onnx"), settings) for p in ("fp32", "fp16", "int8")
        }
    generator = torch.Generator().manual_seed(1)
    images = torch.stack([picture(k % 5, channels=3, size=(side, side), generator=generator) for k in range(32)])
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()

    def eager(count: int) -> np.ndarray:
        with torch.inference_mode():
            return model(images[:count]).softmax(1).numpy()

    ways: dict[str, Callable[[int], np.ndarray]] = {"eager": eager}
    for precision, session in sessions.items():
        ways[f"onnx {precision}"] = lambda count, s=session: s.run(None, {"images": pixels[:count]})[0]
    print(f"{name}, {side} px, {threads} thread(s), median of {rounds} interleaved rounds")
    print(f"{'way':12} {'batch 1, ms':>12} {'batch 32, ms':>13} {'images/s':>9} {'largest diff':>13} {'top-1':>7}")
    seconds: dict[tuple[str, int], list[float]] = {(way, count): [] for way in ways for count in (1, 32)}
    for number in range(rounds + 1):
        for way, count in seconds:
            began = time.perf_counter()
            ways[way](count)
            if number:  # the first round warms up
                seconds[way, count].append(time.perf_counter() - began)
    wanted = eager(32)
    for way, answer in ways.items():
        one, many = (statistics.median(seconds[way, count]) * 1000 for count in (1, 32))
        found = answer(32)
        agreement = (found.argmax(1) == wanted.argmax(1)).mean()
        print(
            f"{way:12} {one:12.1f} {many:13.1f} {32000 / many:9.1f} {np.abs(found - wanted).max():13.1e} {agreement:7.1%}"
        )


if __name__ == "__main__":
    main()

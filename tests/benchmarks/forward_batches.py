"""Images a second of a forward pass without a graph, by the size of the batch and by the precision.

    python tests/benchmarks/forward_batches.py [--name resnet18 --size 224 --rounds 5]

Batch sizes take turns; the median of each, and its spread.
"""

import argparse
import statistics
import time

import timm
import torch

BATCHES = (8, 16, 32, 64, 128)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    told = parser.parse_args()
    net = timm.create_model(told.name, num_classes=0).eval().to(memory_format=torch.channels_last)
    images = torch.randn(max(BATCHES), 3, told.size, told.size).contiguous(memory_format=torch.channels_last)
    print("| precision | " + " | ".join(f"batch {batch}" for batch in BATCHES) + " |")
    print("|---|" + "---|" * len(BATCHES))
    for half in (False, True):
        rates: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            for number in range(told.rounds + 1):
                for batch in BATCHES:
                    began = time.perf_counter()
                    for part in images.split(batch):
                        net(part)
                    # the first round chooses kernels
                    if number:
                        rates[batch].append(len(images) / (time.perf_counter() - began))
        cells = [f"{statistics.median(r):.0f} ({min(r):.0f} to {max(r):.0f})" for r in rates.values()]
        print(f"| {'bf16' if half else 'fp32'} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

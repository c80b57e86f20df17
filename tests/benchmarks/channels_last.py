"""Milliseconds of a training step in fp32 by the order of activations in memory and the size of the images.

    python tests/benchmarks/channels_last.py [--name resnet18 --sizes 32 64 96 224 --batch 32 --rounds 9]

The two orders take turns; medians, with the range.
"""

import argparse
import statistics
import time

import timm
import torch

ORDERS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="resnet18")
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 48, 64, 96, 224])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    told = parser.parse_args()
    print("| px | " + " | ".join(ORDERS) + " |\n|---|---|---|")
    for size in told.sizes:
        steps, taken = {}, {name: [] for name in ORDERS}
        for name, order in ORDERS.items():
            net = timm.create_model(told.name, num_classes=10).eval().to(memory_format=order)
            images = torch.randn(told.batch, 3, size, size).contiguous(memory_format=order)
            steps[name] = (net, images, torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True))
        for number in range(told.rounds + 1):
            for name, (net, images, optimizer) in steps.items():
                began = time.perf_counter()
                optimizer.zero_grad(set_to_none=True)
                net(images).square().mean().backward()
                optimizer.step()
                # the first round chooses kernels
                if number:
                    taken[name].append(1e3 * (time.perf_counter() - began))
        cells = [f"{statistics.median(t):.0f} ({min(t):.0f} to {max(t):.0f})" for t in taken.values()]
        print(f"| {size} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

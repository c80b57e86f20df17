"""What ``compile=on`` costs and gains on a processor: training steps compiled and as they are, in turn, and the first one.

    uv run python tests/benchmarks/compile_gain.py

A run gains once it has made more steps than the seconds of the first compiled one are worth; ``torch.compile`` keeps what it
compiled in a folder, which ``--warm`` leaves as it is, so that a second call says what a second run would wait.
"""

import argparse
import os
import statistics
import tempfile
import time

import timm
import torch


def main() -> None:
    """Take turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=["resnet18"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--warm", action="store_true", help="keep what earlier calls compiled")
    told = parser.parse_args()
    if not told.warm:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
    print(f"batch {told.batch}, {told.size} px, {told.precision}, {torch.get_num_threads()} threads\n")
    print(
        "| network | first compiled step, s | step, ms | compiled, ms | ratio in turn | steps to gain |\n|" + "---|" * 6
    )
    for name in told.names:
        step = {False: stepper(name, told, compiled=False), True: stepper(name, told, compiled=True)}
        step[False]()
        first = step[True]()
        taken = [(1e3 * step[False](), 1e3 * step[True]()) for _ in range(told.rounds)]
        plain, compiled = (statistics.median(each) for each in zip(*taken, strict=True))
        ratios = [one / other for one, other in taken]
        even = f"{1e3 * first / (plain - compiled):.0f}" if plain > compiled else "never"
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {first:.1f} | {plain:.0f} | {compiled:.0f} | {spread} | {even} |", flush=True)


def stepper(name: str, told: argparse.Namespace, *, compiled: bool):
    """A function that makes one training step and gives its seconds."""
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=10).to(memory_format=torch.channels_last).train()
    images = torch.randn(told.batch, 3, told.size, told.size).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(10, (told.batch,))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)
    forward = torch.compile(net) if compiled else net

    def step() -> float:
        began = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=told.precision == "bf16"):
            loss = torch.nn.functional.cross_entropy(forward(images), targets)
        loss.backward()
        optimizer.step()
        return time.perf_counter() - began

    return step


if __name__ == "__main__":
    main()

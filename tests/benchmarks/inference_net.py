"""What predict, serve and embed run, against the network as it was loaded: rates in turn, and how far the outputs differ.

uv run python tests/benchmarks/inference_net.py [--names resnet18 resnet50 --size 224 --batch 8 --rounds 15]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from finetune.models.batch_norm_folding import fast_features
from finetune.models.build import build_backbone
from finetune.models.classifier import Classifier, build_classifier


def main() -> None:
    """Print a line a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    told = parser.parse_args()
    print("| network | as loaded, images/s | for inference, images/s | ratio in turn | made ready in, s | difference |")
    print("|" + "---|" * 6)
    for name in told.names:
        plain, other = (network(name, told.size) for _ in range(2))
        began = time.perf_counter()
        fast = fast_logits(other)
        ready = time.perf_counter() - began
        images = torch.randint(0, 256, (told.batch, 3, told.size, told.size), dtype=torch.uint8)
        with torch.inference_mode():
            expected = plain(images)
            difference = float((fast(images) - expected).abs().max() / expected.abs().max())
            taken = [(seconds(plain, images), seconds(fast, images)) for _ in range(told.rounds)]
        ratios = [one / two for one, two in taken]
        rates = [told.batch / statistics.median(each) for each in zip(*taken, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {rates[0]:.1f} | {rates[1]:.1f} | {spread} | {ready:.2f} | {difference:.1e} |", flush=True)


def fast_logits(classifier: Classifier) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network as inference runs it, with its head."""
    embed = fast_features(classifier)
    return lambda images: classifier.logits(embed(images))


def network(name: str, size: int) -> torch.nn.Module:
    """A classifier of ten classes, in evaluation mode."""
    backbone = build_backbone(source="timm", name=name, weights="none", seed=0)
    backbone.input_spec = replace(backbone.input_spec, size=(size, size))
    classes = tuple(f"class {number}" for number in range(10))
    settings = {"name": "linear", "drop_rate": 0.0}
    made = build_classifier(backbone=backbone, head=settings, classes=classes, channels=3, size=(size, size), seed=0)
    return made.eval()


def seconds(net, images: torch.Tensor) -> float:
    """Of one pass."""
    began = time.perf_counter()
    net(images)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

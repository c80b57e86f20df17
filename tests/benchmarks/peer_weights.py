"""The pretrained weights of the comparison: a ResNet-18 that knows images of this kind, and none of the classes."""

import sys
import tempfile
from pathlib import Path

import torch
from peer_images import make_images
from safetensors.torch import load_file, save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from job import WEIGHT_DECAY, Job
from with_torchvision import loaders, network

EMBEDDED = Path(__file__).parents[2] / "finetune" / "models" / "embedded" / "resnet18.safetensors"
# one each of twenty of Wolfram's 88 classes of equal rules (mirrored, black for white), none of them a class of the comparison
SIBLINGS = (6, 9, 14, 18, 25, 26, 35, 37, 41, 43, 57, 58, 62, 94, 106, 122, 126, 142, 146, 154)
# few, and seen once: accuracies stay below 100 %
PER_RULE, LR, BATCH = 50, 1e-3, 32


def embedded_weights(path: Path) -> None:
    """The embedded ResNet-18 as a plain float32 state dict in torchvision's names, without classifier."""
    state = {
        name: tensor.to(torch.float32) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(EMBEDDED).items()
    }
    save_file(state, path)


def make_weights(path: Path) -> None:
    """The embedded ResNet-18 taught the histories of other automata, with the views of the comparison: a minute, once.

    As photographs stand to ImageNet's weights, so do the comparison's images to these: BatchNorm's statistics fit them, and a
    program that lets those of its frozen stages drift to the new images gains nothing by it.

    Args:
        path: Of the state dict, torchvision's names, float32, without classifier; left alone where it exists.
    """
    if path.is_file():
        return
    with tempfile.TemporaryDirectory() as folder:
        start, images = Path(folder) / "start.safetensors", Path(folder) / "images"
        embedded_weights(start)
        make_images(images, train=PER_RULE * len(SIBLINGS), valid=len(SIBLINGS), seed=1, rules=SIBLINGS)
        model = _taught(
            Job(
                data=str(images),
                weights=str(start),
                mode="full",
                phases=(),
                augment=True,
                seed=0,
                batch=BATCH,
                workers=2,
                classes=len(SIBLINGS),
                scratch=folder,
                output="",
            )
        )
    model.fc = nn.Identity()
    part = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, part)
    part.rename(path)


def _taught(job: Job) -> nn.Module:
    """One epoch of the whole network."""
    torch.manual_seed(job.seed)
    train = loaders(job)[0]
    model = network(job).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=len(train))
    right = total = 0
    for images, targets in train:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images.contiguous(memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(logits, targets)
        loss.backward()
        optimizer.step()
        rates.step()
        right, total = right + (logits.argmax(1) == targets).sum().item(), total + len(targets)
    print(f"weights: {right / total:.3f} of {total} images of other rules right while learning", file=sys.stderr)
    return model

"""A plain PyTorch loop, as most people write it; with ``tuned`` as its second word, the same loop tuned by hand.

Tuned: bf16 autocast, channels_last, loader workers that stay alive. Both run the frozen stages without an autograd graph
and in eval mode, and both run them again every epoch.
"""

import sys
import time
from contextlib import nullcontext

import torch
from job import WEIGHT_DECAY, job
from torch import nn
from with_torchvision import loaders, network


def main() -> None:
    """Train and answer."""
    told, tuned = job(), sys.argv[2:] == ["tuned"]
    torch.manual_seed(told.seed)
    train, valid = loaders(told, persistent=tuned)
    model = network(told)
    if tuned:
        model.to(memory_format=torch.channels_last)

    def autocast():
        return torch.autocast("cpu", torch.bfloat16) if tuned else nullcontext()

    loss_of = nn.CrossEntropyLoss()
    accuracy, began = 0.0, time.perf_counter()
    for phase in told.phases:
        trained = {"head": [model.fc], "top": [model.layer4, model.fc], "all": [model]}[phase.train]
        model.requires_grad_(False)
        for module in trained:
            module.requires_grad_(True)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=phase.lr, weight_decay=WEIGHT_DECAY)
        for epoch in range(phase.epochs):
            model.eval()
            for module in trained:
                module.train()
            total = 0.0
            for images, targets in train:
                if tuned:
                    images = images.contiguous(memory_format=torch.channels_last)
                optimizer.zero_grad()
                with autocast():
                    loss = loss_of(model(images), targets)
                loss.backward()
                optimizer.step()
                total += loss.item()
            model.eval()
            right = seen = 0
            with torch.no_grad():
                for images, targets in valid:
                    if tuned:
                        images = images.contiguous(memory_format=torch.channels_last)
                    with autocast():
                        logits = model(images)
                    right += (logits.argmax(1) == targets).sum().item()
                    seen += len(targets)
            accuracy = right / seen
            print(f"{phase.train} epoch {epoch}: loss {total / len(train):.4f}, accuracy {accuracy:.4f}")
    told.done(accuracy=accuracy, train_s=time.perf_counter() - began)


if __name__ == "__main__":
    main()

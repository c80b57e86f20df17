"""A plain PyTorch loop, as PyTorch's own transfer-learning tutorial writes it; further words tune it by hand.

The tutorial sets ``requires_grad = False`` on what is frozen and calls ``model.train()`` every epoch, so frozen BatchNorms
normalise by the batch and their statistics drift. ``tuned``: bf16 autocast, channels_last, loader workers that stay alive.
``eval``: the frozen stages in evaluation mode too, as they should be. All of them run the frozen stages again every epoch.
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
    told, tuned, frozen_eval = job(), "tuned" in sys.argv[2:], "eval" in sys.argv[2:]
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
            model.train()
            if frozen_eval:
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

"""The steps of timm's training script for one process without a GPU, from timm's own parts.

The script itself is in no release of timm on PyPI, so this is the loop that it runs there with ``--opt adamw``,
``--sched none``, ``--color-jitter 0`` and the settings of the comparison: its loader, optimizer, averages and checkpoints.
"""

import time

import timm
import torch
from job import WEIGHT_DECAY, job
from timm import utils
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from torch import nn


def main() -> None:
    """Train and answer."""
    told = job()
    utils.random_seed(told.seed)
    device = torch.device("cpu")
    model = timm.create_model(
        "resnet18",
        pretrained=True,
        pretrained_cfg_overlay={"file": told.weights},
        num_classes=told.classes,
    )
    common = {
        "input_size": (3, 224, 224),
        "batch_size": told.batch,
        "interpolation": "bilinear",
        "num_workers": told.workers,
        "use_prefetcher": False,
        "device": device,
    }
    train = create_loader(
        create_dataset("", root=told.data, split="train", is_training=True, class_map=""),
        is_training=True,
        no_aug=not told.augment,
        scale=(0.25, 1.0),
        color_jitter=0.0,
        **common,
    )
    valid = create_loader(
        create_dataset("", root=told.data, split="valid", class_map=""), is_training=False, crop_pct=0.875, **common
    )
    optimizer = create_optimizer_v2(model, opt="adamw", lr=told.phases[0].lr, weight_decay=WEIGHT_DECAY)
    saver = utils.CheckpointSaver(model=model, optimizer=optimizer, checkpoint_dir=told.scratch)
    loss_of = nn.CrossEntropyLoss()
    began = time.perf_counter()
    top1 = utils.AverageMeter()
    for epoch in range(told.epochs):
        model.train()
        losses = utils.AverageMeter()
        for images, targets in train:
            loss = loss_of(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.update(loss.item(), images.size(0))
        model.eval()
        top1 = utils.AverageMeter()
        with torch.no_grad():
            for images, targets in valid:
                (acc1,) = utils.accuracy(model(images), targets)
                top1.update(acc1.item(), images.size(0))
        saver.save_checkpoint(epoch, metric=top1.avg)
    told.done(accuracy=top1.avg / 100, train_s=time.perf_counter() - began)


if __name__ == "__main__":
    main()

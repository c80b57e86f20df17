"""The network, views and loaders that programs on torchvision share, as its documentation writes them."""

import torch
from job import IMAGENET_MEAN, IMAGENET_STD, Job
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import ResNet, resnet18
from torchvision.transforms import v2


def network(job: Job) -> ResNet:
    """The pretrained network with a new classifier."""
    model = resnet18(weights=None)
    model.fc = nn.Identity()
    model.load_state_dict(load_file(job.weights))
    model.fc = nn.Linear(512, job.classes)
    return model


def views(*, augment: bool) -> v2.Compose:
    """From a Pillow image to what the network takes."""
    if augment:
        crop = [v2.RandomResizedCrop(224, scale=(0.25, 1.0)), v2.RandomHorizontalFlip()]
    else:
        crop = [v2.Resize(256), v2.CenterCrop(224)]
    return v2.Compose(
        [v2.ToImage(), *crop, v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    )


def loaders(job: Job, *, persistent: bool = False) -> tuple[DataLoader, DataLoader]:
    """Training and validation batches."""
    train = ImageFolder(f"{job.data}/train", views(augment=job.augment))
    valid = ImageFolder(f"{job.data}/valid", views(augment=False))
    told = {"batch_size": job.batch, "num_workers": job.workers, "persistent_workers": persistent and job.workers > 0}
    return DataLoader(train, shuffle=True, **told), DataLoader(valid, **told)

"""The least that must be done without augmentation: decode once, one pass in bf16, then the head on the features."""

import time

import torch
from job import WEIGHT_DECAY, job
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import DataLoader
from torchvision.models import ResNet
from with_torchvision import loaders, network


def folded(model: ResNet) -> ResNet:
    """The network in eval mode with every BatchNorm folded into its convolution."""
    model.eval()
    model.conv1, model.bn1 = fuse_conv_bn_eval(model.conv1, model.bn1), nn.Identity()
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            block.conv1, block.bn1 = fuse_conv_bn_eval(block.conv1, block.bn1), nn.Identity()
            block.conv2, block.bn2 = fuse_conv_bn_eval(block.conv2, block.bn2), nn.Identity()
            if block.downsample is not None:
                block.downsample = fuse_conv_bn_eval(*block.downsample)
    return model


@torch.inference_mode()
def features_of(model: ResNet, batches: DataLoader) -> tuple[Tensor, Tensor]:
    """Features (N, 512) in float32, and targets."""
    features, targets = [], []
    for images, truth in batches:
        images = images.to(torch.bfloat16, memory_format=torch.channels_last)
        features.append(model(images).float())
        targets.append(truth)
    return torch.cat(features), torch.cat(targets)


def main() -> None:
    """Train and answer."""
    told = job()
    torch.manual_seed(told.seed)
    train, valid = loaders(told)
    model = network(told)
    head, model.fc = model.fc, nn.Identity()
    model = folded(model).to(torch.bfloat16, memory_format=torch.channels_last)
    began = time.perf_counter()
    # clones, because tensors made in inference mode take no part in training
    features, targets = (tensor.clone() for tensor in features_of(model, train))
    optimizer = torch.optim.AdamW(head.parameters(), lr=told.phases[0].lr, weight_decay=WEIGHT_DECAY)
    for _ in range(told.epochs):
        for rows in torch.randperm(len(features)).split(told.batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(features[rows]), targets[rows]).backward()
            optimizer.step()
    features, targets = (tensor.clone() for tensor in features_of(model, valid))
    accuracy = (head(features).argmax(1) == targets).float().mean().item()
    told.done(accuracy=accuracy, train_s=time.perf_counter() - began)


if __name__ == "__main__":
    main()

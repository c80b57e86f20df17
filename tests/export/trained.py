"""Classifiers that behave as if trained: settled BatchNorm statistics, and a head solved on drawn pictures."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from finetune.confidence.conformal import conformal_curve
from finetune.confidence.selective import risk_coverage
from finetune.confidence.unknown import fit_unknown
from finetune.models.build import build_backbone
from finetune.models.classifier import Classifier, build_classifier
from tests.export.pictures import CLASSES, picture

PER_CLASS = 12


@torch.no_grad()
def settled_classifier(
    *,
    name: str = "resnet18",
    source: str = "timm",
    channels: int = 3,
    adapt: str = "expand",
    size: tuple[int, int] = (32, 32),
    classes: Sequence[str] = CLASSES,
    seed: int = 0,
    head: str = "linear",
    **spec: object,
) -> Classifier:
    """Build a classifier with seeded random weights, BatchNorm statistics taken from pictures, and a head that separates them.

    Args:
        name: Name of the backbone.
        source: Library that the backbone comes from.
        channels: Number of image channels.
        adapt: Method that adapts the image channels to the stem.
        size: Height and width of the images in pixels.
        classes: Class names.
        seed: Seed of the weights.
        head: Kind of head; only a linear one is solved.
        **spec: Other fields of the InputSpec.
    """
    backbone = build_backbone(source=source, name=name, weights="none", seed=seed)
    backbone.input_spec = replace(backbone.input_spec, **spec)  # type: ignore[arg-type]
    model = build_classifier(
        backbone=backbone,
        head={"name": head},
        classes=classes,
        channels=channels,
        adapt=adapt,
        size=size,
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.uniform_(0.5, 1.0, generator=generator)
        norm.bias.uniform_(-0.2, 0.2, generator=generator)
        norm.momentum = 1.0
    for block in model.modules():
        last = getattr(block, "bn3", getattr(block, "bn2", None))
        if last is not None:
            # branches make small corrections, as trained ones do; random branches of full size map all images to almost one
            # answer, and a head that separates them then magnifies a difference of one level in one pixel
            last.weight.mul_(0.3)
    targets = torch.arange(len(classes)).repeat(PER_CLASS)
    images = torch.stack([picture(int(k), channels=channels, size=size, generator=generator) for k in targets])
    model.train()
    model(images)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()
    if head == "linear":
        assert isinstance(model.head.fc, nn.Linear)
        solve_head(model.head.fc, model.embed(images), targets)
    return model


@torch.no_grad()
def tell_unknown(model: Classifier) -> Classifier:
    """Fit the score of unknown images on drawn pictures of the model's size, and both curves; return the model."""
    generator, spec = torch.Generator().manual_seed(1), model.input_spec
    targets = torch.arange(len(model.classes)).repeat(2 * PER_CLASS)
    images = [picture(int(k), channels=spec.channels, size=spec.size, generator=generator) for k in targets]
    features_ND, half = model.embed(torch.stack(images)), len(targets) // 2
    numbers = features_ND.numpy()
    fit = fit_unknown(numbers[:half], targets[:half].numpy(), numbers[half:], accept=0.9)
    assert fit.score is not None
    model.unknown = fit.score
    probabilities_NK = model.probabilities(model.logits(features_ND[half:]))
    model.conformal = conformal_curve(probabilities_NK.numpy(), targets[half:].numpy())
    confidence_N, answers_N = probabilities_NK.max(1)
    model.selective = risk_coverage(confidence_N.numpy(), (answers_N == targets[half:]).numpy())
    return model


def solve_head(fc: nn.Linear, features_ND: Tensor, targets: Tensor) -> None:
    """Solve the head in place by strongly damped ridge regression, near the class means, so that answers vary but are stable."""
    mean_D = features_ND.mean(0)
    centred_ND = (features_ND - mean_D).double()
    wanted_NK = 12.0 * nn.functional.one_hot(targets, fc.out_features).double()
    gram_NN = centred_ND @ centred_ND.T
    ridge = 30 * gram_NN.diagonal().mean()
    weight_DK = centred_ND.T @ torch.linalg.solve(gram_NN + ridge * torch.eye(len(gram_NN)), wanted_NK)
    fc.weight.copy_(weight_DK.T)
    fc.bias.copy_(-(fc.weight @ mean_D))

"""fastai's vision learner with the same head, rates and views, by its own freezing."""

import time

from fastai.vision.all import (
    Adam,
    FlipItem,
    ImageDataLoaders,
    L,
    Normalize,
    PILImage,
    RandomResizedCrop,
    Transform,
    accuracy,
    imagenet_stats,
    params,
    set_seed,
    vision_learner,
)
from job import WEIGHT_DECAY, job
from safetensors.torch import load_file
from torch import nn
from torchvision.models import resnet18
from torchvision.transforms import functional as F  # noqa: N812 (the name that torchvision's own pages use)


class TrainCrop(RandomResizedCrop):
    """For training images alone: fastai's own evaluation view squashes images that are not square."""

    split_idx = 0


class EvalView(Transform):
    """Shorter side to 256, then the centre."""

    order = 1

    def encodes(self, x: PILImage):
        """A Pillow image."""
        return F.center_crop(F.resize(x, 256), 224)


class ValidView(EvalView):
    """For validation images alone."""

    split_idx = 1


def main() -> None:
    """Train and answer."""
    told = job()
    set_seed(told.seed)
    views = [TrainCrop(224, min_scale=0.25), FlipItem(0.5), ValidView()] if told.augment else [EvalView()]
    data = ImageDataLoaders.from_folder(
        told.data,
        item_tfms=views,
        batch_tfms=[Normalize.from_stats(*imagenet_stats)],
        bs=told.batch,
        num_workers=told.workers,
    )
    learn = vision_learner(
        data,
        resnet18,
        pretrained=False,
        # its own head has two pools and a hidden layer; one linear layer is what the others train
        custom_head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, told.classes)),
        init=None,
        splitter=lambda model: L(model[0][:7], model[0][7], model[1]).map(params),
        opt_func=Adam,
        wd=WEIGHT_DECAY,
        metrics=accuracy,
        path=told.scratch,
    )
    # the body is the network's children without pool and classifier, in order
    named = resnet18(weights=None)
    named.fc = nn.Identity()
    named.load_state_dict(load_file(told.weights))
    learn.model[0].load_state_dict(nn.Sequential(*list(named.children())[:-2]).state_dict())
    began = time.perf_counter()
    for phase in told.phases:
        learn.freeze_to({"head": -1, "top": -2, "all": 0}[phase.train])
        learn.fit(phase.epochs, lr=phase.lr)
    learn.model.eval()
    train_s = time.perf_counter() - began
    told.done(accuracy=float(learn.recorder.values[-1][-1]), train_s=train_s)


if __name__ == "__main__":
    main()

"""A source of formula images: a data set without files, each image drawn when it is read."""

import os

import numpy as np
import torch

from finetune.data.decode import DecodeOptions
from finetune.data.index import SPLITS, Index
from finetune.data.path_table import PathTableBuilder
from finetune.data.sampling import key
from finetune.data.scan import Facts
from finetune.errors import UserError
from finetune.pretraining.fractals import FormulaRenderer
from finetune.pretraining.keyed import fold
from finetune.split_settings import SplitSettings


class FormulaSource:
    """A source whose samples a renderer draws; a row of the index is the key of its image.

    Args:
        index: The table of samples.
        renderer: Renderer of the images; it draws on the CPU, in whichever process reads.
        image_size: Side of the images in pixels.
        channels: Number of channels: 3, or 1 for the mean of the three.
    """

    in_memory = False
    many_threads = False
    facts: Facts | None = None  # formula images need no scan

    def __init__(self, *, index: Index, renderer: FormulaRenderer, image_size: int, channels: int) -> None:
        self.index, self.renderer, self.image_size = index, renderer, image_size
        self.decode_options = DecodeOptions(channels=channels)

    def read(self, row: int, *, min_side: int | None = None) -> torch.Tensor:
        """Draw the image of one row, always at the size of the source."""
        image_3HW = self.renderer.render(torch.tensor([row]), size=self.image_size)[0]
        if self.decode_options.channels == 1:
            return (image_3HW.float().mean(0, keepdim=True) + 0.5).to(torch.uint8)
        return image_3HW


def fractals_source(
    *,
    channels: int = 3,
    split: SplitSettings = SplitSettings(val_fraction=0.02, test_fraction=0.02),
    recipe: str = "mix",
    classes: int = 1000,
    images_per_class: int = 1000,
    image_size: int = 64,
) -> FormulaSource:
    """Build a source of formula images, with every class equally often in every split.

    Args:
        channels: Number of channels, 1 or 3.
        split: Seed, of the formulas and the images too, and share of each class's images in the validation and the test
            split, at least one image each; folds and limits are not supported.
        recipe: Name of a recipe in :data:`finetune.pretraining.fractals.RECIPES`.
        classes: Number of formulas.
        images_per_class: Number of images of each formula in all splits together.
        image_size: Side of the images in pixels.

    Raises:
        UserError: The recipe is unknown, or a number is too small or impossible.

    >>> source = fractals_source(classes=8, images_per_class=4)
    >>> source.index.counts()["test"]
    [1, 1, 1, 1, 1, 1, 1, 1]
    """
    if channels not in (1, 3):
        raise UserError(f"input.channels={channels}: formula images have 1 or 3 channels.")
    if image_size < 8:
        raise UserError(f"data.image_size={image_size}: must be at least 8 pixels.")
    held_out = [max(1, round(images_per_class * fraction)) for fraction in (split.val_fraction, split.test_fraction)]
    if images_per_class <= sum(held_out):
        raise UserError(
            f"data.images_per_class={images_per_class}: must leave something to train on. Validation and test take "
            f"{sum(held_out)} of them. Use more images per class."
        )
    renderer = FormulaRenderer(recipe=recipe, classes=classes, seed=split.seed)
    rows = torch.arange(classes * images_per_class)
    # the renderer cycles through the classes, so a row's number within its class is a quotient
    number = (rows // classes).numpy()
    splits = np.full(len(rows), SPLITS.index("train"), np.int8)
    splits[number >= images_per_class - sum(held_out)] = SPLITS.index("val")
    splits[number >= images_per_class - held_out[1]] = SPLITS.index("test")
    # settings and row determine the pixels, so a 128-bit hash of both identifies the content
    settings = ("fractals", recipe, classes, split.seed, image_size)
    content = torch.stack([fold(rows, key(*settings, half)) for half in (0, 1)], dim=1)
    paths = PathTableBuilder()
    paths.add_folder(os.path.join("fractals", recipe), [f"{row:08}" for row in range(len(rows))])
    index = Index(
        classes=[f"{recipe}-{number:05}" for number in range(classes)],
        root="",
        paths=paths.build(),
        targets=renderer.classes_of(rows).numpy(),
        splits=splits,
        content=content.numpy().view(np.uint64),
    )
    return FormulaSource(index=index, renderer=renderer, image_size=image_size, channels=channels)

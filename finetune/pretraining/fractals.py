"""Renders formula images on the fly, to pretrain without files and without natural images.

A class is a formula (a fractal code, a contour, a glyph's strokes, a texture's spectrum); an image is a keyed draw of
pose, colours and background. Image ``key`` of a recipe is a pure function of ``(recipe, classes, seed, key)``, in any
batch, on a CPU or on a GPU (up to floating-point rounding).

Sources: Kataoka et al. 2020 (FractalDB), Kataoka et al. 2022 (contours), Anderson and Farrell 2022 (coloured fractals
on backgrounds), Baradad et al. 2021 (dead leaves and noise). Each module of ``finetune.pretraining`` cites its own.
"""

# B = images, K = classes, H/W = pixels

import torch
from torch import Tensor

from finetune.errors import UserError, did_you_mean
from finetune.pretraining.families import (
    ContourShapes,
    DeadLeaves,
    Family,
    Fractals,
    Glyphs,
    NoiseTextures,
    PlainFractals,
)
from finetune.pretraining.keyed import fold, mix
from finetune.pretraining.paint import to_bytes

# The families of each recipe and their shares of the classes.
RECIPES: dict[str, tuple[tuple[type, float], ...]] = {
    "fractaldb": ((PlainFractals, 1.0),),
    "fractals": ((Fractals, 1.0),),
    "leaves": ((DeadLeaves, 0.3), (NoiseTextures, 0.3), (ContourShapes, 0.4)),
    "strokes": ((Glyphs, 0.7), (ContourShapes, 0.3)),
    "mix": ((Fractals, 0.3), (Glyphs, 0.35), (ContourShapes, 0.2), (NoiseTextures, 0.1), (DeadLeaves, 0.05)),
}


class FormulaRenderer:
    """A renderer that draws the images of one recipe in batches.

    Args:
        recipe: Name of a recipe in ``RECIPES``.
        classes: Number of classes, K; at least one for each family of the recipe.
        seed: Seed of the formulas and the images.
        device: Device on which images are drawn.

    Attributes:
        families: First class, last class + 1, and the family; in the order of the classes.

    Raises:
        UserError: The recipe is unknown, or has more families than classes.

    >>> renderer = FormulaRenderer(recipe="strokes", classes=4)
    >>> renderer.render(torch.arange(3), size=16).shape
    torch.Size([3, 3, 16, 16])
    """

    def __init__(self, *, recipe: str = "mix", classes: int = 1000, seed: int = 0, device: str = "cpu") -> None:
        if recipe not in RECIPES:
            hint = did_you_mean(recipe, RECIPES)
            raise UserError(f"data.recipe={recipe!r}: not a recipe. Recipes: {', '.join(RECIPES)}.{hint}")
        families = RECIPES[recipe]
        if classes < len(families):
            raise UserError(f"data.classes={classes}: recipe {recipe!r} needs at least {len(families)}, one a family.")
        self.recipe, self.classes, self.seed = recipe, classes, seed
        self.device = torch.device(device)
        edges = _edges([share for _, share in families], classes)
        self.families: list[tuple[int, int, Family]] = []
        class_keys_K = fold(torch.arange(classes), 2 * seed + 1)
        for (build, _), low, high in zip(families, edges[:-1], edges[1:], strict=True):
            self.families.append((low, high, build(class_keys_K[low:high].to(self.device))))

    def classes_of(self, keys_B: Tensor) -> Tensor:
        """Return the class of each key, int64: its remainder, so that keys 0, 1, 2, ... cycle through the classes."""
        return keys_B % self.classes

    def render(self, keys_B: Tensor, *, size: int) -> Tensor:
        """Draw the images of the given keys.

        Args:
            keys_B: int64 keys, at least 0; they usually exceed the number of classes.
            size: Side of the images in pixels.

        Returns:
            uint8 (B, 3, H, W) on the renderer's device.
        """
        keys_B = keys_B.to(self.device)
        classes_B, image_keys_B = self.classes_of(keys_B), mix(fold(keys_B, 2 * self.seed))
        images_B3HW = torch.empty(len(keys_B), 3, size, size, dtype=torch.uint8, device=self.device)
        for low, high, family in self.families:
            rows_N = ((classes_B >= low) & (classes_B < high)).nonzero()[:, 0]
            if len(rows_N):
                drawn_N3HW = family.render(classes_B[rows_N] - low, image_keys_B[rows_N], size)
                images_B3HW[rows_N] = to_bytes(drawn_N3HW)
        return images_B3HW


def _edges(shares: list[float], classes: int) -> list[int]:
    """Return the edges between the families' classes: each family has at least one class, and the last edge is K."""
    spare, edges, reached = classes - len(shares), [0], 0.0
    for number, share in enumerate(shares, start=1):
        reached += share / sum(shares)
        edges.append(number + round(spare * reached))
    return edges


def render_batch(
    keys_B: Tensor, *, size: int, device: str = "cpu", recipe: str = "mix", classes: int = 1000, seed: int = 0
) -> Tensor:
    """Draw a single batch of images; :class:`FormulaRenderer` keeps the formulas between batches.

    Args:
        keys_B: int64 keys, one per image.
        size: Side of the images in pixels.
        device: Device on which images are drawn.
        recipe: Name of a recipe in ``RECIPES``.
        classes: Number of classes.
        seed: Seed of the formulas and the images.

    Returns:
        uint8 (B, 3, H, W).
    """
    renderer = FormulaRenderer(recipe=recipe, classes=classes, seed=seed, device=device)
    return renderer.render(keys_B, size=size)

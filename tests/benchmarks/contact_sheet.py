"""Look at what a recipe draws: rows of classes, five images of each, as one PNG.

PYTHONPATH=. uv run python tests/benchmarks/contact_sheet.py --recipe mix --out mix.png
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from finetune.pretraining.fractals import RECIPES, FormulaRenderer


def sheet(images_B3HW: Tensor, *, columns: int, gap: int = 2) -> Tensor:
    """Images side by side on grey: uint8 (3, H, W)."""
    count, _, height, width = images_B3HW.shape
    rows = -(-count // columns)
    page = torch.full((3, rows * (height + gap), columns * (width + gap)), 128, dtype=torch.uint8)
    for number, image_3HW in enumerate(images_B3HW):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        page[:, top : top + height, left : left + width] = image_3HW
    return page


def main() -> None:
    """Reads the command line; see the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="mix")
    parser.add_argument("--classes", type=int, default=160, help="classes of the recipe; every fifth is shown")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("formulas.png"))
    args = parser.parse_args()
    renderer = FormulaRenderer(recipe=args.recipe, classes=args.classes, seed=args.seed)
    shown = torch.arange(0, args.classes, 5)
    keys = (shown[:, None] + args.classes * torch.arange(5)).flatten()
    page = sheet(renderer.render(keys, size=args.size), columns=20)
    Image.fromarray(page.permute(1, 2, 0).numpy()).save(args.out)
    print(f"{args.out}: {len(shown)} classes, five images of each, side by side")


if __name__ == "__main__":
    main()

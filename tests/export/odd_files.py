"""Image files of mixed sizes, formats and modes, made in the test."""

from pathlib import Path

import torch
from PIL import Image

from tests.export.pictures import CLASSES, picture

# suffix, mode to save in, options; plain Pillow and our decoder decode these to the same pixels
KINDS = (
    (".png", "RGB", {}),
    (".jpg", "RGB", {"quality": 92}),
    (".png", "L", {}),
    (".jpg", "L", {"quality": 90}),
    (".bmp", "RGB", {}),
    (".png", "P", {}),
    (".tif", "RGB", {}),
    (".webp", "RGB", {"lossless": True}),
    (".png", "1", {}),
    (".tif", "L", {}),
    (".gif", "P", {}),
)


def write_files(folder: Path, count: int, *, smallest: int = 40, largest: int = 200, seed: int = 0) -> list[str]:
    """Write pictures of all classes and all kinds in turn, of random sizes, and return their paths."""
    generator = torch.Generator().manual_seed(seed)
    paths = []
    for number in range(count):
        height, width = torch.randint(smallest, largest, (2,), generator=generator).tolist()
        pixels = picture(number % len(CLASSES), channels=3, size=(height, width), generator=generator)
        suffix, mode, options = KINDS[number % len(KINDS)]
        path = folder / f"{number:04}{suffix}"
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert(mode).save(path, **options)
        paths.append(str(path))
    return paths

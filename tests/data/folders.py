"""Small image folders for tests; every image differs from every other unless it is copied."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, number: int, size: tuple[int, int] = (12, 10)) -> None:
    """An image of noise that only this number gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_folder(root: Path, counts: dict[str, int], suffix: str = ".png") -> Path:
    """``root/<class>/<n>.png`` for every class and count; a class may be ``train/cat``."""
    number = int.from_bytes(root.name.encode()[-4:], "big") % 1000 * 10_000
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            number += 1
            write_image(root / name / f"{number}{suffix}", number)
    return root

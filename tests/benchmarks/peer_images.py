"""The images of the comparison with other libraries, made once from keyed randomness."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transfer_sets import RULES, automata

CLASSES = len(RULES)
WIDTH, HEIGHT = 500, 375
# of a photograph from a good camera; a file is then about 80 kB, as photographs of this size are
QUALITY, NOISE = 90, 12.0


def make_images(folder: Path, *, train: int, valid: int, seed: int = 0, rules: Sequence[int] = RULES) -> None:
    """``folder/{train,valid,test}/CLASS/*.jpg``: histories of cellular automata, 500 x 375 pixels, with noise.

    ``test`` has one image a class: this project sets test images aside where there are none, and trains on fewer then.

    The embedded weights, from which the comparison's are taught, were trained at 48 to 64 pixels, so the cells are large: 64 x 48
    pixels enlarged. A crop of a quarter of the area still shows the rule.

    Args:
        folder: Left alone where it exists.
        train: Number of training images, a multiple of the number of rules.
        valid: Number of validation images, likewise.
        seed: Another seed gives other images.
        rules: Of the automata, by their numbers: the classes.
    """
    if folder.is_dir():
        return
    total = train + valid + len(rules)
    data = automata(size=64, per_class=total // len(rules), seed=seed, rules=rules)
    random = np.random.default_rng([seed, 1])
    part = folder.with_name(folder.name + ".part")
    for row in range(total):
        split = "train" if row < train else "valid" if row < train + valid else "test"
        name = part / split / f"rule{rules[int(data.targets[row])]}" / f"{row:05}.jpg"
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(_enlarged(data.images[row], random))
    part.rename(folder)


def _enlarged(image: Tensor, random: np.random.Generator) -> bytes:
    """The middle three quarters of a square image's rows as a JPEG."""
    size = image.shape[-1]
    rows: NDArray[np.uint8] = image[:, size // 8 : size - size // 8].permute(1, 2, 0).numpy()
    large = Image.fromarray(np.ascontiguousarray(rows)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    noisy = np.asarray(large, dtype=np.float32) + random.normal(0.0, NOISE, (HEIGHT, WIDTH, 3))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()

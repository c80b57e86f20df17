"""Small labelled data sets, made here, that no pretraining recipe has seen: digits, characters, automata and solids.

Each is a pure function of its seed. None of them shares a generator with :mod:`finetune.pretraining`: the digits are
scanned handwriting, the characters are set in published typefaces, the automata are computed by rule, and the solids
are ray-marched and lit.
"""

# B = images, H/W = pixels

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-BoldItalic.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBolIta.ttf",
    "STIXGeneralItalic.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
    "cmb10.ttf",
)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
RULES = (22, 30, 45, 54, 60, 73, 90, 105, 110, 150)
SOLIDS = ("sphere", "box", "cylinder", "cone", "torus", "octahedron", "capsule", "prism")


@dataclass(frozen=True, kw_only=True)
class TransferSet:
    """Labelled images, split into a pool to label from and a test set.

    Args:
        images: uint8 (B, 3, H, W).
        targets: int64 (B,).
        test: Which images are the test set, bool (B,).
    """

    images: Tensor
    targets: Tensor
    test: Tensor

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.targets.max()) + 1

    def labelled(self, per_class: int, seed: int) -> Tensor:
        """Row numbers of ``per_class`` images of each class, drawn by seed from outside the test set."""
        order = torch.randperm(len(self.targets), generator=torch.Generator().manual_seed(seed))
        rows = []
        for target in range(self.classes):
            mine = order[(self.targets[order] == target) & ~self.test[order]]
            assert len(mine) >= per_class, f"class {target} has {len(mine)} images"
            rows.append(mine[:per_class])
        return torch.cat(rows)


def digits(*, size: int) -> TransferSet:
    """Scikit-learn's 1797 scanned digits, enlarged from 8 pixels; 110 of each class may be labelled."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16.0
    large = nn.functional.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    images = (large * 255.0 + 0.5).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    targets = torch.tensor(bunch.target)
    rank = torch.stack([(targets == k).long().cumsum(0) for k in range(10)])[targets, torch.arange(len(targets))]
    return TransferSet(images=images, targets=targets, test=rank > 110)


def characters(*, size: int, per_class: int = 150, seed: int = 0) -> TransferSet:
    """Printed capitals in fourteen typefaces, at random places, sizes, angles and colours, on noisy grounds."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = [(folder / name).read_bytes() for name in FONTS]

    def draw(target: int, random: np.random.Generator) -> NDArray[np.uint8]:
        height = int(size * random.uniform(0.35, 0.75))
        font = ImageFont.truetype(io.BytesIO(files[random.integers(len(files))]), height)
        stencil = Image.new("L", (size, size))
        left, top, right, bottom = font.getbbox(LETTERS[target])
        x = random.uniform(0, max(size - (right - left), 1)) - left
        y = random.uniform(0, max(size - (bottom - top), 1)) - top
        ImageDraw.Draw(stencil).text((x, y), LETTERS[target], fill=255, font=font)
        turned = stencil.rotate(random.uniform(-15, 15), resample=Image.Resampling.BILINEAR)
        return _painted(np.asarray(turned, dtype=np.float32) / 255.0, random)

    return _made(draw, len(LETTERS), per_class, seed, "characters")


def automata(*, size: int, per_class: int = 150, seed: int = 0, rules: Sequence[int] = RULES) -> TransferSet:
    """Histories of elementary cellular automata (Wolfram 1983) from random rows: the class is the rule."""

    def draw(target: int, random: np.random.Generator) -> NDArray[np.uint8]:
        cells = size // 2
        table = np.array([(rules[target] >> bit) & 1 for bit in range(8)])
        row = random.integers(0, 2, 6 * cells + 1)  # on a ring of a power of two the additive rules die out
        rows = []
        for step in range(cells + 16):
            if step >= 16:
                rows.append(row[:cells])
            row = table[4 * np.roll(row, 1) + 2 * row + np.roll(row, -1)]
        return _painted(np.kron(np.stack(rows), np.ones((2, 2))).astype(np.float32), random)

    return _made(draw, len(rules), per_class, seed, "automata")


def solids(*, size: int, per_class: int = 150, seed: int = 0) -> TransferSet:
    """Eight solids, ray-marched at random angles under one lamp: the class is the solid."""
    total = per_class * len(SOLIDS)
    generator = torch.Generator().manual_seed(seed + zlib.crc32(b"solids"))
    targets = torch.arange(total) % len(SOLIDS)
    images = [_lit_solids(targets[rows], size, generator) for rows in torch.arange(total).split(100)]
    return TransferSet(images=torch.cat(images), targets=targets, test=torch.arange(total) >= 100 * len(SOLIDS))


SETS: dict[str, Callable[..., TransferSet]] = {
    "digits": digits,
    "characters": characters,
    "automata": automata,
    "solids": solids,
}


def _made(
    draw: Callable[[int, np.random.Generator], NDArray[np.uint8]], classes: int, per_class: int, seed: int, name: str
) -> TransferSet:
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    targets = np.arange(classes * per_class) % classes
    images = np.stack([draw(int(target), random) for target in targets])
    return TransferSet(
        images=torch.from_numpy(images),
        targets=torch.from_numpy(targets),
        test=torch.arange(len(targets)) >= 100 * classes,
    )


def _painted(share: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.uint8]:
    """A stencil between two random colours at least a quarter apart in brightness, with noise: (3, H, W)."""
    while True:
        first, second = random.uniform(0, 1, (2, 3))
        if abs(first.mean() - second.mean()) > 0.25:
            break
    picture = first[:, None, None] * (1 - share) + second[:, None, None] * share
    picture = picture + random.normal(0, random.uniform(0.0, 0.1), picture.shape)
    return (picture.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _solid_distances(at_B3N: Tensor, kinds_B: Tensor) -> Tensor:
    """Signed distance of points from each image's solid, in its own frame."""
    x, y, z = at_B3N.unbind(1)
    ring, height = torch.sqrt(x * x + y * y + 1e-9), z.abs()

    def box(*outs: Tensor) -> Tensor:
        stacked = torch.stack(outs)
        return stacked.clamp_min(0).square().sum(0).add(1e-9).sqrt() + stacked.amax(0).clamp_max(0)

    choices = torch.stack(
        [
            torch.sqrt(ring**2 + z**2) - 0.75,
            box(x.abs() - 0.55, y.abs() - 0.55, height - 0.55),
            box(ring - 0.5, height - 0.65),
            torch.maximum((ring * 0.8 + z * 0.45) - 0.32, -z - 0.6) * 0.9,
            torch.sqrt((ring - 0.55) ** 2 + z**2 + 1e-9) - 0.25,
            (x.abs() + y.abs() + height - 0.9) * 0.57,
            torch.sqrt(ring**2 + (height - 0.4).clamp_min(0) ** 2) - 0.38,
            box(torch.maximum(x.abs() * 0.866 + y * 0.5, -y) - 0.4, height - 0.6),
        ]
    )
    return choices[kinds_B, torch.arange(len(kinds_B))]


def _lit_solids(kinds_B: Tensor, size: int, generator: torch.Generator) -> Tensor:
    batch = len(kinds_B)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    rotation_B33 = torch.linalg.qr(torch.randn(batch, 3, 3, generator=generator))[0]
    zoom_B = uniform(0.9, 1.8, 1)
    line = (torch.arange(size) + 0.5) * (2.0 / size) - 1.0
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    x_BN = columns.flatten() * zoom_B * 1.1 + uniform(-0.3, 0.3, 1)
    y_BN = rows.flatten() * zoom_B * 1.1 + uniform(-0.3, 0.3, 1)
    z_BN = torch.full_like(x_BN, -2.5)
    for _ in range(28):
        z_BN = z_BN + _solid_distances(rotation_B33 @ torch.stack([x_BN, y_BN, z_BN], 1), kinds_B)
    at_B3N = rotation_B33 @ torch.stack([x_BN, y_BN, z_BN], 1)
    hit_BN = (_solid_distances(at_B3N, kinds_B) < 0.02) & (z_BN < 2.0)
    near = _solid_distances(at_B3N, kinds_B)
    slope = [_solid_distances(at_B3N + 1e-3 * torch.eye(3)[axis][None, :, None], kinds_B) - near for axis in range(3)]
    normal_B3N = nn.functional.normalize(torch.stack(slope, 1), dim=1)
    lamp_B3 = nn.functional.normalize(torch.cat([uniform(-1, 1, 2), uniform(-1.2, -0.4, 1)], 1), dim=1)
    lamp_B31 = rotation_B33 @ lamp_B3[..., None]
    light_BN = (normal_B3N * lamp_B31).sum(1).clamp_min(0.0) * uniform(0.5, 0.9, 1) + uniform(0.05, 0.25, 1)
    body_B3N = light_BN[:, None] * uniform(0.4, 1.0, 3, 1)
    tilt_BN = uniform(-0.3, 0.3, 1) * columns.flatten() + uniform(-0.3, 0.3, 1) * rows.flatten()
    back_B3N = uniform(0.0, 1.0, 3, 1) + tilt_BN[:, None]
    picture = torch.where(hit_BN[:, None], body_B3N, back_B3N).clamp(0, 1)
    picture = picture + uniform(0.0, 0.06, 1, 1) * torch.randn(picture.shape, generator=generator)
    return (picture.clamp(0, 1) * 255 + 0.5).to(torch.uint8).view(batch, 3, size, size)

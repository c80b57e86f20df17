"""How fast JPEG files become 224-pixel training views, against torchvision's ImageFolder with the usual v2 transforms.

    OMP_NUM_THREADS=1 python tests/benchmarks/decode_speed.py

One process, one thread, files in the page cache; the two ways take turns over the same files, and each figure is the
median over the rounds. Both crop 25 to 100 % of the area at random and mirror. The pictures are noise with the 1/f spectrum
of natural images (Field 1987), compressed at quality 90; the large ones are blurred by 1.5 pixels, as lens and demosaicing
blur a photograph of 12 megapixels, to be as large on disk as a phone's. Most of the time for them goes into the entropy
decoding, which both have to do, so the gain depends on that size. Ours stops at uint8, because the model normalises; a
second column lets torchvision stop there too.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from finetune.data.decode import decode_image
from finetune.data.transforms import eval_view, train_view
from finetune.input_spec import IMAGENET_MEAN, IMAGENET_STD, InputSpec

CASES = ((500, 375, 0.0, 48, 15), (4000, 3000, 1.5, 3, 9))  # width, height, blur in pixels, files, rounds


def natural(width: int, height: int, seed: int) -> Image.Image:
    """A colour picture whose amplitudes fall as one over the frequency."""
    generator = np.random.default_rng(seed)
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = 1 / np.maximum(np.hypot(y, x), 1 / max(width, height))
    shared = np.fft.irfft2(amplitude * np.exp(2j * np.pi * generator.random(amplitude.shape)), (height, width))
    channels = []
    for _ in range(3):
        own = np.fft.irfft2(amplitude * np.exp(2j * np.pi * generator.random(amplitude.shape)), (height, width))
        channel = shared / shared.std() + 0.3 * own / own.std()
        channels.append(120 + 48 * channel)
    return Image.fromarray(np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8))


def main() -> None:
    torch.set_num_threads(1)
    crop = [v2.RandomResizedCrop(224, scale=(0.25, 1.0)), v2.RandomHorizontalFlip(), v2.ToImage()]
    usual = v2.Compose([*crop, v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    bytes_only = v2.Compose(crop)
    view = train_view(InputSpec(), augment="standard")
    print(f"torch {torch.__version__}, one thread; images a second (median of rounds)")
    for width, height, blur, files, rounds in CASES:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(files):
                path = Path(folder, "ab"[number % 2], f"{number}.jpg")
                path.parent.mkdir(exist_ok=True)
                natural(width, height, number).filter(ImageFilter.GaussianBlur(blur)).save(path, quality=90)
            paths = sorted(str(path) for path in Path(folder).rglob("*.jpg"))
            size = sum(Path(path).stat().st_size for path in paths) / files / 1e6
            folders = {
                "ImageFolder, v2": ImageFolder(folder, usual),
                "ImageFolder, uint8": ImageFolder(folder, bytes_only),
            }

            def ours(paths: list[str] = paths) -> None:
                for path in paths:
                    view(decode_image(path, channels=3, min_side=view.min_side))

            ways = {name: (lambda data=data: [data[row] for row in range(len(data))]) for name, data in folders.items()}
            ways["ours"] = ours
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(rounds + 1):
                for name, way in ways.items():
                    start = time.perf_counter()
                    way()
                    if turn:  # the first round warms up
                        seconds[name].append(time.perf_counter() - start)
            rates = {name: files / statistics.median(taken) for name, taken in seconds.items()}
            best = rates.pop("ours")
            print(f"{width} x {height} ({size:.2f} MB): ours {best:.0f}, " + ", ".join(
                f"{name} {rate:.0f} ({best / rate:.2f} x)" for name, rate in rates.items()))  # fmt: skip
            # the smallest crop that the view makes, its edges on whole pixels of both decodings
            looks = {
                "evaluation view": eval_view(InputSpec()),
                "smallest training crop": smallest_crop,
                "training view, with crops rounded to whole pixels": view,
            }
            for name, look in looks.items():
                min_side = eval_view(InputSpec()).min_side if name.startswith("evaluation") else view.min_side
                print(f"    {name}, scaled against full decoding: {difference(paths[:12], look, min_side)}")


def smallest_crop(image: torch.Tensor) -> torch.Tensor:
    """The middle quarter of an image's area at 224 pixels."""
    height, width = image.shape[-2:]
    middle = image[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
    return eval_view(InputSpec(size=(224, 224), crop_mode="squash"))(middle)


def difference(paths: list[str], look: Callable[[torch.Tensor], torch.Tensor], min_side: int) -> str:
    """Mean and largest difference, in levels of 0..255, of the same view of the two decodings."""
    means, largest = [], 0.0
    for number, path in enumerate(paths):
        views = []
        for smaller in (None, min_side):
            torch.manual_seed(number)
            views.append(look(decode_image(path, channels=3, min_side=smaller)).float())
        gap = (views[0] - views[1]).abs()
        means.append(float(gap.mean()))
        largest = max(largest, float(gap.max()))
    return f"mean {statistics.mean(means):.2f}, largest {largest:.0f}"


if __name__ == "__main__":
    main()

"""Plants fifty kinds of copies among other pictures, and counts how many the audit finds and what it finds besides.

    uv run python tests/benchmarks/planted_copies.py                       # generated pictures alone
    uv run python tests/benchmarks/planted_copies.py --folder DIR --others 2000
    uv run python tests/benchmarks/planted_copies.py --mixed DIR DIR --others 20000 --sheet pairs.png   # nothing is planted

Each kind is planted ``--times`` times, each time from another picture. A kind counts as found if more than half of its copies
are found with their original. Pictures of a folder that are found although none was planted are listed, to be looked at: real
folders hold copies of their own. ``--sheet`` shows them side by side. Files of equal bytes count once.
"""

import argparse
import hashlib
import io
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from finetune.data.decode import decode_image
from finetune.data.image_file import UnreadableImage
from finetune.data.near_duplicates import READ_AT_LEAST, near_duplicates, small_copies

Change = Callable[[Image.Image], Image.Image]


def jpeg(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return change


def crop(left: float, top: float, right: float, bottom: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        w, h = image.size
        return image.crop((round(left * w), round(top * h), round(right * w), round(bottom * h)))

    return change


def frame(share: float, colour: str) -> Change:
    return lambda image: ImageOps.expand(image, round(share * min(image.size)), colour)


def text(image: Image.Image) -> Image.Image:
    marked = image.copy()
    draw = ImageDraw.Draw(marked)
    size = max(8, image.height // 9)
    draw.text((image.width // 8, image.height // 2 - size // 2), "SAMPLE PICTURE", fill="white", font_size=size)
    return marked


def logo(image: Image.Image) -> Image.Image:
    marked = image.copy()
    w, h = image.size
    ImageDraw.Draw(marked).ellipse((0.72 * w, 0.72 * h, 0.97 * w, 0.97 * h), fill="red", outline="white")
    return marked


def tiled_mark(image: Image.Image) -> Image.Image:
    layer = Image.new("RGB", image.size)
    draw = ImageDraw.Draw(layer)
    size = max(7, image.height // 14)
    for y in range(0, image.height, 3 * size):
        for x in range(0, image.width, 6 * size):
            draw.text((x, y), "mark", fill=(200, 200, 200), font_size=size)
    return ImageChops.screen(image, layer.point(lambda level: level // 3))


def channels(order: str) -> Change:
    return lambda image: Image.merge("RGB", [image.getchannel(name) for name in order])


def gamma(power: float) -> Change:
    return lambda image: image.point(lambda level: round(255 * (level / 255) ** power))


def noise(deviation: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        pixels = np.asarray(image, np.float32)
        random = np.random.default_rng(0)
        return Image.fromarray((pixels + random.normal(0, deviation, pixels.shape)).clip(0, 255).astype(np.uint8))

    return change


def scaled(share: float) -> Change:
    return lambda image: image.resize((max(8, round(share * image.width)), max(8, round(share * image.height))))


def vignette(image: Image.Image) -> Image.Image:
    y, x = np.mgrid[-1 : 1 : image.height * 1j, -1 : 1 : image.width * 1j]
    return Image.fromarray((np.asarray(image) * (1 - 0.3 * (x**2 + y**2))[..., None]).astype(np.uint8))


def both(one: Change, other: Change) -> Change:
    return lambda image: other(one(image))


def turned(degrees: float, *, inside: bool = False) -> Change:
    def change(image: Image.Image) -> Image.Image:
        turned = image.rotate(degrees, Image.Resampling.BICUBIC)
        margin = 0.15
        return crop(margin, margin, 1 - margin, 1 - margin)(turned) if inside else turned

    return change


KINDS: dict[str, Change] = {
    "recompressed at 90": jpeg(90),
    "recompressed at 50": jpeg(50),
    "recompressed at 20": jpeg(20),
    "half size": scaled(0.5),
    "quarter size": scaled(0.25),
    "enlarged": scaled(1.7),
    "squashed": lambda image: image.resize((image.width, round(0.7 * image.height))),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "sepia": lambda image: ImageOps.colorize(image.convert("L"), "#2b1a0a", "#ffe9c4"),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.6),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.5),
    "more colour": lambda image: ImageEnhance.Color(image).enhance(2.0),
    "gamma 0.6": gamma(0.6),
    "gamma 1.7": gamma(1.7),
    "equalised": ImageOps.equalize,
    "stretched levels": lambda image: ImageOps.autocontrast(image, cutoff=2),
    "four bits": lambda image: ImageOps.posterize(image, 3),
    "channels exchanged": channels("BGR"),
    "channels turned": channels("GBR"),
    "negative": ImageOps.invert,
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(image.width / 120)),
    "sharpened": lambda image: image.filter(ImageFilter.UnsharpMask(3, 150)),
    "noisy": noise(15),
    "vignette": vignette,
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "turned by 90": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "turned by 180": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "turned by 270": lambda image: image.transpose(Image.Transpose.ROTATE_270),
    "transposed": lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    "turned by 3": turned(3),
    "turned by 8": turned(8),
    "turned by 12, cropped": turned(12, inside=True),
    "cropped to 92 %": crop(0.04, 0.04, 0.96, 0.96),
    "cropped to 85 %": crop(0.075, 0.075, 0.925, 0.925),
    "cropped to 75 %": crop(0.125, 0.125, 0.875, 0.875),
    "cropped from a corner": crop(0, 0, 0.82, 0.82),
    "cropped below": crop(0, 0, 1, 0.8),
    "cropped at the left": crop(0.2, 0, 1, 1),
    "white frame": frame(0.06, "white"),
    "wide black frame": frame(0.15, "black"),
    "bars above and below": lambda image: ImageOps.pad(image, (image.width, round(1.3 * image.height)), color="black"),
    "text across": text,
    "logo in a corner": logo,
    "watermark all over": tiled_mark,
    "mirrored and recompressed": both(ImageOps.mirror, jpeg(40)),
    "cropped, mirrored": both(crop(0.06, 0.06, 0.94, 0.94), ImageOps.mirror),
    "grey, cropped, recompressed": both(
        crop(0.05, 0, 0.95, 0.9), both(lambda i: i.convert("L").convert("RGB"), jpeg(50))
    ),
}


def generated(number: int, side: int = 160) -> Image.Image:
    """A picture like a photograph in its statistics: coloured clouds with shapes in front."""
    random = np.random.default_rng(number)
    falloff = np.maximum(np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None]), 1 / side) ** -1.3
    spectrum = (random.normal(size=(3, side, side)) + 1j * random.normal(size=(3, side, side))) * falloff
    clouds = np.fft.ifft2(0.75 * spectrum[:1] + 0.25 * spectrum).real
    clouds = (clouds - clouds.mean()) / clouds.std()
    image = Image.fromarray((128 + 50 * clouds).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    draw = ImageDraw.Draw(image)
    for _ in range(int(random.integers(2, 8))):
        x, y, w, h = random.uniform(0, side, 2).tolist() + random.uniform(side / 12, side / 2, 2).tolist()
        shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
        shape((x - w / 2, y - h / 2, x + w / 2, y + h / 2), fill=tuple(random.integers(0, 256, 3).tolist()))
    return image


def pixels(image: Image.Image) -> torch.Tensor:
    """Pixels of a picture, uint8 (3, H, W)."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)


def plant(originals: list[Image.Image]) -> tuple[list[torch.Tensor], dict[tuple[int, int], str]]:
    """Return the pictures with copies behind them, and the kind of each planted pair of positions."""
    pictures = [pixels(image) for image in originals]
    planted = {}
    for number, image in enumerate(originals):
        kind = list(KINDS)[number % len(KINDS)]
        planted[number, len(pictures)] = kind
        pictures.append(pixels(KINDS[kind](image)))
    return pictures, planted


def image_files(folders: list[Path]) -> list[Path]:
    """The image files of some folders, of which equal ones count once, in an order by chance that is always the same."""
    by_bytes = {}
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png") and path.is_file():
            by_bytes.setdefault(hashlib.blake2b(path.read_bytes()).digest(), path)
    files = list(by_bytes.values())
    np.random.default_rng(0).shuffle(files)
    return files


def compare_mixed(folders: list[Path], *, most: int, sheet: Path | None) -> None:
    """Print the pairs that are found among real pictures without planted copies."""
    files, small = [], []
    for path in image_files(folders):
        if len(files) == most:
            break
        try:
            small.append(
                small_copies(np.arange(1), lambda _, path=path: decode_image(str(path), channels=3, min_side=64))
            )
        except UnreadableImage:
            continue
        files.append(path)
    began = time.process_time()
    found = near_duplicates(
        np.arange(len(files)),
        torch.cat(small),
        lambda row: decode_image(str(files[row]), channels=3, min_side=READ_AT_LEAST),
    )
    print(f"{len(found.pairs)} pairs among {len(files)} pictures; {found.of_one_kind} pictures are of one kind")
    print(f"{time.process_time() - began:.0f} s of processor time, threshold {found.threshold:.2f}")
    for (one, other), value in zip(found.pairs, found.agreement, strict=True):
        print(f"  {value:.2f}  {files[one]} = {files[other]}")
    if sheet is not None:
        draw_sheet([(files[one], files[other]) for one, other in found.pairs]).save(sheet)


def draw_sheet(pairs: list[tuple[Path, Path]], side: int = 80, across: int = 8) -> Image.Image:
    """Pairs side by side, numbered in the order in which they are listed."""
    width, height = 2 * side + 12, side + 14
    image = Image.new("RGB", (across * width, -(-len(pairs) // across) * height), "white")
    draw = ImageDraw.Draw(image)
    for number, pair in enumerate(pairs):
        left, top = number % across * width, number // across * height
        for place, path in enumerate(pair):
            seen = decode_image(str(path), channels=3, min_side=side).permute(1, 2, 0).numpy()
            image.paste(Image.fromarray(seen).resize((side, side)), (left + place * (side + 2), top))
        draw.text((left, top + side), str(number), fill="black", font_size=10)
    return image


def main() -> None:
    """Print what is found of each kind, and what is found besides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="real pictures; generated ones without it")
    parser.add_argument(
        "--mixed", type=Path, nargs="+", metavar="DIR", help="real pictures, among which nothing is planted"
    )
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="picture of the pairs found with --mixed")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--others", type=int, default=500)
    args = parser.parse_args()
    if args.mixed:
        compare_mixed(args.mixed, most=args.others, sheet=args.sheet)
        return
    wanted = args.times * len(KINDS)
    if args.folder:
        files = image_files([args.folder])[: wanted + args.others]
        images = [
            Image.fromarray(decode_image(str(path), channels=3).permute(1, 2, 0).contiguous().numpy()) for path in files
        ]
        names = [str(path.relative_to(args.folder)) for path in files]
    else:
        images = [generated(number) for number in range(wanted + args.others)]
        names = [f"generated {number}" for number in range(len(images))]
    pictures, planted = plant(images[:wanted])
    names = [*names[:wanted], *(f"{kind} of {names[one]}" for (one, _), kind in planted.items()), *names[wanted:]]
    pictures += [pixels(image) for image in images[wanted:]]
    began = time.perf_counter()
    rows = np.arange(len(pictures))
    found = near_duplicates(rows, small_copies(rows, lambda row: pictures[row]), lambda row: pictures[row])
    seconds = time.perf_counter() - began
    times, hits = defaultdict(int), defaultdict(int)
    for pair, kind in planted.items():
        times[kind] += 1
        hits[kind] += pair in found.pairs
    whole = [kind for kind in times if 2 * hits[kind] > times[kind]]
    for kind in times:
        if hits[kind] < times[kind]:
            print(f"{kind}: {hits[kind]} of {times[kind]}")
    copies = f"{sum(hits.values())} of {len(planted)} copies"
    print(f"{len(whole)} of {len(times)} kinds, {copies}; {seconds:.1f} s, threshold {found.threshold:.2f}")
    besides = [(pair, value) for pair, value in zip(found.pairs, found.agreement, strict=True) if pair not in planted]
    print(f"besides: {len(besides)} pairs among {len(pictures)} pictures; {found.of_one_kind} pictures are of one kind")
    for (one, other), value in besides[:40]:
        print(f"  {value:.2f}  {names[one]} = {names[other]}")


if __name__ == "__main__":
    main()

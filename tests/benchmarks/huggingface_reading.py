"""How fast are the images of a Hugging Face data set read, against a folder of the same files?

    uv run python tests/benchmarks/huggingface_reading.py FOLDER --images 2000

The JPEGs and PNGs below FOLDER, again and again until there are that many, are written as a folder of classes and saved as a
data set. Each turn is one epoch of training views at 224 pixels by the data module, of the folder and of the data set in turn,
without loader processes (threads of this process read) and with two; the first turn warms up. Images a second, the median of the
turns; the data set should be within 20 % of the folder. 1,000 photographs, two cores on which others ran (load 8 to 11; the
ratio is what holds), 2026-12-01:

    0 loader processes: folder 236, data set 254: 1.08 of the folder's
    2 loader processes: folder 215, data set 204: 0.95 of the folder's
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from finetune.data.datamodule import ImageDataModule
from finetune.data.image_source import Source
from finetune.input_spec import InputSpec

BAR = 0.8


def sources(files: list[Path], count: int, work: Path) -> dict[str, Source]:
    """The same images as a folder and as a data set with their bytes."""
    import datasets

    from finetune.data.huggingface_datasets import huggingface_source
    from finetune.data.sources.folder import folder_source

    rows = []
    for number in range(count):
        path = files[number % len(files)]
        copy = work / "folder" / path.parent.name / f"{number}{path.suffix.lower()}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        # JPEG and PNG readers ignore what stands behind the end, so that no two images are copies
        copy.write_bytes(path.read_bytes() + number.to_bytes(4, "little"))
        rows.append({"image": {"bytes": None, "path": str(copy)}, "label": path.parent.name})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    # saving puts the bytes of the files into the data set
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(work / "saved"))
    return {
        "folder": folder_source(root=str(work / "folder")),
        "data set": huggingface_source(path=str(work / "saved")),
    }


def main() -> None:
    """Read epochs of both in turn, and print images a second and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=7)
    given = parser.parse_args()
    files = sorted(path for path in given.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    with tempfile.TemporaryDirectory() as work:
        os.environ["FINETUNE_CACHE"] = str(Path(work, "cache"))
        both = sources(files, given.images, Path(work))
        print(f"{torch.get_num_threads()} threads; images a second, median of {given.turns} turns")
        for workers in (0, 2):
            loaders = {
                name: ImageDataModule(source=source, spec=InputSpec(), num_workers=workers).train_dataloader()
                for name, source in both.items()
            }
            rates: dict[str, list[float]] = {name: [] for name in loaders}
            for turn in range(given.turns + 1):
                for name, loader in loaders.items():
                    begun = time.perf_counter()
                    images = sum(len(batch.rows) for batch in loader)
                    if turn:
                        rates[name].append(images / (time.perf_counter() - begun))
            folder, data_set = (statistics.median(rates[name]) for name in ("folder", "data set"))
            verdict = "within" if data_set >= BAR * folder else "outside"
            print(
                f"{workers} loader processes: folder {folder:.0f}, data set {data_set:.0f}: {data_set / folder:.2f} of the "
                f"folder's, {verdict} the bar of {BAR:g}"
            )


if __name__ == "__main__":
    main()

"""What does the start of a run cost on a data set of the Hugging Face library, the first time and after that?

    uv run python tests/benchmarks/huggingface_start.py FOLDER --images 20000

The JPEGs and PNGs below FOLDER, again and again until there are that many, are saved as a data set; then its index is built in
three processes, one after the other, and the processor and wall seconds of each are printed, without the imports. 20,000
photographs of 43 kB, two busy cores, 2026-11-30:

    start      CPU s   wall s
    first      24.81    36.04
    second      0.28     0.47
    third       0.32     0.63

Before the facts were kept, and with one thread, every start was the first.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ONCE = """
import sys, time
import datasets, pyarrow, torch
from finetune.data.huggingface_datasets import huggingface_source
wall, cpu = time.perf_counter(), time.process_time()
source = huggingface_source(path=sys.argv[1])
print(f"{time.process_time() - cpu:8.2f} {time.perf_counter() - wall:8.2f}")
"""


def main() -> None:
    """Save the data set, build its index twice, and print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    given = parser.parse_args()

    import datasets

    files = sorted(path for path in given.folder.rglob("*") if path.suffix in (".jpg", ".jpeg", ".png"))
    with tempfile.TemporaryDirectory() as work:

        def rows() -> object:
            for number in range(given.images):
                path = files[number % len(files)]
                # JPEG and PNG readers ignore what stands behind the end, so that no two images are copies
                content = path.read_bytes() + number.to_bytes(4, "little")
                yield {"image": {"bytes": content, "path": None}, "label": path.parent.name}

        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
        saved = datasets.Dataset.from_generator(rows, features=features, cache_dir=str(Path(work, "made")))
        saved.save_to_disk(str(Path(work, "saved")))
        print("start      CPU s   wall s")
        for name in ("first", "second", "third"):
            environment = {"FINETUNE_CACHE": str(Path(work, "cache"))}
            out = subprocess.run(
                [sys.executable, "-c", ONCE, str(Path(work, "saved"))],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **environment},
            )
            print(f"{name:<8}{out.stdout.rstrip()}")


if __name__ == "__main__":
    main()

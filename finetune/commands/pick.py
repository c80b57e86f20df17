"""``finetune pick``: choose which images without labels to label next."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.options import TRUST, Arguments, home_path, numeric
from finetune.counted import counted
from finetune.errors import RunError, UserError
from finetune.runners.bundle_modules import modules_of

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.inference.pick import Picked
    from finetune.inference.torch_engine import TorchEngine

ABOUT = """\
Choose the images to label next: those that are typical of groups in which no image of the run's own data lies (TypiClust, arXiv
2202.02794), by the features of its network. IMAGES are files, folders with all images below them, patterns or lists, as finetune
predict takes them. The table has the columns path, label, predicted and probability: fill in label, and train with data=manifest
data.path=FILE. Copies are chosen once; images of the run's own data are left out."""


def run(argv: Sequence[str]) -> int:
    """Run ``finetune pick`` and return the exit status."""
    parser = Arguments("pick", ABOUT)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("images", metavar="IMAGES", nargs="+")
    parser.add_argument(
        "-n", "--count", required=True, type=numeric(int, least=1), metavar="N", help="how many images to choose"
    )
    parser.add_argument(
        "--output",
        type=home_path,
        default=Path("to_label.csv"),
        metavar="FILE.csv",
        help="table to fill in; a new file (to_label.csv)",
    )
    parser.examples["--output"] = ("to_label.csv",)
    parser.add_argument("--sheet", type=home_path, metavar="FILE.html", help="also a page of the pictures")
    parser.add_argument("--seed", type=numeric(int, least=0), default=0, metavar="N", help="seed of the choice (0)")
    parser.add_argument(
        "--batch-size", type=numeric(int, least=1), default=32, metavar="N", help="images in one pass (32)"
    )
    parser.add_argument("--trust", action="store_true", help=TRUST)
    given = parser.read(argv)

    from finetune.bundle import find_bundle
    from finetune.inference.image_paths import find_images
    from finetune.inference.prediction_table import check_file

    check_file(given.output, suffixes=(".csv",), name="--output")
    if given.output.exists():
        raise UserError(
            f"--output {given.output}: must be a new file, so that no labels in it are lost. Choose another."
        )
    if given.sheet is not None:
        check_file(given.sheet, suffixes=(".html",), name="--sheet")
    find_bundle(given.run)  # reports a wrong path before torch builds a network
    paths = find_images(given.images)

    from finetune.inference.pick import left_out_in_words, nothing_left_in_words
    from finetune.inference.torch_engine import TorchEngine
    from finetune.runners.pick import pick_for_run

    engine = TorchEngine(given.run, modules=modules_of(given.run, trust=given.trust))
    picked = pick_for_run(given.run, engine, paths, given.count, batch_size=given.batch_size, seed=given.seed)
    if not picked.images:
        raise RunError(f"{' '.join(given.images)}: {nothing_left_in_words(picked)}")

    from finetune.atomic_files import atomic_path, write_text

    # names of files may be no UTF-8; a table for training has them as they are
    with atomic_path(given.output) as part:
        part.write_text(table(picked), encoding="utf-8", errors="surrogateescape", newline="")
    some = "" if picked.compared == picked.labelled else f"{picked.compared:,} of "
    beside = f", beside {some}{counted(picked.labelled, 'image')} with labels" if picked.labelled else ""
    print(f"{counted(len(picked.images), 'image')} of {picked.pool:,} to label{beside}: {given.output}")
    if left_out_in_words(picked):
        print(left_out_in_words(picked))
    if given.sheet is not None:
        write_text(given.sheet, _sheet(picked, engine, model=Path(given.run).name))
        print(f"sheet: {given.sheet}")
    return 0


def table(picked: "Picked") -> str:
    """Return the table to fill in, as CSV."""
    from finetune.inference.pick import COLUMNS
    from finetune.terminal import csv_cell

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for image in picked.images:
        writer.writerow([image.path, "", csv_cell(image.predicted), f"{image.probability:.4f}"])
    return text.getvalue()


def _sheet(picked: "Picked", engine: "TorchEngine", *, model: str) -> str:
    from finetune.data.image_file import UnreadableImage
    from finetune.report.contact_sheet import Group, Tile, contact_sheet

    def picture(path: str) -> "Tensor | None":
        try:
            return engine.read(path)
        except (UnreadableImage, OSError):
            return None

    tiles = [
        Tile(path=image.path, lines=[f"{image.predicted or 'none of the classes'} {image.probability:.0%}"])
        for image in picked.images
    ]
    return contact_sheet(
        title=f"To label next, by {model}",
        facts=[
            f"{counted(len(tiles), 'image')} of {picked.pool:,}, the most useful first. Below each what is predicted now."
        ],
        groups=[Group(title="To label", tiles=tiles)],
        pictures=picture,
    )

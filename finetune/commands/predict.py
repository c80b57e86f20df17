"""``finetune predict``: classify images with a trained run or an exported ONNX file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.options import Arguments, home_path, numeric
from finetune.commands.own_modules import HELP, modules_of
from finetune.errors import UserError

if TYPE_CHECKING:
    from finetune.inference.onnx_engine import OnnxEngine
    from finetune.inference.torch_engine import TorchEngine

ABOUT = """\
Classify images into a table: CSV, JSON Lines or Parquet by the suffix of --output.
IMAGES are files, folders with all images below them, patterns ('photos/**/*.jpg'), lists (.csv, .tsv or .parquet with a
column path, .txt with one path per line), or - for a list on standard input. Unreadable images become rows with the reason.
A multi-label model predicts all classes above 0.5, joined by ';'; probability is that of the top one.
If interrupted, run the same command to continue. In CSV, a name that a spreadsheet would take for a formula gets an
apostrophe before it.
RUN may be a file of finetune export --format onnx: it runs on ONNX Runtime, without PyTorch."""


def run(argv: Sequence[str]) -> int:
    """Run the command."""
    parser = Arguments("predict", ABOUT)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("images", metavar="IMAGES", nargs="+")
    parser.add_argument(
        "--output", required=True, type=home_path, metavar="FILE", help="predictions.csv, .jsonl or .parquet"
    )
    parser.add_argument("--top-k", type=numeric(int, least=1), default=1, metavar="K", help="classes in each row (1)")
    parser.add_argument(
        "--batch-size", type=numeric(int, least=1), default=32, metavar="N", help="images in one pass (32)"
    )
    parser.add_argument(
        "--runtime", choices=["torch", "onnx"], help="default: by RUN; onnx with a run takes its export"
    )
    parser.add_argument("--trust", action="store_true", help=HELP)
    given = parser.read(argv)

    from finetune.inference.image_paths import find_images
    from finetune.inference.predict import predict_to_file
    from finetune.inference.prediction_table import check_output

    check_output(given.output)
    engine = choose_engine(given.run, given.runtime, trust=given.trust)
    try:
        rows, errors = predict_to_file(
            engine, find_images(given.images), given.output, top_k=given.top_k, batch_size=given.batch_size
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("\nStopped. Finished rows are kept; run the same command to continue.") from None
    print(f"{rows} images, {errors} of them unreadable: {given.output}" if errors else f"{rows} images: {given.output}")
    return 0


def choose_engine(run: str, runtime: str | None, *, trust: bool = False) -> "TorchEngine | OnnxEngine":
    """Open PyTorch for a run or a bundle, and ONNX Runtime for an ONNX file.

    Raises:
        UserError: RUN and runtime do not match, or RUN cannot be opened.
    """
    path = Path(run).expanduser()
    is_file = path.suffix == ".onnx"
    if is_file and runtime == "torch":
        raise UserError(f"--runtime torch: takes a run or a bundle. '{run}' is an ONNX file.")
    if is_file or runtime == "onnx":
        from finetune.inference.onnx_engine import OnnxEngine

        return OnnxEngine(path if is_file else path / "exports" / "model.onnx")
    from finetune.bundle import find_bundle

    find_bundle(run)  # reports a wrong path before torch builds a network

    from finetune.inference.torch_engine import TorchEngine

    return TorchEngine(run, modules=modules_of(run, trust=trust))

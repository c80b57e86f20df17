"""``finetune predict``: classify images with a trained run or an exported ONNX file."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.options import TRUST, Arguments, home_path, numeric
from finetune.counted import counted
from finetune.errors import RunError, UserError
from finetune.file_schema import THRESHOLD
from finetune.runners.bundle_modules import modules_of

if TYPE_CHECKING:
    from finetune.inference.job_store import JobRow
    from finetune.inference.onnx_engine import OnnxEngine
    from finetune.inference.prediction_table import Prediction
    from finetune.inference.torch_engine import TorchEngine
    from finetune.report.prediction_sheet import PredictionSheet

ABOUT = f"""\
Classify images into a table: CSV, JSON Lines or Parquet by the suffix of --output.
IMAGES are files, folders with all images below them, patterns ('photos/**/*.jpg'), lists (.csv, .tsv or .parquet with a
column path, .txt with one path per line), or - for a list on standard input. Unreadable images become rows with the reason.
A multi-label model predicts all classes above their thresholds ({THRESHOLD}, or those of thresholds=f1), joined by ';';
probability is that of the top one.
The column known is false, and unknown_score above 1, for images unlike the training images; predicted is their nearest class.
If interrupted, run the same command to continue. In CSV, a name that a spreadsheet would take for a formula gets an
apostrophe before it.
RUN may be a file of finetune export --format onnx: it runs on ONNX Runtime, without PyTorch."""


def run(argv: Sequence[str]) -> int:
    """Run ``finetune predict`` and return the exit status."""
    parser = Arguments("predict", ABOUT)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("images", metavar="IMAGES", nargs="+")
    parser.add_argument(
        "--output", required=True, type=home_path, metavar="FILE", help="predictions.csv, .jsonl or .parquet"
    )
    parser.examples["--output"] = ("predictions.csv", "predictions.jsonl", "predictions.parquet")
    parser.add_argument(
        "--sheet", type=home_path, metavar="FILE.html", help="also a page of pictures by class and confidence"
    )
    parser.add_argument(
        "--excel", action="store_true", help="begin CSV with the mark by which Excel knows accents (UTF-8)"
    )
    parser.add_argument("--top-k", type=numeric(int, least=1), default=1, metavar="K", help="classes in each row (1)")
    parser.add_argument(
        "--batch-size", type=numeric(int, least=1), default=32, metavar="N", help="images in one pass (32)"
    )
    parser.add_argument(
        "--unknown", action="store_true", help="predict 'unknown' for images unlike the training images"
    )
    parser.add_argument(
        "--accept",
        type=numeric(float),
        metavar="ACCURACY",
        help="add a column accepted: true for the most confident answers that together reach this accuracy, for example 0.99",
    )
    parser.add_argument(
        "--least", type=numeric(float), metavar="P", help="accept the answers of at least this probability"
    )
    parser.add_argument(
        "--sets",
        type=numeric(float),
        metavar="COVERAGE",
        help="add a column set: as many classes as it takes for the true one to be among them in this share of images, for "
        "example 0.95",
    )
    parser.add_argument(
        "--runtime", choices=["torch", "onnx"], help="default: by RUN; onnx with a run takes its export"
    )
    parser.add_argument("--trust", action="store_true", help=TRUST)
    given = parser.read(argv)

    from finetune.confidence.conformal import prediction_sets
    from finetune.confidence.selective import acceptance
    from finetune.inference.image_paths import find_images
    from finetune.inference.predict import predict_to_file
    from finetune.inference.prediction_table import check_file, check_output

    check_output(given.output)
    if given.excel and given.output.suffix != ".csv":
        raise UserError(f"--excel: belongs to CSV. Use --output {given.output.with_suffix('.csv')}.")
    if given.sheet is not None:
        check_file(given.sheet, suffixes=(".html",), name="--sheet")
    engine = choose_engine(given.run, given.runtime, trust=given.trust)
    accepted = acceptance(accept=given.accept, least=given.least, curve=engine.selective, several=engine.multi_label)
    sets = prediction_sets(coverage=given.sets, curve=engine.conformal, several=engine.multi_label)
    sheet = None
    if given.sheet is not None:
        from finetune.report.prediction_sheet import PredictionSheet

        sheet = PredictionSheet(several=engine.multi_label)
    try:
        rows, errors = predict_to_file(
            engine,
            find_images(given.images),
            given.output,
            top_k=given.top_k,
            batch_size=given.batch_size,
            excel=given.excel,
            acceptance=accepted,
            sets=sets,
            names_unknown=given.unknown,
            **({} if sheet is None else {"see": partial(_see, sheet)}),
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("\nStopped. Finished rows are kept; run the same command to continue.") from None
    unreadable = f", {errors} of them unreadable" if errors else ""
    print(f"{counted(rows, 'image')}{unreadable}: {given.output}")
    if sheet is not None:
        write_sheet(sheet, engine, given.sheet, model=given.run)
        print(f"sheet: {given.sheet}")
    if errors and errors == rows:
        raise RunError(
            f"{' '.join(given.images)}: no image could be read, so nothing was predicted. {given.output} has the reason of each."
        )
    return 0


def _see(sheet: "PredictionSheet", row: "JobRow", prediction: "Prediction") -> None:
    """Add a row of the table to a sheet."""
    from finetune.report.prediction_sheet import Sighting

    if prediction.error:
        sheet.add_unreadable(prediction.path, prediction.error)
        return
    target, probability = row.result["top"][0]
    predicted = prediction.predicted
    sheet.add(
        Sighting(path=row.path, name=prediction.path, predicted=predicted, target=target, probability=probability)
    )


def write_sheet(sheet: "PredictionSheet", engine: "TorchEngine | OnnxEngine", path: Path, *, model: str) -> None:
    """Render a sheet with the pictures that an engine reads, and write it."""
    import torch

    from finetune.atomic_files import write_text
    from finetune.data.decode import decode_file
    from finetune.data.transforms import eval_view
    from finetune.inference.torch_engine import TorchEngine

    view = eval_view(engine.classifier.input_spec if isinstance(engine, TorchEngine) else engine.spec)

    def read(file: str) -> torch.Tensor:
        return view.of_pixels(decode_file(file, engine.options, min_side=view.min_side))

    classifier = engine.classifier if isinstance(engine, TorchEngine) else None
    write_text(path, sheet.render(model=Path(model).name, read=read, classifier=classifier))


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

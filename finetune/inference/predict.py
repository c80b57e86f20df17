"""Classify image files with a trained model, in a stream."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import torch

from finetune.atomic import atomic_path
from finetune.data.decode import UnreadableImage, decode_image
from finetune.data.folder import SUFFIXES
from finetune.data.index import natural_order
from finetune.data.transforms import eval_view
from finetune.errors import UserError
from finetune.models.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One row of the output.

    Args:
        path: The image as it was named.
        predicted: Class of the highest probability; empty where the image cannot be read.
        probability: Its softmax probability; None where the image cannot be read.
        error: Why the image cannot be read; empty otherwise.
    """

    path: str
    predicted: str
    probability: float | None
    error: str = ""


def find_images(paths: Sequence[str | Path]) -> Iterator[str]:
    """Image files at the paths given: files as they are, folders with all images below them in natural order.

    Raises:
        UserError: A path does not exist, or a folder holds no image.
    """
    for given in paths:
        path = Path(given).expanduser()
        if path.is_dir():
            found = False
            for folder, names, files in os.walk(path):
                names[:] = natural_order(name for name in names if not name.startswith("."))
                for name in natural_order(f for f in files if f.lower().endswith(SUFFIXES) and not f.startswith(".")):
                    found = True
                    yield os.path.join(folder, name)
            if not found:
                wanted = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
                raise UserError(f"IMAGES='{given}': no images found. Looked for {wanted} below it.")
        elif path.exists():
            yield str(path)
        else:
            raise UserError(f"IMAGES='{given}': no such file or folder.")


@torch.inference_mode()
def predict(classifier: Classifier, paths: Iterable[str], *, batch_size: int = 32) -> Iterator[Prediction]:
    """Classify files one after another; an unreadable one becomes a row that says why.

    Args:
        classifier: In evaluation mode.
        paths: Image files.
        batch_size: Images in one forward pass.
    """
    view = eval_view(classifier.input_spec)
    waiting: list[tuple[str, torch.Tensor | str]] = []

    def flush() -> Iterator[Prediction]:
        images = [image for _, image in waiting if isinstance(image, torch.Tensor)]
        shares = classifier(torch.stack(images)).float().softmax(1) if images else torch.zeros(0, 1)
        best, classes = shares.max(1)
        answers = iter(zip(best.tolist(), classes.tolist(), strict=True))
        for path, image in waiting:
            if isinstance(image, str):
                yield Prediction(path=path, predicted="", probability=None, error=image)
            else:
                probability, number = next(answers)
                yield Prediction(path=path, predicted=classifier.classes[number], probability=probability)
        waiting.clear()

    for path in paths:
        try:
            channels = classifier.input_spec.channels
            waiting.append((path, view(decode_image(path, channels=channels, at_least=view.at_least))))
        except UnreadableImage as error:
            waiting.append((path, str(error)))
        if len(waiting) == batch_size:
            yield from flush()
    yield from flush()


def write_predictions(predictions: Iterable[Prediction], output: str | Path) -> tuple[int, int]:
    """Write rows as they come, to CSV or JSON Lines by the suffix; the file appears when it is whole.

    Returns:
        Number of rows, and how many of them are unreadable images.

    Raises:
        UserError: The suffix is neither.
    """
    output = Path(output)
    writers = {".csv": _write_csv, ".jsonl": _write_jsonl}
    if output.suffix not in writers:
        raise UserError(f"--output {output}: the suffix chooses the form. Use one of {', '.join(writers)}.")
    with atomic_path(output) as part, part.open("w", encoding="utf-8", newline="") as file:
        return writers[output.suffix](predictions, file)


def _write_csv(predictions: Iterable[Prediction], file: TextIO) -> tuple[int, int]:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["path", "predicted", "probability", "error"])
    rows = errors = 0
    for row in predictions:
        probability = "" if row.probability is None else repr(row.probability)
        writer.writerow([row.path, row.predicted, probability, row.error])
        rows, errors = rows + 1, errors + bool(row.error)
    return rows, errors


def _write_jsonl(predictions: Iterable[Prediction], file: TextIO) -> tuple[int, int]:
    rows = errors = 0
    for row in predictions:
        file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
        rows, errors = rows + 1, errors + bool(row.error)
    return rows, errors

"""``finetune classify``: nearest neighbours and logistic regression on features, reported like a trained run."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.commands.options import Arguments, home_path, output_folder
from finetune.counted import counted
from finetune.errors import UserError
from finetune.safe_files import inside

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from finetune.data.index import Index
    from finetune.embeddings.classify import ClassifierResult
    from finetune.embeddings.embeddings import Embeddings
    from finetune.results import Results

ABOUT = """\
Fit simple classifiers on the features in a file of finetune embed: on its training images, measured on the others.
Settings (number of neighbours, strength of the penalty) are chosen by cross-validation among the training images.
Writes a folder for each method:

  results.json      with the fields of a trained run, so that they can be compared
  predictions.csv   one row per test image, likewise
  classifier.json   what was tried and what was chosen
  head.safetensors  of logistic, if the features are the network's own: head.weights=FILE puts it on the same backbone"""


def run(argv: Sequence[str]) -> int:
    """Run ``finetune classify`` and return the exit status."""
    parser = Arguments("classify", ABOUT)
    parser.add_argument("embeddings", metavar="EMBEDDINGS")
    parser.add_argument("--method", choices=["knn", "logistic", "all"], default="all")
    parser.add_argument("--metric", choices=["cosine", "l2"], default="cosine", help="of knn (cosine)")
    parser.add_argument("--seed", type=int, default=0, help="of folds, and of splits that the file lacks")
    parser.add_argument("--output", type=home_path, metavar="DIR", help="default: beside EMBEDDINGS, NAME-classify")
    given = parser.read(argv)

    from finetune.embeddings.embeddings import errors_naming
    from finetune.embeddings.files import check_embeddings_file

    file = check_embeddings_file(given.embeddings)
    with errors_naming(file):
        return _classify(given, file)


def _classify(given: argparse.Namespace, file: Path) -> int:
    from finetune.embeddings.embeddings import Embeddings

    folder = output_folder(given.output, file.with_name(f"{file.stem}-classify"))
    embeddings = Embeddings.load(file)

    from finetune.embeddings.classify import METHODS, fit_and_test, split_index

    embeddings.require_metadata("classify", "model", "stages", "stage", "reading", "normalize", "whitening")
    _recorded(embeddings, name=f"EMBEDDINGS='{file}'")
    index, rows, notes = split_index(embeddings, seed=given.seed)
    for note in notes:
        print(note)
    features = embeddings.features[rows]
    methods = METHODS if given.method == "all" else [given.method]
    places = {method: inside(folder, method, of="folder") for method in methods}
    for method, place in places.items():
        result = fit_and_test(method, features, index, metric=given.metric, seed=given.seed)
        classifier = result.classifier
        for remark in classifier.remarks:
            print(remark)
        write_result(place, result, embeddings, index, seed=given.seed, made_splits=bool(notes))
        chosen = ", ".join(f"{name}={value:g}" for name, value in classifier.chosen.items())
        print(
            f"{method} ({chosen}): test {result.metrics['test'].in_words()} on {counted(len(result.test_rows), 'image')}"
        )
    print(f"results: {folder}")
    return 0


@dataclass(frozen=True, kw_only=True)
class _Backbone:
    """What is needed of the description of a backbone."""

    source: str
    name: str


@dataclass(frozen=True, kw_only=True)
class _Model:
    """What is needed of the record of the model that made embeddings."""

    backbone: _Backbone
    hash: str
    weights: str | None = None
    run: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What is needed of the record of embeddings."""

    model: _Model
    stages: tuple[str, ...]
    stage: str
    fingerprint: str | None = None
    skipped: int | None = None


def _recorded(embeddings: "Embeddings", *, name: str = "EMBEDDINGS") -> _Record:
    """Return what the embeddings record of the model that made them.

    Raises:
        UserError: The record is damaged.
    """
    from finetune.plain import from_plain

    record = from_plain(_Record, embeddings.metadata, name=name, remedy="Make them with finetune embed.")
    if record.stage not in record.stages:
        raise UserError(
            f"{name}: damaged. {record.stage[:80]!r} is not one of the stages. Make them with finetune embed."
        )
    return record


def write_result(
    folder: Path, result: "ClassifierResult", embeddings: "Embeddings", index: "Index", *, seed: int, made_splits: bool
) -> None:
    """Write the files of a classifier; ``results.json`` comes last."""
    import torch

    from finetune.atomic_files import write_json, write_text
    from finetune.plain import to_plain
    from finetune.training.predictions import predictions_csv

    classifier = result.classifier
    probabilities = torch.from_numpy(result.test_probabilities)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "predictions.csv", predictions_csv(index, torch.from_numpy(result.test_rows), probabilities))
    write_json(
        folder / "classifier.json",
        {"method": classifier.method, "chosen": classifier.chosen, "tried": classifier.tried},
    )
    if classifier.method == "logistic":
        _write_head(folder / "head.safetensors", classifier.arrays, embeddings)
    results = results_of(result, embeddings, index, seed=seed, own_splits=not made_splits)
    write_json(folder / "results.json", to_plain(results))


def results_of(
    result: "ClassifierResult", embeddings: "Embeddings", index: "Index", *, seed: int, own_splits: bool
) -> "Results":
    """Return the results of a head that was fitted instead of trained, with the fields of a run's ``results.json``."""
    import torch

    from finetune.models.weights import state_hash
    from finetune.results import BackboneOrigin, DataFacts, Imbalance, PhaseResult, Results, Seconds
    from finetune.versions import versions

    record, classifier = _recorded(embeddings), result.classifier
    model, backbone = record.model, record.model.backbone
    phase = PhaseResult(
        name=classifier.method,
        train=("head",),
        frozen=record.stages,
        epochs=0,
        steps=classifier.steps,
        restored="last",
        weights="raw",
        best_epoch=0,
        best={"val/acc": result.metrics["val"].acc},
        rates={},
        cached_after=record.stage,
        cached_view="evaluation",
        views=1,
        seconds=result.seconds,
    )
    return Results(
        test=result.metrics["test"],
        val=result.metrics["val"],
        phases=(phase,),
        seconds=Seconds(training=result.seconds, phases={classifier.method: result.seconds}),
        data=DataFacts(
            # the data set's own fingerprint, so that runs on the same data can be recognised
            fingerprint=(record.fingerprint if own_splits else None) or index.fingerprint(),
            classes=tuple(index.classes),
            counts={split: tuple(counts) for split, counts in index.counts().items()},
            skipped=record.skipped or 0,
            **embeddings.metadata["reading"],
        ),
        versions=versions(),
        backbone=BackboneOrigin(
            source=backbone.source, name=backbone.name, weights=model.weights or f"run {model.run}"
        ),
        schedule=f"{classifier.method} on embeddings",
        imbalance=Imbalance(loss="cross_entropy", class_weights="none", sampling="each image once"),
        # features are computed in single precision, whatever precision they are stored in
        precision="32-true",
        compiled=False,
        seed=seed,
        weights_hash=state_hash({name: torch.from_numpy(array) for name, array in classifier.arrays.items()}),
        threads=torch.get_num_threads(),
    )


def _write_head(path: Path, arrays: "Mapping[str, NDArray[np.floating[Any]]]", embeddings: "Embeddings") -> None:
    """Write a logistic regression as a head, if it was fitted on the features that a head of the network receives."""
    metadata = embeddings.metadata
    if metadata["normalize"] or metadata["whitening"] or metadata["stage"] != metadata["stages"][-1]:
        path.unlink(missing_ok=True)
        return
    import torch

    from finetune.models.heads import build_head
    from finetune.models.weights import save_head

    head = build_head(name="linear", num_features=embeddings.num_features, num_classes=len(embeddings.classes))
    state = {f"fc.{name}": torch.from_numpy(array).float() for name, array in arrays.items()}
    head.load_state_dict(state)
    hashed = _recorded(embeddings).model.hash
    save_head(path, head=head, settings=head.settings, backbone_hash=hashed, classes=embeddings.classes)

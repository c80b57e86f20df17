"""``finetune classify``: nearest neighbours and logistic regression on features, reported as a trained run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.commands.options import Arguments, output_folder

if TYPE_CHECKING:
    from finetune.data.index import Index
    from finetune.embeddings.classify import Judged
    from finetune.embeddings.embeddings import Embeddings

ABOUT = """\
Simple classifiers on the features of a file of finetune embed, fitted on its training images, measured on the others.
Settings (number of neighbours, strength of the penalty) are chosen by cross-validation among the training images.
Writes a folder for each method:

  results.json      with the fields of a trained run, so that they can be compared
  predictions.csv   one row a test image, likewise
  classifier.json   what was tried and what was chosen
  head.safetensors  of logistic, where the features are the network's own: head.weights=FILE puts it on the same backbone"""


def run(argv: Sequence[str]) -> int:
    """The command."""
    parser = Arguments("classify", ABOUT)
    parser.add_argument("embeddings", metavar="EMBEDDINGS")
    parser.add_argument("--method", choices=["knn", "logistic", "all"], default="all")
    parser.add_argument("--metric", choices=["cosine", "l2"], default="cosine", help="of knn (cosine)")
    parser.add_argument("--seed", type=int, default=0, help="of folds, and of splits that the file lacks")
    parser.add_argument("--output", metavar="DIR", help="default: beside EMBEDDINGS, NAME-classify")
    given = parser.parse_args(list(argv))

    from finetune.embeddings.embeddings import Embeddings
    from finetune.embeddings.files import check_embeddings_file

    file = check_embeddings_file(given.embeddings)
    folder = output_folder(given.output, file.with_name(f"{file.stem}-classify"))
    embeddings = Embeddings.load(file)

    from finetune.embeddings.classify import METHODS, judge, split_index
    from finetune.metrics import in_words

    embeddings.require_metadata("classify", "model", "stages", "stage", "reading", "normalize", "whitening")
    index, rows, notes = split_index(embeddings, seed=given.seed)
    for note in notes:
        print(note)
    features = embeddings.features[rows]
    for method in METHODS if given.method == "all" else [given.method]:
        judged = judge(method, features, index, metric=given.metric, seed=given.seed)
        fitted = judged.classifier.fitted
        for remark in fitted.remarks:
            print(remark)
        write_judged(folder / method, judged, embeddings, index, seed=given.seed, made_splits=bool(notes))
        chosen = ", ".join(f"{name}={value:g}" for name, value in fitted.chosen.items())
        print(f"{method} ({chosen}): test {in_words(judged.metrics['test'])} on {len(judged.test_rows)} images")
    print(f"results: {folder}")
    return 0


def write_judged(
    folder: Path, judged: "Judged", embeddings: "Embeddings", index: "Index", *, seed: int, made_splits: bool
) -> None:
    """The files of a classifier; ``results.json`` comes last."""
    import torch

    from finetune.atomic_files import write_json, write_text
    from finetune.training.predictions import predictions_csv

    fitted = judged.classifier.fitted
    shares = torch.from_numpy(judged.test_shares)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "predictions.csv", predictions_csv(index, torch.from_numpy(judged.test_rows), shares))
    write_json(folder / "classifier.json", {"method": fitted.method, "chosen": fitted.chosen, "tried": fitted.tried})
    if fitted.method == "logistic":
        _write_head(folder / "head.safetensors", fitted.arrays, embeddings)
    results = results_of(judged, embeddings, index, seed=seed, own_splits=not made_splits)
    write_json(folder / "results.json", results)


def results_of(
    judged: "Judged", embeddings: "Embeddings", index: "Index", *, seed: int, own_splits: bool
) -> dict[str, Any]:
    """What ``results.json`` of a run holds, of a head that was fitted instead of trained."""
    import torch

    from finetune.models.weights import state_hash
    from finetune.versions import versions

    metadata, fitted = embeddings.metadata, judged.classifier.fitted
    model = metadata["model"]
    backbone = model["backbone"]
    phase = {
        "name": fitted.method,
        "train": ["head"],
        "frozen": list(metadata["stages"]),
        "epochs": 0,
        "steps": fitted.steps,
        "restored": "last",
        "weights": "raw",
        "best_epoch": 0,
        "best": {"val/acc": judged.metrics["val"]["acc"]},
        "rates": {},
        "seconds": judged.seconds,
        "cached_after": metadata["stage"],
        "views": 1,
        "shifts": 0,
    }
    return {
        "test": judged.metrics["test"],
        "val": judged.metrics["val"],
        "phases": [phase],
        "seconds": {"training": judged.seconds, "phases": {fitted.method: judged.seconds}},
        "data": {
            # that of the data set itself, so that runs on the same data are seen to be
            "fingerprint": (metadata.get("fingerprint") if own_splits else None) or index.fingerprint(),
            "classes": list(index.classes),
            "counts": index.counts(),
            "skipped": int(metadata.get("skipped") or 0),
            **metadata["reading"],
        },
        "versions": versions(),
        "backbone": {
            "source": backbone["source"],
            "name": backbone["name"],
            "weights": model["weights"] or f"run {model['run']}",
        },
        "schedule": f"{fitted.method} on embeddings",
        # features are made in single precision, whatever they are kept in
        "precision": "32-true",
        "compiled": False,
        "imbalance": {"loss": "cross_entropy", "class_weights": "none", "sampling": "each image once"},
        "seed": seed,
        "weights_hash": state_hash({name: torch.from_numpy(array) for name, array in fitted.arrays.items()}),
        "threads": torch.get_num_threads(),
    }


def _write_head(path: Path, arrays: dict[str, Any], embeddings: "Embeddings") -> None:
    """Of a logistic regression on the features that a head of the network would see."""
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
    save_head(path, head=head, backbone_hash=metadata["model"]["hash"], classes=embeddings.classes)

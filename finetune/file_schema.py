"""What the files of a run and of a bundle hold, field by field. This page is their documentation and their schema.

A field is a dotted path: ``[]`` stands for each entry of a list, ``*`` for any key. The keys are stable: a later version may
add some, and changes or removes none without raising ``format``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.errors import UserError, shortened

# the type of a field, and what it says
Field = tuple[type | tuple[type, ...], str]
Fields = Mapping[str, Field]

NUMBER = (int, float)
# between the names of one image's classes, in tables
LABELS = ";"

_METRICS: dict[str, Field] = {
    "acc": (float, "share of images whose most probable class is the true one"),
    "f1_macro": (float, "F1 score, mean over classes that were true or predicted at least once"),
    "ece": (float, "expected calibration error, 15 bins (Guo et al. 2017)"),
    "loss": (float, "mean cross-entropy in nats, without label smoothing or class weights"),
    "recall[]": (float, "recall of each class, in the order of the classes; 0 for a class without an image"),
    "confusion[][]": (int, "images by true class (row) and predicted class (column)"),
    "confusion_cells[][]": (
        int,
        "in its place above 1,000 classes: true class, predicted class and images of each pair",
    ),
    "own.*": (NUMBER, "metrics of the user's, by name"),
}

_METRICS_MULTI_LABEL: dict[str, Field] = {
    "acc": (float, "share of images with every class right: a class is predicted where its probability is above 0.5"),
    "f1_macro": (float, "F1 score, mean over classes; 0 for a class neither true nor predicted anywhere"),
    "f1_micro": (float, "F1 score over all pairs of an image and a class"),
    "map": (float, "average precision, mean over the classes that an image shows"),
    "ece": (float, "calibration error over all pairs of an image and a class, 15 bins (Guo et al. 2017)"),
    "loss": (float, "mean binary cross-entropy in nats over images and classes, without smoothing or weights"),
    "recall[]": (float, "recall of each class, in the order of the classes; 0 for a class without an image"),
    "confusion[][][]": (int, "for each class, images by truth (row: no, yes) and prediction (column: no, yes)"),
    "own.*": (NUMBER, "metrics of the user's, by name"),
}

_PHASE: dict[str, Field] = {
    "name": (str, "name of the phase"),
    "train[]": (str, "stages that trained, from the input to the head"),
    "frozen[]": (str, "stages that did not"),
    "epochs": (int, "epochs that were run"),
    "steps": (int, "optimizer steps that were run"),
    "restored": (str, "'best' or 'last': which epoch's weights were handed on"),
    "weights": (str, "'raw' or 'ema': which weights were validated and handed on"),
    "best_epoch": (int, "the best epoch, from 0"),
    "best.*": (NUMBER, "its monitored metric, by name"),
    "rates.*": (NUMBER, "peak learning rate of each stage that trained"),
    "cached_after": (str, "the stage whose output was cached and trained on; empty where the phase trained on images"),
    "cached_view": (str, "'evaluation' or 'training': which view of each image was cached; empty without a cache"),
    "views": (
        int,
        "training views of each image that the epochs drew from; 0: a new one every epoch, or the evaluation view",
    ),
    "probe.**": (
        object,
        "of a head that was solved: penalties tried, validation loss and accuracy of each, the one chosen",
    ),
    "trials[].*": (
        (int, float, type(None)),
        "of heads trained side by side: rate, best metric and best epoch of each; null where its loss was no number",
    ),
    "seconds": (NUMBER, "wall time of the part that ran in the process that finished the phase"),
}

_DATA: dict[str, Field] = {
    "fingerprint": (str, "digest of classes, paths, targets, splits and contents"),
    "classes[]": (str, "class names in the order of the logits"),
    "counts.*[]": (int, "images of each class, by split"),
    "skipped": (int, "unreadable files that were left out; skipped.csv lists them"),
    "max_pixels": (int, "larger images count as unreadable, in prediction too"),
    "high_depth": (str, "'full' or 'stretch': how more than 8 bits become 8, in prediction too"),
    "integer_range[]": (NUMBER, "numbers of more than 8 bits that become black and white; absent without such images"),
    "float_range[]": (NUMBER, "the same for floating point"),
}


def _under(prefix: str, fields: Fields) -> dict[str, Field]:
    return {f"{prefix}.{name}": value for name, value in fields.items()}


_RESULTS: dict[str, Field] = {
    **_under("phases[]", _PHASE),
    "seconds.training": (NUMBER, "sum of the phases"),
    "seconds.phases.*": (NUMBER, "each phase"),
    **_under("data", _DATA),
    "versions.*": (str, "version of Python, of finetune and of the libraries that a result depends on"),
    "backbone.source": (str, "library of the network; 'own' for a class of the user's"),
    "backbone.name": (str, "its name there, or that class"),
    "backbone.weights": (str, "where its weights came from, as the configuration names it"),
    "backbone.place": (str, "repository, package, address or file that the name stands for"),
    "backbone.licence": (
        (str, type(None)),
        "licence of those weights; 'unknown' where nobody recorded one, absent for random",
    ),
    "backbone.revision": ((str, type(None)), "commit of the hub's repository, where it is known"),
    "schedule": (str, "name of the schedule"),
    "imbalance.loss": (str, "the training loss; 'focal' with its gamma"),
    "imbalance.class_weights": (str, "'balanced' weighs classes by how few images they have, 'none' does not"),
    "imbalance.sampling": (str, "'balanced' draws every class equally often, else each image is seen once an epoch"),
    "precision": (str, "as Lightning's Trainer takes it: what auto became"),
    "compiled": (bool, "whether what trained was compiled by torch.compile"),
    "seed": (int, "of all randomness"),
    "weights_hash": (str, "SHA-256 over names, types, shapes and values of the final weights"),
    "threads": (int, "threads that torch computed with; sums depend on it in their last bits"),
}

# results.json, of a run with one label an image, and with several
RESULTS = {**_under("test", _METRICS), **_under("val", _METRICS), **_RESULTS}
RESULTS_MULTI_LABEL = {**_under("test", _METRICS_MULTI_LABEL), **_under("val", _METRICS_MULTI_LABEL), **_RESULTS}

PREDICTIONS: dict[str, str] = {
    "path": "the image file",
    "target": "true class",
    "predicted": "most probable class",
    "probability": "its softmax probability",
    "target_probability": "softmax probability of the true class",
}

PREDICTIONS_MULTI_LABEL: dict[str, str] = {
    "path": "the image file",
    "target": "true classes, joined by ';'",
    "predicted": "classes whose probability is above 0.5, joined by ';'; empty where there is none",
    "probability": "of the most probable class",
    "probabilities": "of every class, in the order of the logits, joined by ';'",
}

EMBEDDINGS: dict[str, str] = {
    "features": "float16 or float32, N x D: one row an image; in .npz at an offset that can be mapped into memory",
    "path": "the image file, absolute, or the stable name of an image that is no file",
    "label": "its class; several are joined by '|'; empty for none",
    "split": "train, val, test, or empty",
    "content": "BLAKE2b digest of the file's bytes, 32 hexadecimal digits",
    "about": "JSON: model, stage, input, transforms, data and versions; in Parquet an entry 'finetune' of the metadata",
}

# of finetune search --output; for near-duplicates `query` is the number of the group
FOUND: dict[str, str] = {
    "query": "what was looked for",
    "rank": "from 1, the nearest",
    "path": "the image found",
    "label": "its class; empty for none",
    "split": "its split; empty for none",
    "distance": "1 - cosine, or Euclidean; in a group of near-duplicates to the nearest other member",
}

# of finetune search --quality --output
RETRIEVAL: dict[str, Field] = {
    "recall@1": (float, "share of queries whose nearest image has their label"),
    "recall@5": (float, "share of queries with an image of their label among the nearest 5"),
    "recall@10": (float, "likewise 10"),
    "map": (float, "mean average precision of the whole ranking"),
    "queries": (int, "images that were looked for"),
    "among": (int, "images that they were looked for in"),
    "alone": (int, "images left out because no other has their label"),
    "metric": (str, "'cosine' or 'l2'"),
}

# of finetune classify, classifier.json
CLASSIFIER: dict[str, Field] = {
    "method": (str, "'knn' or 'logistic'"),
    "chosen.*": (NUMBER, "the setting: k, or C, the inverse strength of the penalty"),
    "tried[].k": (int, "a number of neighbours that was tried"),
    "tried[].C": (float, "an inverse strength that was tried"),
    "tried[].acc": (float, "its cross-validated accuracy on the training images"),
    "tried[].loss": (float, "its cross-validated cross-entropy in nats"),
}

# of finetune cluster, summary.json; from `labelled` on only where images have labels
CLUSTER_SUMMARY: dict[str, Field] = {
    "method": (str, "'kmeans' or 'hdbscan'"),
    "metric": (str, "'cosine' or 'l2'"),
    "seed": (int, "of starts and samples"),
    "clusters": (int, "their number"),
    "outliers": (int, "images in none of them"),
    "silhouette": ((float, type(None)), "Rousseeuw 1987; of at most 5,000 images; null for a single cluster"),
    "sizes[]": (int, "images of each cluster"),
    "silhouette_by_count.*": (float, "of each number of clusters that was tried"),
    "labelled": (int, "images with a label"),
    "nmi": (float, "normalised mutual information of clusters and labels"),
    "ari": (float, "adjusted Rand index (Hubert and Arabie 1985)"),
    "purity": (float, "share of images with the most frequent label of their cluster"),
    "doubtful": (int, "labels that the neighbours contradict by a doubt above a half"),
}

# of finetune cluster, clusters.csv
CLUSTERS: dict[str, str] = {
    "path": "the image",
    "label": "its class; empty for none",
    "split": "its split; empty for none",
    "cluster": "from 0, the largest; -1 for an outlier",
    "distance": "to the centre of its cluster (of an outlier: to the nearest): the smaller the more typical",
    "margin": "from -1 to 1: by what share its own centre is nearer than the next; the smaller the more doubtful",
}

# of finetune cluster, doubtful.csv; a manifest as it is
DOUBTFUL: dict[str, str] = {
    "path": "the image",
    "label": "its class",
    "split": "its split; empty for none",
    "suggested": "the class that most of its neighbours have, other than its own",
    "doubt": "weighted share of neighbours of that class, less the share of its own; above 0",
    "agreeing": "neighbours of its own class",
    "neighbours": "looked at",
}

# of finetune cluster, manifest.csv
MANIFEST: dict[str, str] = {
    "path": "the image",
    "label": "its class",
    "split": "its split; empty for none",
    "suggested": "its class, or where the doubt is above a half that of the neighbours",
}
# metrics.csv has a row an epoch; an empty cell is a quantity that the epoch's phase does not have
METRICS_CSV: dict[str, str] = {
    "phase": "name of the phase",
    "epoch": "from 0, over all phases",
    "step": "optimizer steps so far, over all phases",
    "train/loss": "mean training loss of the epoch",
    "train/acc": "share of training views classified right; empty where images were mixed",
    "val/*": "metrics on the validation split, as in results.json",
    "lr/*": "learning rate of a parameter group at the epoch's last step",
    "grad/*": "mean Euclidean norm of a stage's gradient before clipping, of every eighth step",
}

# what the network says of the images of a split (val, test), for the report; in the order of the rows
EVALUATION = "evaluation.safetensors"
EVALUATION_TENSORS: dict[str, str] = {
    "*/rows": "rows of the index (N,), in the order of split.csv",
    "*/targets": "class numbers (N,); for several labels zeros and ones (N, K)",
    "*/probabilities": "of each class (N, K)",
    "*/embedded_rows": "rows of the images whose embeddings are kept (M,), at most 2,000 of the test split, none of val",
    "*/embeddings": "features before the head (M, D)",
}

# the page for people: made from the files of the run alone, and from its images where they are still there
REPORT = "report.html"

_MODEL: dict[str, Field] = {
    "format": (int, "version of this description; a newer one is refused"),
    "model.backbone.**": (
        object,
        "library, name and arguments of the network, and what its weights expect; of a network of the user's: 'own', its class, "
        "its stages, and the node that built it",
    ),
    "model.head.**": (
        object,
        "kind and sizes of the head, as finetune.models.heads.build_head takes them; of a head of the user's: 'own', its class, "
        "its sizes, and the node that built it",
    ),
    "model.input_spec.*": (object, "fields of finetune.InputSpec: what an image must look like"),
    "model.adapt": (str, "how the image's channels became those of the network"),
    "model.classes[]": (str, "class names in the order of the logits"),
    "model.multi_label": (bool, "whether an image may show several classes, or none: probabilities are then sigmoids"),
    "stages[]": (str, "stages from the input to the head"),
    "backbone_hash": (str, "SHA-256 of the backbone's weights; head.safetensors is tied to it"),
    "weights_sha256": (str, "SHA-256 of the bytes of model.safetensors"),
    "sha256": (str, "SHA-256 of all other keys: of json.dumps(others, sort_keys=True)"),
    **_under("data", _DATA),
    "training.seed": (int, "of all randomness"),
    "training.schedule": (str, "name of the schedule"),
    "training.precision": (str, "as in results.json"),
    "training.compiled": (bool, "as in results.json"),
    "training.imbalance.*": (str, "as in results.json"),
    "training.backbone.*": (str, "where the network and its weights came from"),
    **_under("training.phases[]", _PHASE),
    "versions.*": (str, "as in results.json"),
}


# model.json, likewise
MODEL = {**_under("metrics.test", _METRICS), **_under("metrics.val", _METRICS), **_MODEL}
MODEL_MULTI_LABEL = {
    **_under("metrics.test", _METRICS_MULTI_LABEL),
    **_under("metrics.val", _METRICS_MULTI_LABEL),
    **_MODEL,
}


# parity.json of an export; head and backbone, which prepare no images, have no ``from_files``
PARITY: dict[str, Field] = {
    "format": (str, "as finetune export --format has it"),
    "precision": (str, "'fp32', 'fp16' or 'int8'"),
    "opened_by": (str, "the client that opened the export in a process without finetune, and its version"),
    "images": (str, "what it was compared on"),
    "passed": (bool, "the decision; an export that did not pass was deleted"),
    "problems[]": (str, "why it did not pass"),
    "remarks[]": (str, "what to know although it did"),
    "unreadable": (int, "files that were left out, because they cannot be read"),
    "bounds.*": (NUMBER, "what it had to keep to: largest and mean difference of a probability, least agreement"),
    "from_pixels.*": (NUMBER, "images, largest and mean difference of a probability, agreement of the first class"),
    "from_files.*": (NUMBER, "the same for all that the client does, from the file on"),
    "decoded_otherwise.*": (NUMBER, "the same for files that plain Pillow decodes to other pixels"),
    "accuracy.*": (NUMBER, "of the export and of the trained model, where the true classes are known"),
    "speed.**": (object, "of onnx: milliseconds and images a second beside PyTorch, as finetune.export.speed says"),
}


def labels_above_half(classes: Sequence[str], probabilities: Sequence[float]) -> str:
    """The names of the classes that an image shows, as tables have them.

    >>> labels_above_half(["cat", "dog", "owl"], [0.9, 0.5, 0.6])
    'cat;owl'
    """
    return LABELS.join(name for name, share in zip(classes, probabilities, strict=True) if share > 0.5)


def leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every value inside nested containers with its dotted path; an entry of a list has ``[]``.

    >>> leaves({"a": {"b": [1, 2]}})
    [('a.b[]', 1), ('a.b[]', 2)]
    """
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, f"{path}.{key}" if path else str(key))]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner, f"{path}[]")]
    return [(path, value)]


def _match(path: str, fields: Fields) -> str | None:
    """The field that describes a path."""
    if path in fields:
        return path
    for name in fields:
        if name.endswith(".**") and path.startswith(name[:-2]):
            return name
        stem, star, rest = name.partition(".*")
        if star and path.startswith(f"{stem}.") and path.endswith(rest):
            return name
    return None


def _may_be_null(kind: type | tuple[type, ...]) -> bool:
    return isinstance(kind, tuple) and type(None) in kind


def check_fields(values: Mapping[str, object], fields: Fields, *, name: str, of_any_version: bool = False) -> None:
    """Hold that values have the fields documented here, each of its type, and no others.

    Args:
        values: The contents of a JSON file.
        fields: :data:`RESULTS`, :data:`MODEL`, or these for several labels.
        name: Of the file, for messages.
        of_any_version: Whether unknown and missing fields pass: a later version may have added some.

    Raises:
        UserError: Fields are missing, unknown or of another type; all are named.
    """
    found: set[str] = set()
    problems = []
    for path, value in leaves(values):
        field = _match(path, fields)
        if field is None:
            if not of_any_version:
                problems.append(f"unknown field {path}")
            continue
        found.add(field)
        kind = fields[field][0]
        # to Python a truth value is a whole number too
        if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, object)):
            problems.append(f"{path} is a {type(value).__name__}")
    # an empty list or table has no leaf to be found by, and what may be null may be left out
    optional = {name for name, (kind, _) in fields.items() if "[]" in name or "*" in name or _may_be_null(kind)}
    if not of_any_version:
        problems += [f"missing field {name}" for name in fields if name not in found and name not in optional]
    if problems:
        raise UserError(f"{name}: not as documented. {shortened(problems)}.")

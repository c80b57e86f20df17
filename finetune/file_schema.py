"""The fields of the files of a run and of a bundle: both their documentation and their schema.

A field is a dotted path: ``[]`` stands for each entry of a list, ``*`` for any key. The keys are stable: a later version may
add keys, but does not change or remove any without raising ``format``.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune.errors import UserError, shortened, type_in_words

# type of a field, and its meaning
Field = tuple[type | tuple[type, ...], str]
Fields = Mapping[str, Field]

NUMBER = (int, float)
# between the names of one image's classes, in tables
LABELS = ";"
# a multi-label model predicts a class if its probability is above this, unless a threshold was fitted for the class
THRESHOLD = 0.5

_METRICS: dict[str, Field] = {
    "acc": (float, "share of images whose most probable class is the true one"),
    "f1_macro": (float, "F1 score, mean over classes that were true or predicted at least once"),
    "ece": (float, "expected calibration error, 15 bins (Guo et al. 2017)"),
    "loss": (float, "mean cross-entropy in nats, without label smoothing or class weights"),
    "recall[]": (float, "recall of each class, in the order of the classes; 0 for a class without an image"),
    "confusion[][]": (int, "images by true class (row) and predicted class (column)"),
    "confusion_cells[][]": (
        int,
        "instead of confusion, above 1,000 classes: true class, predicted class and images of each pair",
    ),
    "own.*": (NUMBER, "user-supplied metrics, by name"),
}

_METRICS_MULTI_LABEL: dict[str, Field] = {
    "acc": (
        float,
        f"share of images whose classes are all correct: a class is predicted if its probability is above {THRESHOLD}, or above "
        "its threshold where thresholds were fitted",
    ),
    "f1_macro": (float, "F1 score, mean over classes; 0 for a class neither true nor predicted anywhere"),
    "f1_micro": (float, "F1 score over all pairs of an image and a class"),
    "map": (float, "average precision, mean over the classes that an image shows"),
    "ece": (float, "calibration error over all pairs of an image and a class, 15 bins (Guo et al. 2017)"),
    "loss": (float, "mean binary cross-entropy in nats over images and classes, without smoothing or weights"),
    "recall[]": (float, "recall of each class, in the order of the classes; 0 for a class without an image"),
    "confusion[][][]": (int, "for each class, images by truth (row: no, yes) and prediction (column: no, yes)"),
    "own.*": (NUMBER, "user-supplied metrics, by name"),
}

_PHASE: dict[str, Field] = {
    "name": (str, "name of the phase"),
    "train[]": (str, "stages that trained, from the input to the head"),
    "frozen[]": (str, "stages that stayed frozen"),
    "epochs": (int, "epochs that were run"),
    "steps": (int, "optimizer steps that were run"),
    "restored": (str, "'best' or 'last': which epoch's weights were passed on; 'start': those before the phase"),
    "weights": (str, "'raw' or 'ema': which weights were validated and passed on"),
    "best_epoch": (int, "the best epoch, from 0"),
    "best.*": (NUMBER, "its monitored metric, by name"),
    "rates.*": (NUMBER, "peak learning rate of each stage that trained"),
    "cached_after": (str, "the stage whose output was cached and trained on; empty if the phase trained on images"),
    "cached_view": (str, "'evaluation' or 'training': which view of each image was cached; empty without a cache"),
    "views": (
        int,
        "training views of each image that the epochs drew from; 0: a new one every epoch, or the evaluation view",
    ),
    "probe.**": (
        object,
        "for a head that was solved: penalties tried, validation loss and accuracy of each, the one chosen",
    ),
    "trials[].*": (
        (int, float, type(None)),
        "for heads trained side by side: rate, best metric and best epoch of each; null if its loss became NaN",
    ),
    "seconds": (NUMBER, "wall time of the part that ran in the process that finished the phase"),
}

_DATA: dict[str, Field] = {
    "fingerprint": (str, "digest of classes, paths, targets, splits and contents"),
    "classes[]": (str, "class names in the order of the logits"),
    "counts.*[]": (int, "images of each class, by split"),
    "skipped": (int, "unreadable files that were left out; skipped.csv lists them"),
    "max_pixels": (int, "larger images count as unreadable, also in prediction"),
    "high_depth": (str, "'full' or 'stretch': how high bit depths are scaled to 8 bits, also in prediction"),
    "integer_range[]": (NUMBER, "integers of more than 8 bits that become black and white; absent without such images"),
    "float_range[]": (NUMBER, "the same for floating point"),
}


# absent with calibrate=false, and for a head that was fitted instead of trained
_CALIBRATION: dict[str, Field] = {
    "temperature": (
        (float, type(None)),
        "the model divides its logits by this; 1 if the validation images support no other",
    ),
    "interval[]": (float, "its 95 % interval by likelihood; absent if they support none"),
    "images": ((int, type(None)), "validation images that it was fitted on"),
    "why_not": ((str, type(None)), "why they support none; empty if they do"),
    "before.*": (
        float,
        "calibration error and loss of val and test without it: val/ece, val/loss, test/ece, test/loss",
    ),
}


# absent with accept_known=null, and in runs of earlier versions
_UNKNOWN: dict[str, Field] = {
    "accept": ((float, type(None)), "share of the validation images that count as known"),
    "threshold": (
        (float, type(None)),
        "Mahalanobis distance from which on an image is unknown; absent if there is none",
    ),
    "images": ((int, type(None)), "training images that the score was fitted on"),
    "val_images": ((int, type(None)), "validation images of the threshold"),
    "known.*": (float, "share of the val and test images that count as known; absent if there is no threshold"),
    "why_not": ((str, type(None)), "why there is none; empty if there is one"),
}


# only for a run of finetune grow
_GROWTH: dict[str, Field] = {
    "old_classes[]": (str, "classes of the earlier model, under their names now"),
    "new_classes[]": (str, "classes that it did not have"),
    "rehearsed": ((bool, type(None)), "whether the training images show old classes"),
    "old_images": ((int, type(None)), "test images of old classes"),
    "new_images": ((int, type(None)), "test images of new classes"),
    "before": ((float, type(None)), "accuracy of the earlier model on the test images of old classes"),
    "after": ((float, type(None)), "accuracy of this model on the same images"),
    "among_old": ((float, type(None)), "the same, choosing among the old classes alone, as the earlier model did"),
    "new": ((float, type(None)), "its accuracy on the test images of new classes"),
    "why_not": ((str, type(None)), "why there are no test images of old classes; empty if there are"),
}


# only with several labels and thresholds=f1; absent in runs of earlier versions
_THRESHOLDS: dict[str, Field] = {
    "values[]": (float, "decision threshold of each class, in the order of the classes"),
    "images": ((int, type(None)), "validation images that they were fitted on"),
    "left[]": (str, f"classes left at {THRESHOLD}, because no validation image shows them, or every one does"),
    "before.*": (
        float,
        f"exact match and F1 of val and test with {THRESHOLD} for every class: val/acc, val/f1_macro, val/f1_micro, test/...",
    ),
}


def _under(prefix: str, fields: Fields) -> dict[str, Field]:
    return {f"{prefix}.{name}": value for name, value in fields.items()}


_RESULTS: dict[str, Field] = {
    **_under("phases[]", _PHASE),
    "seconds.training": (NUMBER, "sum of the phases"),
    "seconds.phases.*": (NUMBER, "each phase"),
    **_under("data", _DATA),
    "versions.*": (str, "version of Python, of finetune and of the libraries that a result depends on"),
    "backbone.source": (str, "library of the network; 'own' for a user-supplied class"),
    "backbone.name": (str, "its name there, or that class"),
    "backbone.weights": (str, "where its weights came from, as the configuration names it"),
    "backbone.place": (str, "repository, package, address or file that the name stands for"),
    "backbone.licence": (
        (str, type(None)),
        "licence of those weights; 'unknown' if none is recorded, absent for random weights",
    ),
    "backbone.revision": ((str, type(None)), "commit of the hub's repository, if known"),
    "schedule": (str, "name of the schedule"),
    "imbalance.loss": (str, "the training loss; 'focal' with its gamma"),
    "imbalance.class_weights": (str, "'balanced' weighs classes by how few images they have, 'none' does not"),
    "imbalance.sampling": (str, "'balanced' draws every class equally often, else each image is seen once per epoch"),
    "precision": (str, "as Lightning's Trainer takes it; the one chosen for auto"),
    "compiled": (bool, "whether torch.compile compiled the trainable part"),
    "seed": (int, "seed of all randomness"),
    "weights_hash": (str, "SHA-256 over names, types, shapes and values of the final weights"),
    "threads": (int, "threads that torch computed with; sums depend on it in their last bits"),
    **_under("calibration", _CALIBRATION),
    **_under("unknown", _UNKNOWN),
    **_under("growth", _GROWTH),
}

# results.json of a run with one label per image, and of a multi-label run
RESULTS = {**_under("test", _METRICS), **_under("val", _METRICS), **_RESULTS}
RESULTS_MULTI_LABEL = {
    **_under("test", _METRICS_MULTI_LABEL),
    **_under("val", _METRICS_MULTI_LABEL),
    **_RESULTS,
    **_under("thresholds", _THRESHOLDS),
}

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
    "predicted": f"classes whose probability is above their threshold, {THRESHOLD} if none was fitted, joined by ';'; empty if "
    "there is none",
    "probability": "probability of the most probable class",
    "probabilities": "probability of every class, in the order of the logits, joined by ';'",
}

EMBEDDINGS: dict[str, str] = {
    "features": "float16 or float32, N x D: one row per image; in .npz at an offset that can be mapped into memory",
    "path": "absolute path of the image file, or the stable name of an image without a file",
    "label": "its class; several are joined by '|'; empty for none",
    "split": "train, val, test, or empty",
    "content": "BLAKE2b digest of the file's bytes, 32 hexadecimal digits",
    "about": "JSON: model, stage, input, transforms, data and versions; in Parquet an entry 'finetune' of the metadata",
}

# of finetune search --output; for near-duplicates `query` is the number of the group
FOUND: dict[str, str] = {
    "query": "the query",
    "rank": "rank from 1, the nearest",
    "path": "the image found",
    "label": "its class; empty for none",
    "split": "its split; empty for none",
    "distance": "1 - cosine, or Euclidean; in a group of near-duplicates to the nearest other member",
}

# of finetune search --quality --output
RETRIEVAL: dict[str, Field] = {
    "recall@1": (float, "share of queries whose nearest image has their label"),
    "recall@5": (float, "share of queries with an image of their label among the nearest 5"),
    "recall@10": (float, "the same for the nearest 10"),
    "map": (float, "mean average precision of the whole ranking"),
    "queries": (int, "number of queries"),
    "among": (int, "images that were searched"),
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
    "seed": (int, "seed of starts and samples"),
    "clusters": (int, "number of clusters"),
    "outliers": (int, "images in no cluster"),
    "silhouette": (
        (float, type(None)),
        "silhouette (Rousseeuw 1987) of at most 5,000 images; null for a single cluster",
    ),
    "sizes[]": (int, "images of each cluster"),
    "silhouette_by_count.*": (float, "silhouette for each number of clusters that was tried"),
    "labelled": (int, "images with a label"),
    "nmi": (float, "normalised mutual information of clusters and labels"),
    "ari": (float, "adjusted Rand index (Hubert and Arabie 1985)"),
    "purity": (float, "share of images with the most frequent label of their cluster"),
    "doubtful": (int, "labels that the neighbours contradict with a doubt above one half"),
}

# of finetune cluster, clusters.csv
CLUSTERS: dict[str, str] = {
    "path": "the image",
    "label": "its class; empty for none",
    "split": "its split; empty for none",
    "cluster": "from 0, the largest; -1 for an outlier",
    "distance": "distance to the centre of its cluster (for an outlier: the nearest one); typical images have a small one",
    "margin": "from -1 to 1: by what share its own centre is nearer than the next; doubtful images have a small one",
}

# of finetune cluster, doubtful.csv; usable as a manifest
DOUBTFUL: dict[str, str] = {
    "path": "the image",
    "label": "its class",
    "split": "its split; empty for none",
    "suggested": "the class that most of its neighbours have, other than its own",
    "doubt": "weighted share of neighbours of that class, less the share of its own; above 0",
    "agreeing": "neighbours of its own class",
    "neighbours": "number of neighbours compared",
}

# of finetune cluster, manifest.csv
MANIFEST: dict[str, str] = {
    "path": "the image",
    "label": "its class",
    "split": "its split; empty for none",
    "suggested": "its class, or that of the neighbours if the doubt is above one half",
}
# metrics.csv has one row per epoch; an empty cell is a quantity that the epoch's phase does not have
METRICS_CSV: dict[str, str] = {
    "phase": "name of the phase",
    "epoch": "from 0, over all phases",
    "step": "optimizer steps so far, over all phases",
    "train/loss": "mean training loss of the epoch",
    "train/acc": "share of training views classified correctly; empty if images were mixed",
    "val/*": "metrics on the validation split, as in results.json",
    "lr/*": "learning rate of a parameter group at the epoch's last step",
    "grad/*": "mean Euclidean norm of a stage's gradient before clipping, of every eighth step",
}

# outputs of the network for the images of a split (val, test), for the report; in the order of the rows
EVALUATION = "evaluation.safetensors"
EVALUATION_TENSORS: dict[str, str] = {
    "*/rows": "rows of the index (N,), in the order of split.csv",
    "*/targets": "class numbers (N,); for several labels zeros and ones (N, K)",
    "*/probabilities": "probabilities of the classes (N, K), calibrated as the model gives them",
    "*/embedded_rows": "rows of the images whose embeddings are kept (M,), at most 2,000 of the test split, none of val",
    "*/embeddings": "features before the head (M, D)",
}

# the report: made from the files of the run alone, and from its images if they still exist
REPORT = "report.html"

_MODEL: dict[str, Field] = {
    "format": (int, "version of this description; a newer one is refused"),
    "model.backbone.**": (
        object,
        "library, name and arguments of the network, and what its weights expect; for a user-supplied network: 'own', its class, "
        "its stages, and the node that built it",
    ),
    "model.head.**": (
        object,
        "kind and sizes of the head, as finetune.models.heads.build_head takes them; for a user-supplied head: 'own', its class, "
        "its sizes, and the node that built it",
    ),
    "model.input_spec.*": (object, "fields of finetune.InputSpec: the form that an image must have"),
    "model.adapt": (str, "how the image's channels are turned into those of the network"),
    "model.classes[]": (str, "class names in the order of the logits"),
    "model.multi_label": (bool, "whether an image may show several classes, or none: probabilities are then sigmoids"),
    "stages[]": (str, "stages from the input to the head"),
    "backbone_hash": (str, "SHA-256 of the backbone's weights; head.safetensors is tied to it"),
    "weights_sha256": (str, "SHA-256 of the bytes of model.safetensors"),
    "sha256": (str, "SHA-256 of all other keys: of json.dumps(others, sort_keys=True)"),
    **_under("data", _DATA),
    "training.seed": (int, "seed of all randomness"),
    "training.schedule": (str, "name of the schedule"),
    "training.precision": (str, "as in results.json"),
    "training.compiled": (bool, "as in results.json"),
    "training.imbalance.*": (str, "as in results.json"),
    "training.backbone.*": (str, "where the network and its weights came from"),
    **_under("training.phases[]", _PHASE),
    "calibration.temperature": (float, "the model divides its logits by this; 1 for none"),
    "unknown.sha256": (
        (str, type(None)),
        "SHA-256 of the bytes of unknown.safetensors; absent without a score of unknown images",
    ),
    "versions.*": (str, "as in results.json"),
}


_SELECTIVE: dict[str, Field] = {
    "images": ((int, type(None)), "validation images of the risk-coverage curve"),
    "points[][]": (
        NUMBER,
        "least confidence, validation images that it accepts, and wrong answers among them, for each point of the curve",
    ),
}

_CONFORMAL: dict[str, Field] = {
    "images": ((int, type(None)), "validation images of the conformal curve"),
    "points[][]": (
        NUMBER,
        "a rank, and the probability of the true class that is so many-th smallest, for each point of the curve",
    ),
}

# model.json, with one label per image and with several
MODEL = {
    **_under("metrics.test", _METRICS),
    **_under("metrics.val", _METRICS),
    **_MODEL,
    **_under("selective", _SELECTIVE),
    **_under("conformal", _CONFORMAL),
}
MODEL_MULTI_LABEL = {
    **_under("metrics.test", _METRICS_MULTI_LABEL),
    **_under("metrics.val", _METRICS_MULTI_LABEL),
    **_MODEL,
    "thresholds[]": (float, f"decision threshold of each class; absent where they are all {THRESHOLD}"),
}


# parity.json of an export; exports of a head or backbone do not prepare images and have no ``from_files``
PARITY: dict[str, Field] = {
    "format": (str, "as finetune export --format has it"),
    "precision": (str, "'fp32', 'fp16' or 'int8'"),
    "opened_by": (str, "the client that opened the export in a process without finetune, and its version"),
    "images": (str, "the images that it was compared on"),
    "weights": (str, "SHA-256 of the weights in the bundle that was exported"),
    "passed": (bool, "whether it passed; an export that did not was deleted"),
    "problems[]": (str, "why it did not pass"),
    "remarks[]": (str, "what to know although it passed"),
    "unreadable": (int, "files that were left out because they cannot be read"),
    "bounds.*": (NUMBER, "its limits: largest and mean difference of a probability, smallest agreement"),
    "from_pixels.*": (NUMBER, "images, largest and mean difference of a probability, agreement of the answers"),
    "from_files.*": (NUMBER, "the same for everything that the client does, starting from the file"),
    "decoded_otherwise.*": (NUMBER, "the same for files that plain Pillow decodes to other pixels"),
    "unknown.*": (NUMBER, "the same for the scores of unknown images; absent where the model or the export has none"),
    "accuracy.*": (NUMBER, "accuracy of the export and of the trained model, if the true classes are known"),
    "speed.**": (object, "for onnx: milliseconds and images per second beside PyTorch, from finetune.export.speed"),
}


def joined_labels(classes: Sequence[str], numbers: Iterable[int]) -> str:
    """Join the names of the classes that an image shows, as tables hold them.

    >>> joined_labels(["cat", "dog", "owl"], [0, 2])
    'cat;owl'
    """
    return LABELS.join(classes[number] for number in numbers)


def leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """List every leaf value of nested containers with its dotted path; an entry of a list has ``[]``.

    >>> leaves({"a": {"b": [1, 2]}})
    [('a.b[]', 1), ('a.b[]', 2)]
    """
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, f"{path}.{key}" if path else str(key))]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner, f"{path}[]")]
    return [(path, value)]


def _match(path: str, fields: Fields) -> str | None:
    """Return the field that describes a path."""
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
    """Check that values have the fields documented here, each of the right type, and no others.

    Args:
        values: The contents of a JSON file.
        fields: :data:`RESULTS`, :data:`MODEL`, or their multi-label versions.
        name: Name of the file in messages.
        of_any_version: Whether unknown and missing fields pass, as another version may have other fields.

    Raises:
        UserError: Fields are missing, unknown or of the wrong type; all are named.
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
        # bool is a subclass of int
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kind) or (isinstance(value, bool) and not {bool, object} & set(kinds)):
            problems.append(f"{path} is {type_in_words(value)}")
    # an empty list or table has no leaves, and a field that may be null may be left out
    optional = {name for name, (kind, _) in fields.items() if "[]" in name or "*" in name or _may_be_null(kind)}
    if not of_any_version:
        problems += [f"missing field {name}" for name in fields if name not in found and name not in optional]
    if problems:
        raise UserError(f"{name}: not as documented. {shortened(problems)}.")

"""The classes that a run folder may name, and the check of a configuration against them; nothing is imported or built here.

Trusted is what the user typed: this command line, the packaged ``conf/``, the user's ``--config-dir``. A run folder is data: only
the classes listed here are built from it (:mod:`finetune.config.trust`), unless the user typed ``--trust``.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune.errors import shortened
from finetune.terminal import printable

# stands for the run folder in nodes of other libraries until the folder is known, since a run folder may be moved
RUN_DIR = "<run_dir>"
TRAINER = "lightning.pytorch.Trainer"
# package -> class -> its arguments that name a file or a folder. A class is listed if building it from plain values and using
# it in a run executes only its own code, contacts nothing, and writes only where those arguments say.
LISTED: Mapping[str, Mapping[str, Sequence[str]]] = {
    "lightning.pytorch": {"Trainer": ("default_root_dir",)},
    "lightning.pytorch.strategies": {"DDPStrategy": ()},
    "lightning.pytorch.profilers": {"SimpleProfiler": ("dirpath",), "AdvancedProfiler": ("dirpath",)},
    "lightning.pytorch.loggers": {
        "CSVLogger": ("save_dir",),
        "TensorBoardLogger": ("save_dir",),
    },
    "lightning.pytorch.callbacks": {
        "DeviceStatsMonitor": (),
        "EMAWeightAveraging": (),
        "EarlyStopping": (),
        "LearningRateMonitor": (),
        "ModelCheckpoint": ("dirpath",),
        "ModelSummary": (),
        "OnExceptionCheckpoint": ("dirpath",),
        "RichModelSummary": (),
        "RichProgressBar": (),
        "SpikeDetection": ("exclude_batches_path",),
        "StochasticWeightAveraging": (),
        "TQDMProgressBar": (),
        "Timer": (),
        "WeightAveraging": (),
    },
    "lightning.pytorch.callbacks.progress.rich_progress": {"RichProgressBarTheme": ()},
    "datetime": {"timedelta": ()},
    # operations of `data.augment`; not Lambda, which calls what it is given
    "torchvision.transforms.v2": dict.fromkeys(
        (
            *("AugMix", "AutoAugment", "RandAugment", "TrivialAugmentWide", "ColorJitter", "ElasticTransform", "Pad"),
            *("GaussianBlur", "GaussianNoise", "Grayscale", "JPEG", "RandomAdjustSharpness", "RandomAffine"),
            *("RandomApply", "RandomAutocontrast", "RandomChannelPermutation", "RandomChoice", "RandomCrop"),
            *("RandomEqualize", "RandomErasing", "RandomGrayscale", "RandomHorizontalFlip", "RandomInvert"),
            *("RandomOrder", "RandomPerspective", "RandomPhotometricDistort", "RandomPosterize", "RandomResizedCrop"),
            *("RandomRotation", "RandomSolarize", "RandomVerticalFlip", "RandomZoomOut", "CenterCrop", "Resize", "RGB"),
            *("Compose", "Identity"),
        ),
        (),
    ),
}
# packages whose optimizers are all listed
OPTIMIZERS = ("torch.optim", "timm.optim")
# loggers that send data elsewhere; this table serves the messages only
CONTACTS: Mapping[str, str] = {
    "WandbLogger": "the server of wandb",
    "MLFlowLogger": "the server of mlflow",
    "CometLogger": "the server of comet",
    "NeptuneLogger": "the server of neptune",
    "LitLogger": "the server of lightning.ai",
}
# profilers that a run folder may name; the others write beside the current folder
_PROFILERS = ("simple", "advanced", None)

# a dotted name, as a _target_ must be
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
# keys of a node that are not arguments of its class
CONTROL_KEYS = {"_target_", "_convert_", "_recursive_", "_partial_"}
# arguments whose values are not shown
_SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)


def unlisted_in(config: Mapping[str, Any]) -> list[str]:
    """Return what a configuration names and data may not, one readable line each.

    Args:
        config: Plain values of a whole configuration; sections may be missing.

    >>> unlisted_in({"callbacks": {"x": {"_target_": "torch.load", "f": "x.pth"}}})
    ["callbacks.x: torch.load(f='x.pth')"]
    """
    plain = dict(config)
    if isinstance(trainer := plain.get("trainer", {}), Mapping):
        plain["trainer"] = {"_target_": TRAINER, **trainer}
    for section in ("backbone", "head", "loss"):
        if isinstance(value := plain.get(section), Mapping):
            settings = {key: one for key, one in value.items() if key != "_target_"}
            target, arguments = value.get("_target_"), value.get("kwargs")
            if target is not None:
                settings = {**(arguments if isinstance(arguments, Mapping) else {}), "_target_": target}
            plain[section] = settings
    return list(unlisted(plain, ""))


def listing_package(target: str) -> str | None:
    """Return the package of :data:`LISTED` or :data:`OPTIMIZERS` that lists a dotted name, or None.

    >>> listing_package("lightning.pytorch.callbacks.early_stopping.EarlyStopping")
    'lightning.pytorch.callbacks'
    >>> [listing_package(name) for name in ("torch.optim.AdamW", "torch.load", "lightning.pytorch.callbacks.LambdaCallback")]
    ['torch.optim', None, None]
    """
    if not _DOTTED.fullmatch(target):
        return None
    home, _, name = target.rpartition(".")
    for package, classes in LISTED.items():
        if (home == package or home.startswith(f"{package}.")) and name in classes:
            return package
    for package in OPTIMIZERS:
        if (home == package or home.startswith(f"{package}.")) and name[0].isupper() and name != "Optimizer":
            return package
    return None


def unlisted(value: Any, where: str) -> Iterator[str]:
    """Yield a readable line for each node in a tree that data may not have built."""
    if isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            yield from unlisted(inner, f"{where}[{position}]")
    elif isinstance(value, Mapping) and "_target_" in value:
        yield from _unlisted_node(value, where)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from unlisted(inner, f"{where}.{key}" if where else str(key))


def _unlisted_node(node: Mapping[str, Any], where: str) -> Iterator[str]:
    """Yield a readable line for each part of a node, and of nodes inside it, that data may not have built."""
    target = node["_target_"]
    name = str(target).rpartition(".")[2]
    arguments = {key: value for key, value in node.items() if key not in CONTROL_KEYS}
    shown = f"{printable(where or 'it')}: {printable(str(target))}({_shown(arguments)})"
    package = listing_package(target) if isinstance(target, str) else None
    if package is None:
        contacted = [printable(text) for text in _texts(arguments) if "://" in text]
        yield shown + (
            f", which contacts {shortened(contacted) if contacted else CONTACTS[name]}"
            if name in CONTACTS
            else f", with the address {shortened(contacted)}"
            if contacted
            else ""
        )
    else:
        places = LISTED.get(package, {}).get(name, ())
        problems = ["its arguments have no names"] if "_args_" in node else []
        if (
            name == "Trainer"
            and isinstance(node.get("profiler"), str | None)
            and node.get("profiler") not in _PROFILERS
        ):
            problems.append("this profiler writes outside the run")
        for key, value in arguments.items():
            fits = _stays_inside if key in places else _is_word
            problems += [f"{key}={printable(text)!r} leads out of the run" for text in _texts(value) if not fits(text)]
        if problems:
            yield f"{shown}: {shortened(problems)}"
    for key, value in arguments.items():
        yield from unlisted(value, f"{where}.{key}" if where else str(key))


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts among a node's arguments, without those of nodes inside it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, Mapping) and "_target_" not in value:
        for inner in value.values():
            yield from _texts(inner)


def _stays_inside(text: str) -> bool:
    """Tell whether a path is inside the run folder.

    >>> [_stays_inside(text) for text in ("<run_dir>", "<run_dir>/csv", "<run_dir>/../x", "/tmp", "http://x/<run_dir>")]
    [True, True, False, False, False]
    """
    return (text == RUN_DIR or text.startswith(f"{RUN_DIR}/")) and _is_word(text)


def _is_word(text: str) -> bool:
    """Tell whether a string names no place outside the run: a metric, a mode, or a file name below another folder.

    >>> [_is_word(text) for text in ("val/acc", "{epoch}-{val/loss:.2f}", "/etc/x", "a/../../b", "~/x", "http://x", "a:b")]
    [True, True, False, False, False, False, True]
    """
    parts = re.split(r"[/\\]", text)
    return not (
        text.startswith(("/", "\\", "~")) or ".." in parts or "://" in text or "\0" in text or text[1:3] == ":\\"
    )


def _shown(arguments: Mapping[str, Any]) -> str:
    """Return the arguments of a node on one line, with secrets hidden."""
    return ", ".join(
        f"{printable(str(key))}={'...' if _SECRET.search(str(key)) else printable(repr(value)[:200])}"
        for key, value in arguments.items()
    )

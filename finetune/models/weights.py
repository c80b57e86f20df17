"""Weight files: read without pickle, fit to a network (or report the differences), hash and write."""

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from finetune.atomic_files import atomic_path
from finetune.errors import FileError, UserError, first_line, shortened, type_in_words
from finetune.file_errors import read_error
from finetune.models.heads import HEADS, build_head
from finetune.models.heads.linear import LinearHead
from finetune.models.imprinting import grown_head
from finetune.models.size_limit import TooManyParametersError, parameters_at_most
from finetune.models.user_modules import OWN
from finetune.safe_files import check_safetensors, check_zip, load_tensors, need, parse_json, tensor_shapes
from finetune.safe_files import read_json as read_json_file
from finetune.safetensors_writer import write_tensors
from finetune.terminal import printable

if TYPE_CHECKING:
    from finetune.models.backbone import Backbone

log = logging.getLogger(__name__)

METADATA_KEY = "finetune"
# key in that entry: SHA-256 of the tensors and of the rest of the entry
DIGEST_KEY = "sha256"
FORMAT_VERSION = 1
# averaged weights first: in a file that holds both, they are the ones its author evaluated
CONTAINERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model")
# "classifier.backbone." comes from this package's Lightning checkpoints; "classifier." alone is the last layer of many
# networks
PREFIXES = ("_orig_mod.", "module.", "model.", "classifier.backbone.", "backbone.", "net.", "resnet.")
CLASSIFIERS = ("fc.", "classifier.", "head.", "head_dist.", "heads.", "last_linear.")


def load_state_dict_file(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors``, ``.pth``, ``.pt``, ``.bin`` or ``.ckpt`` file, under plain names.

    A dictionary around the state dict (an EMA copy, a Lightning checkpoint) is unwrapped, and the prefixes ``module.``,
    ``model.``, ``backbone.``, ``net.``, ``resnet.`` and ``_orig_mod.`` are removed; both are logged. Nothing in the
    file is executed: ``weights_only=True`` refuses a pickle that holds more than tensors and plain containers.

    Raises:
        UserError: There is no such file, it cannot be read safely, or it holds no tensors.
    """
    path = Path(path)
    name = f"backbone.weights='{path}'"
    if path.suffix == ".safetensors":
        content: Any = load_tensors(path, name=name)
        check_digest(name, content, metadata_entry(path))
    else:
        check_zip(path, name=name, contents=True)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises half a dozen types here, none of them its own
            if (failed := read_error(error, path, name=name)) is not None:
                raise failed from error
            raise UserError(
                f"backbone.weights='{path}': cannot be read as plain tensors. {_what_is_wrong(error)} "
                "Nothing in it was executed. Save its state dict as .safetensors and give that file."
            ) from None
    state = _recognised(content, path=path)
    file_bytes = path.stat().st_size
    # with stride 0, a view of one stored number can have any size
    oversized = [key for key, value in state.items() if value.numel() * value.element_size() > file_bytes]
    if oversized:
        raise UserError(f"{name}: damaged. These tensors are larger than the whole file: {shortened(oversized)}.")
    return state


def _what_is_wrong(error: Exception) -> str:
    """Return in a sentence why torch cannot read a file; torch's own message advises how to read it unsafely.

    >>> _what_is_wrong(RuntimeError("Weights only load failed ... Unsupported global: GLOBAL my.Net was not an allowed"))
    'It holds a Python object: my.Net.'
    """
    if named := re.search(r"GLOBAL (\S+)", str(error)):
        return f"It holds a Python object: {printable(named[1])[:200]}."
    if "Weights only load failed" in str(error):
        return "It is a damaged pickle, or holds other objects than tensors."
    return f"{printable(first_line(error, with_type=True))[:200].rstrip('.')}."


def _recognised(content: Any, *, path: Path) -> dict[str, Tensor]:
    """Return the state dict inside the content of a file, with its prefixes removed."""
    recognised: list[str] = []
    if isinstance(content, Mapping) and "pytorch-lightning_version" in content:
        recognised.append(f"a Lightning {content['pytorch-lightning_version']} checkpoint")
    if isinstance(content, Mapping) and not all(isinstance(value, Tensor) for value in content.values()):
        key = next((key for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            raise UserError(
                f"backbone.weights='{path}': holds no state dict. Its keys: {shortened(sorted(map(str, content)))}. "
                f"Looked for {', '.join(CONTAINERS)}. Save the state dict under one of these keys, or by itself."
            )
        recognised.append(f"the state dict under {key!r}")
        content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"backbone.weights='{path}': holds no tensors. It is {type_in_words(content)}.")
    state = dict(content)
    if not all(isinstance(value, Tensor) for value in state.values()):
        odd = [key for key, value in state.items() if not isinstance(value, Tensor)]
        raise UserError(
            f"backbone.weights='{path}': not a plain state dict. No tensor under {shortened(odd)}. Save only the tensors, for "
            "example net.state_dict()."
        )
    if state.pop("n_averaged", None) is not None:
        recognised.append("the counter of an averaged model")
    state, cut = _without_prefixes(state)
    recognised += [f"the prefix {prefix!r}" for prefix in cut]
    if recognised:
        log.info("%s: recognised %s.", path, ", ".join(recognised))
    return state


def _without_prefixes(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Remove known prefixes from all names that have them; return the new dict and the removed prefixes."""
    cut: list[str] = []
    while prefix := next((p for p in PREFIXES if any(key.startswith(p) for key in state)), None):
        shorter = {key.removeprefix(prefix): value for key, value in state.items()}
        if len(shorter) < len(state):
            # two copies of one network, such as a teacher and its student: the user must choose
            repeated = [key for key in state if key.startswith(prefix) and key.removeprefix(prefix) in state]
            raise UserError(
                f"backbone.weights: holds the same names with and without the prefix {prefix!r} "
                f"({shortened(repeated)}). Save the network that you want by itself."
            )
        state = shorter
        cut.append(prefix)
    return state, cut


def under_own_names(state: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Return a state dict of plain names under the names of a network whose own names begin with a known prefix.

    :func:`load_state_dict_file` removes ``net.`` and the like, which may be the name of a child in a user-supplied module.

    >>> net = nn.Sequential()
    >>> net.model = nn.Linear(1, 1, bias=False)
    >>> list(under_own_names({"weight": torch.zeros(1, 1)}, net))
    ['model.weight']
    """
    own = net.state_dict()
    plain, _ = _without_prefixes(own)
    names = dict(zip(plain, own, strict=True))
    return {names.get(key, key): value for key, value in state.items()}


def fit_state_dict(
    net: nn.Module,
    state: Mapping[str, Tensor],
    *,
    origin: str = "state dict",
    neutral: Mapping[str, Tensor] | None = None,
) -> list[str]:
    """Load a state dict into a network without classifier, exactly or not at all.

    Args:
        net: Network that takes the tensors; its dtype is kept.
        state: Tensors under the names of ``net``; a classifier (``fc.*`` and the like) is removed, which is logged.
        origin: Name of the state dict in messages.
        neutral: Tensors that the state dict may lack, but only all of them together, with their default values; None for
            none.

    Returns:
        The names of the classifier's tensors that were removed.

    Raises:
        UserError: Tensors are missing, left over, of another shape, or not finite; one message lists all of them.
    """
    own = net.state_dict()
    if neutral and not set(neutral) & set(state):
        log.info("%s: has no %s; they are initialised so that they change nothing.", origin, shortened(list(neutral)))
        state = {**state, **neutral}
    extra = [key for key in state if key not in own]
    classifier = [key for key in extra if key.startswith(CLASSIFIERS)]
    extra = [key for key in extra if key not in classifier]
    # files written before PyTorch 0.4.1 lack this counter; nothing in this package reads it
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    shapes = [
        f"{key} {_shape(state[key])} instead of {_shape(own[key])}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    broken = [
        key
        for key, value in state.items()
        if key in own and value.shape == own[key].shape and value.is_floating_point() and not value.isfinite().all()
    ]
    problems = {"missing": missing, "extra": extra, "other shape": shapes, "not finite": broken}
    if any(problems.values()):
        summary = ". ".join(f"{what} ({len(items)}): {shortened(items)}" for what, items in problems.items() if items)
        raise UserError(
            f"backbone.weights='{origin}': does not fit this network. {summary}. "
            "Choose the backbone.name that these weights were made for."
        )
    if classifier:
        log.info("%s: dropped the classifier weights %s; the head is new.", origin, shortened(classifier))
    net.load_state_dict({key: state.get(key, own[key]) for key in own})
    return classifier


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def state_hash(module_or_state: nn.Module | Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over sorted names, dtypes, shapes and bytes, without the step counters of BatchNorm.

    >>> one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> state_hash(one) == state_hash(two)
    False
    >>> _ = two.load_state_dict(one.state_dict())
    >>> state_hash(one) == state_hash(two)
    True
    """
    state = module_or_state.state_dict() if isinstance(module_or_state, nn.Module) else module_or_state
    digest = hashlib.sha256()
    for name in sorted(state):
        if name.endswith("num_batches_tracked"):
            continue
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{_shape(tensor)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_of_backbone(backbone: "Backbone") -> str:
    """Return the hash of a backbone's weights and, where it was chosen, of its pooling: of what a head was trained on."""
    weights = state_hash(backbone)
    return weights if backbone.pool is None else hashlib.sha256(f"{weights} {backbone.pool}".encode()).hexdigest()


def save_tensors(path: str | Path, state: Mapping[str, Tensor], *, metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file atomically, with a JSON entry ``finetune`` in its metadata.

    The entry holds a digest of itself and of the tensors, which :func:`check_digest` compares when the file is read.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    entry = {**metadata, DIGEST_KEY: _digest(tensors, metadata)}
    with atomic_path(path) as part:
        write_tensors(part, tensors, metadata={METADATA_KEY: json.dumps(entry, sort_keys=True)})


def _digest(state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    return hashlib.sha256(f"{state_hash(state)}{json.dumps(dict(metadata), sort_keys=True)}".encode()).hexdigest()


def metadata_entry(path: str | Path) -> str | None:
    """Read the raw ``finetune`` entry of a safetensors file's metadata; return None if it has none."""
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get(METADATA_KEY)


def check_digest(name: str, state: Mapping[str, Tensor], entry: str | None) -> None:
    """Check the contents of a safetensors file against its own digest; a file without one passes.

    Args:
        name: Name of the file, for the message.
        state: All tensors of the file.
        entry: Raw ``finetune`` entry of its metadata; None if it has none.

    Raises:
        UserError: The contents are not those that were written.
    """
    try:
        metadata = json.loads(entry or "{}")
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{name}: damaged. The entry {METADATA_KEY!r} of its metadata is not JSON. {error}. Restore a copy, or export it "
            "again."
        ) from None
    recorded = metadata.pop(DIGEST_KEY, None) if isinstance(metadata, dict) else None
    if recorded is not None and recorded != _digest(state, metadata):
        raise UserError(
            f"{name}: damaged. Its tensors or its metadata have changed since they were written (their SHA-256 differs). "
            "Restore a copy, or export it again."
        )


def read_json(path: str | Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        UserError: The file cannot be read, or does not hold an object.
    """
    content: dict[str, Any] = read_json_file(path, dict, name=f"'{path}'")
    return content


def read_metadata(path: str | Path, *, name: str | None = None) -> dict[str, Any] | None:
    """Read the ``finetune`` entry of a safetensors file; return None if it has none.

    Args:
        path: Path of the file.
        name: What messages call it; None for the path.

    Raises:
        UserError: The file is not a safetensors file, or comes from a newer format.
    """
    name = name or f"'{path}'"
    check_safetensors(path, name=name)
    try:
        with safe_open(path, framework="pt") as file:
            entry = (file.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{name}: not a safetensors file. {error}.") from None
    if entry is None:
        return None
    metadata: dict[str, Any] = parse_json(entry, dict, name=name)
    version = metadata.get("format")
    if version != FORMAT_VERSION:
        raise UserError(f"{name}: written in format {version}. This version reads {FORMAT_VERSION}. Update finetune.")
    return metadata


def save_head(
    path: str | Path,
    *,
    head: nn.Module,
    settings: Mapping[str, Any],
    backbone_hash: str,
    classes: Sequence[str],
    multi_label: bool = False,
) -> None:
    """Write a head together with the hash of the backbone and the classes it was trained with.

    Args:
        path: Path of the ``.safetensors`` file.
        head: Head to write.
        settings: Its description, :attr:`finetune.models.classifier.Classifier.head_settings`.
        backbone_hash: :func:`state_hash` of the backbone.
        classes: Class names in the order of the logits.
        multi_label: Whether an image may show several classes or none.
    """
    metadata = {
        "format": FORMAT_VERSION,
        "kind": "head",
        "head": dict(settings),
        "backbone_hash": backbone_hash,
        "classes": list(classes),
        "multi_label": multi_label,
    }
    save_tensors(path, head.state_dict(), metadata=metadata)


def save_backbone(
    path: str | Path,
    *,
    backbone: "Backbone",
    size: tuple[int, int] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a backbone without its head; ``backbone.weights=PATH`` reads it.

    Args:
        path: Path of the ``.safetensors`` file.
        backbone: Backbone to write; an adapted stem is written as it is, and the file records the adaptation.
        size: Height and width in pixels that the backbone was trained with; None for the size in its specification.
        dtype: Type of the floating-point tensors in the file; None keeps their types.
    """
    spec = replace(backbone.input_spec, size=size or backbone.input_spec.size)
    metadata = {
        "format": FORMAT_VERSION,
        "kind": "backbone",
        "backbone": {**backbone.describe(), "input_spec": spec.to_dict()},
        "adapted": list(backbone.adapted) if backbone.adapted else None,
        "backbone_hash": hash_of_backbone(backbone),
    }
    state = backbone.net.state_dict()
    if dtype is not None:
        state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    save_tensors(path, state, metadata=metadata)


def head_classes(path: str | Path) -> list[str]:
    """Return the classes of a head in a file.

    Raises:
        UserError: The file does not hold a head.
    """
    classes: list[str] = _head_metadata(path, name=f"head.weights='{path}'")["classes"]
    return classes


def _head_metadata(path: str | Path, *, name: str) -> Mapping[str, Any]:
    metadata = read_metadata(path, name=name)
    if metadata is None or metadata.get("kind") != "head":
        raise UserError(f"{name}: not a head. Make one with `finetune export RUN --format head`.")
    need(metadata, {"head": dict, "classes": list, "backbone_hash": str}, name=name)
    if not all(isinstance(one, str) for one in metadata["classes"]):
        raise UserError(f"{name}: damaged. Its classes must be names.")
    return metadata


def load_head(
    path: str | Path,
    *,
    backbone_hash: str,
    classes: Sequence[str],
    multi_label: bool = False,
    own: nn.Module | None = None,
    rename: Mapping[str, str] | None = None,
    features_of: Callable[[str], Tensor] | None = None,
) -> nn.Module:
    """Read a head if it belongs to this backbone and these classes, or to some of them.

    Args:
        path: Path of the ``.safetensors`` file.
        backbone_hash: :func:`state_hash` of the backbone.
        classes: Class names in the order of the logits.
        multi_label: Whether an image may show several classes or none.
        own: The user's own head, into which the weights are loaded; None builds the head that the file describes.
        rename: New names of the file's classes, by the old ones; see :func:`finetune.models.imprinting.grown_head`.
        features_of: Returns the features (N, D) of images of a class that the file lacks; None refuses a file that lacks some.

    Raises:
        UserError: The file does not hold a head, the head was trained on another backbone, another class list or another kind of
            labels, or it needs a user-supplied class that was not given.
    """
    name = f"head.weights='{path}'"
    metadata = _head_metadata(path, name=name)
    names = [(rename or {}).get(name, name) for name in metadata["classes"]]
    grows = names != list(classes) and features_of is not None and set(names) <= set(classes)
    if names != list(classes) and not grows:
        trained_classes, given_classes = metadata["classes"], list(classes)
        different = [f"{a!r} instead of {b!r}" for a, b in zip(trained_classes, given_classes, strict=False) if a != b]
        raise UserError(
            f"head.weights='{path}': trained for another class list. It has {len(trained_classes)} classes, the data "
            f"{len(given_classes)}; {shortened(different) or 'one list is the beginning of the other'}. "
            "Train a new head, or give it the data it was trained for."
        )
    if metadata.get("multi_label", False) != multi_label:
        kinds = {True: "several labels", False: "one label"}
        raise UserError(
            f"head.weights='{path}': trained for {kinds[not multi_label]} per image. The data has {kinds[multi_label]} "
            "per image. Train a new head."
        )
    if metadata["backbone_hash"] != backbone_hash:
        raise UserError(
            f"head.weights='{path}': trained on another backbone. Its backbone's weights have the hash "
            f"{metadata['backbone_hash'][:12]}, this one's {backbone_hash[:12]}. "
            "Give backbone.weights= the backbone exported with it, or train a new head."
        )
    described = metadata["head"].get("name")
    if described == OWN and own is None:
        raise UserError(
            f"{name}: holds the weights of a user-supplied class, {printable(str(metadata['head'].get('class')))[:200]}. "
            "Give that class too: head._target_=CLASS."
        )
    if grows and not (described in HEADS and HEADS[described].is_linear and own is None):
        raise UserError(
            f"{name}: holds a {printable(str(described))[:200]} head of {len(names)} classes, and the data has "
            f"{len(classes)}. Only a linear head takes new classes. Train a new head."
        )
    if described != OWN and own is not None:
        raise UserError(
            f"{name}: holds a {printable(str(described))[:200]} head, not one of head._target_. Leave one of them out."
        )
    numbers = sum(math.prod(shape) for shape in tensor_shapes(path, name=name).values())
    try:
        with parameters_at_most(numbers, name=name):
            head: nn.Module = build_head(**metadata["head"]) if own is None else own
    except TooManyParametersError:
        raise
    except (TypeError, RuntimeError, ValueError) as error:
        raise _unfit(error, path, name=name) from error
    state = load_tensors(path, name=name)
    check_digest(name, state, metadata_entry(path))
    try:
        head.load_state_dict(state)
    except (TypeError, RuntimeError, ValueError) as error:
        raise _unfit(error, path, name=name) from error
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"{name}: holds values that are not finite: {shortened(broken)}. Train a new head.")
    if not grows:
        return head
    assert isinstance(head, LinearHead)
    assert features_of is not None
    if len(names) != len(head.fc.weight):
        raise UserError(f"{name}: damaged. It names {len(names)} classes and has {len(head.fc.weight)} rows.")
    return grown_head(head, names=names, classes=classes, features_of=features_of)


def _unfit(error: Exception, path: str | Path, *, name: str) -> UserError | FileError:
    """Return the message about a head's file whose tensors and description do not belong together."""
    if (failed := read_error(error, path, name=name)) is not None:
        return failed
    return UserError(f"{name}: damaged. Its tensors do not fit its own description. {error}")

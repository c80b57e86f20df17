"""Trust: which classes a configuration may name, by where it comes from. All classes that are built by name are built here.

What the user typed is trusted: this command line, the packaged ``conf/``, the user's ``--config-dir``. The contents of a run
folder, a bundle, an embeddings file or a model folder are data: only the classes of :mod:`finetune.listed_classes` are built from
them, with plain values as arguments, and these classes write only inside the run folder. Nothing else that the data names is even
imported, unless the user has read the list of those names and typed ``finetune resume RUN --trust``. This is an allowlist; there
is not a blocklist.
"""

import dataclasses
import importlib
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.config.schema import Config
from finetune.errors import ConfigError, UserError, did_you_mean, first_line, type_in_words
from finetune.listed_classes import CONTROL_KEYS, OPTIMIZERS, RUN_DIR, listing_package, unlisted, unlisted_in
from finetune.resume_command import resume_command
from finetune.safe_files import links_out
from finetune.terminal import printable

if TYPE_CHECKING:
    from torch import nn

DEFAULT_OPTIMIZER = "torch.optim.AdamW"

# logger -> package that it imports only when it is built
_NEEDS: Mapping[str, str] = {
    "WandbLogger": "wandb",
    "MLFlowLogger": "mlflow",
    "CometLogger": "comet_ml",
    "NeptuneLogger": "neptune",
    "TensorBoardLogger": "tensorboard",
}
# setting of a user's module -> what its class is built with
_PASSED = {
    "head": "A head is built with num_features and num_classes, where its class has arguments of these names, and with "
    "head.kwargs: head.kwargs.depth=2.",
    "backbone": "A network is built with backbone.kwargs: backbone.kwargs.depth=2.",
}
_WHERE = "Install the package that holds it, or put its folder on PYTHONPATH."


def needs_trust(config: Config) -> list[str]:
    """Return what a configuration names that data may not name, one line each, as ``resume --trust`` shows it; import nothing.

    >>> config = Config(callbacks={"x": {"_target_": "torch.load", "f": "x.pth"}})
    >>> needs_trust(config)
    ["callbacks.x: torch.load(f='x.pth')"]
    """
    return unlisted_in(dataclasses.asdict(config))


def require_trust(run_dir: Path, config: Config, *, trust: bool, typed: bool = False) -> list[str]:
    """Accept the configuration of a run folder, or refuse it.

    Args:
        run_dir: Run folder.
        config: Configuration of the run.
        trust: Whether the user typed ``--trust``.
        typed: Whether the user typed the same configuration on this command line.

    Returns:
        Lines for what only ``--trust`` allows, to be shown before it is built; empty for a run of listed classes.

    Raises:
        UserError: Something needs ``--trust``, and it was not given.
    """
    untrusted = [*([] if typed else needs_trust(config)), *links_out(run_dir)]
    if untrusted and not trust:
        lines = "\n".join(f"  {line}" for line in untrusted)
        raise UserError(
            f"RUN='{run_dir}': names what a run folder may not decide by itself, so nothing of it has been run or "
            f"contacted:\n{lines}\n"
            "If you trust whoever made this run, or it is your own, continue with: "
            f"{resume_command(run_dir, trust=True)}"
        )
    return untrusted


class _ArgumentsError(UserError):
    """Raised when a class does not take the arguments of its node."""


def instantiate(node: Mapping[str, Any], *, trusted: bool, run_dir: Path | None = None, **arguments: Any) -> Any:
    """Build the object that a ``_target_`` node describes.

    Args:
        node: ``_target_`` and its arguments.
        trusted: Whether the user typed the node, or trusts the run that it comes from; if not, only listed classes are built.
        run_dir: Folder that replaces the placeholder of the run folder in the node.
        **arguments: Further arguments from the program itself, passed on unchanged.

    Raises:
        UserError: The target may not be built, cannot be found, or does not accept its arguments.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate as hydra_instantiate

    if not isinstance(node, Mapping):
        raise UserError(f"{printable(repr(node)[:80])}: must be a node with a _target_ and its arguments.")
    target = node.get("_target_")
    # the run folder's name could contain an interpolation, which Hydra would resolve too
    for value in (node, arguments, str(run_dir)):
        _refuse_interpolation(value, str(target))
    if not trusted:
        if refused := list(unlisted(node, "")):
            raise ConfigError([f"{line}: not on the list of what data may build." for line in refused])
        for name in _targets(node):
            _resolve(name)
    try:
        return hydra_instantiate(_with_run_dir(node, run_dir), **arguments, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, ModuleNotFoundError) or "Error locating target" in str(error):
            raise UserError(f"{target}: cannot be imported. {_import_reason(error)}. {_WHERE}") from error
        raise _ArgumentsError(f"{target}: does not take these arguments. {first_line(cause).rstrip('.')}.") from error


def check_node(node: Any, *, where: str) -> Any:
    """Check a node that the user typed without building it, and return its class, which can be imported and takes the arguments.

    Args:
        node: ``_target_`` and its arguments.
        where: Setting that holds the node.

    Raises:
        UserError: The class cannot be imported, misses a package, or does not take the arguments.
    """
    import inspect
    from importlib.util import find_spec

    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise UserError(
            f"{where}: must be a node with a _target_ and its arguments. Set {where}._target_=my.module.Class."
        )
    target = node["_target_"]
    made = _import_named(target, where=f"{where}._target_")
    package = _NEEDS.get(target.rpartition(".")[2])
    if package is not None and find_spec(package) is None:
        raise UserError(f"{where}: needs the package {package}. Install it: pip install {package}")
    try:
        takes = inspect.signature(made).parameters
    except (TypeError, ValueError):
        return made
    given = [str(key) for key in node if key not in CONTROL_KEYS]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        return made
    for key in given:
        if key not in takes:
            near = did_you_mean(key, takes) or f" Arguments: {', '.join(takes)}."
            raise UserError(f"{where}.{key}={node[key]!r}: {target} takes no such argument.{near}")
    missing = [
        key
        for key, parameter in takes.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and key not in given
    ]
    if missing and not node.get("_partial_"):
        raise UserError(f"{where}.{missing[0]}: must be given. {target} needs it.")
    return made


def module_node(target: str, arguments: Mapping[str, Any], *, trusted: bool, **offered: Any) -> dict[str, Any]:
    """Return the node of a user's module: its class, its arguments, and those offered arguments that the class takes.

    Args:
        target: Dotted name of the class, or of a function that builds the module.
        arguments: Arguments as the user gave them.
        trusted: Whether the user typed the target, or trusts the run that it comes from.
        **offered: Arguments from finetune, such as ``num_features``; those that the class does not take are left out.

    Raises:
        UserError: The target is not trusted, or cannot be imported.
    """
    import inspect

    _refuse_untrusted(target, trusted=trusted)
    made = _import_named(target)
    takes: Mapping[str, inspect.Parameter]
    try:
        takes = inspect.signature(made).parameters
    except (TypeError, ValueError):
        takes = {}
    any_keyword = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    taken = {key: value for key, value in offered.items() if key in takes or any_keyword}
    return {**taken, **arguments, "_target_": target}


def build_module(node: Mapping[str, Any], *, where: str, trusted: bool) -> "nn.Module":
    """Build a user-supplied module.

    Args:
        node: ``_target_`` and its arguments.
        where: Setting that the node belongs to, for messages: ``head``, ``backbone``, ``loss``.
        trusted: Whether the user typed the node, or trusts the run or bundle that it comes from.

    Raises:
        UserError: The node is not trusted, cannot be built, or builds something else.
    """
    _refuse_untrusted(str(node.get("_target_")), trusted=trusted)
    from torch import nn

    try:
        module = instantiate(node, trusted=True)
    except UserError as error:
        passed = f" {_PASSED[where]}" if isinstance(error, _ArgumentsError) and where in _PASSED else ""
        raise UserError(f"{where}._target_: {error}{passed}") from error
    if not isinstance(module, nn.Module):
        raise UserError(
            f"{where}._target_={node['_target_']!r}: must build an nn.Module. It built {type_in_words(module)}."
        )
    return module


def objects_named(node: Mapping[str, Any], *, trusted: bool) -> list[Any]:
    """Return the classes and functions that a node and the nodes inside it name.

    Raises:
        UserError: The node is not trusted, or one of them cannot be imported.
    """
    targets = list(_targets(node))
    for target in targets:
        _refuse_untrusted(target, trusted=trusted)
    return [_import_named(target) for target in targets]


def _import_named(target: str, *, where: str = "_target_") -> Any:
    """Import the class or function of a dotted name, which the user typed or trusts.

    Raises:
        UserError: It cannot be imported.
    """
    from hydra.utils import get_object

    # Hydra logs what is raised here too
    log = logging.getLogger("hydra.utils")
    heard, log.disabled = log.disabled, True
    try:
        return get_object(target)
    except Exception as error:
        raise UserError(
            f"{where}={printable(target)!r}: cannot be imported. {_import_reason(error)}. {_WHERE}"
        ) from error
    finally:
        log.disabled = heard


def _import_reason(error: BaseException) -> str:
    """Return why an import failed: the first line of the error that Hydra's errors were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error, with_type=not isinstance(error, (ImportError, AttributeError))).rstrip(".:")


def _refuse_untrusted(target: str, *, trusted: bool) -> None:
    if not trusted:
        raise ConfigError([f"{printable(target)}: not on the list of what data may build."])


def optimizer_class(target: str, *, trusted: bool) -> Any:
    """Return the class or function of an optimizer's dotted name.

    Args:
        target: Dotted name, such as ``torch.optim.AdamW``.
        trusted: Whether the user typed the name; if not, it must be an optimizer of torch or timm.

    Raises:
        UserError: There is no such optimizer, or data may not name it.
    """
    if not trusted:
        if listing_package(target) not in OPTIMIZERS:
            raise UserError(
                f"optimizer._target_={target!r}: data may name optimizers of torch.optim and timm.optim only."
            )
        return _resolve(target)
    return _import_named(target, where="optimizer._target_")


def _resolve(target: str) -> type:
    """Return the class of a listed name; import only the package that lists it.

    Raises:
        UserError: The name stands for something else: an alias, a module or a function.
    """
    package = listing_package(target)
    assert package is not None, "checked before"
    home, _, name = target.rpartition(".")
    try:
        value = getattr(importlib.import_module(package), name, None)
    except ImportError as error:
        raise UserError(
            f"_target_={target!r}: cannot be imported. {error}. Install the package that holds it."
        ) from error
    # torch's optimizers may be re-exported by timm's package
    homes = OPTIMIZERS if package in OPTIMIZERS else (package.partition(".")[0],)
    place = getattr(value, "__module__", "")
    itself = (
        isinstance(value, type)
        and value.__qualname__ == name
        and any(place == allowed or place.startswith(f"{allowed}.") for allowed in homes)
        and getattr(sys.modules.get(place), name, None) is value
        and home in (package, place)
    )
    if package in OPTIMIZERS and itself:
        import torch

        assert isinstance(value, type)
        itself = issubclass(value, torch.optim.Optimizer)
    if not itself:
        raise UserError(
            f"_target_={target!r}: not on the list of what data may build. Here the name stands for {printable(repr(value))}."
        )
    assert isinstance(value, type)
    return value


def _targets(value: Any) -> Iterator[str]:
    """Yield every ``_target_`` in a tree."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield str(value["_target_"])
        for inner in value.values():
            yield from _targets(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _targets(inner)


def _refuse_interpolation(value: Any, target: str) -> None:
    """Refuse ``${...}``, which Hydra would resolve while building; typed values are already resolved."""
    if isinstance(value, str):
        if "${" in value:
            raise UserError(
                f"{target}: {printable(value)!r} cannot be passed on. Hydra would interpolate '${{'. Give the value itself."
            )
    elif isinstance(value, Mapping):
        for inner in value.values():
            _refuse_interpolation(inner, target)
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_interpolation(inner, target)


def _with_run_dir(value: Any, run_dir: Path | None) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_run_dir(inner, run_dir) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_run_dir(inner, run_dir) for inner in value]
    if isinstance(value, str) and run_dir is not None:
        return value.replace(RUN_DIR, str(run_dir))
    return value

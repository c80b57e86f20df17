"""Build what trains the network: optimizer, loss and Trainer."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.build.user_objects import user_loss
from finetune.config.schema import Config
from finetune.config.trust import DEFAULT_OPTIMIZER, check_node, instantiate, optimizer_class
from finetune.distributed import MOST_RANKS_PER_CORE, knows_other_machines, require_processes
from finetune.errors import UserError, did_you_mean, shortened
from finetune.listed_classes import TRAINER
from finetune.monitors import OF_SEVERAL_LABELS, built_in
from finetune.results import Imbalance
from finetune.training.loss_kinds import LOSSES
from finetune.training.quiet_lightning import QUIET_TRAINER

if TYPE_CHECKING:  # imported where they are used, so that a wrong path is reported before torch is loaded
    from torch import nn

    from finetune.data.image_source import Source
    from finetune.phases import ResolvedPhase
    from finetune.plain import Json
    from finetune.training.param_groups import OptimizerFactory, ParamGroups


def optimizer_factory(phase: "ResolvedPhase", *, trusted: bool) -> "OptimizerFactory":
    """Return a function that builds the optimizer of a phase from its parameter groups.

    Args:
        phase: Phase whose configuration names the optimizer.
        trusted: Whether the user typed that name; if not, it must be an optimizer of torch or timm.

    Raises:
        UserError: The node's target is not an optimizer, or does not accept its arguments.
    """
    node = dict(phase.optimizer)
    target = str(node.pop("_target_", DEFAULT_OPTIMIZER))
    make = optimizer_class(target, trusted=trusted)

    def build(groups: "ParamGroups") -> Any:
        arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in node.items()}
        try:
            if _can_be_fused(make, arguments, phase):
                # RuntimeError: this device or dtype has no fused kernel
                with suppress(RuntimeError):
                    return make(groups, **arguments, fused=True)
            return make(groups, **arguments)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"optimizer._target_={target}: does not accept its arguments {arguments}. {error}"
            ) from error

    return build


def _can_be_fused(make: Callable[..., Any], arguments: Mapping[str, Any], phase: "ResolvedPhase") -> bool:
    """Return whether to ask torch for the optimizer's fused one-pass kernel.

    AdamW on the 11 million weights of ResNet-18 takes 5 ms with it instead of 32 ms on two cores. In mixed precision, Lightning
    does not clip gradients for a fused optimizer.
    """
    try:
        takes = inspect.signature(make).parameters
    except (TypeError, ValueError):
        return False
    chosen = {"fused", "foreach", "differentiable"} & set(arguments)
    return "fused" in takes and not chosen and phase.gradient_clip is None


def imbalance(config: Config) -> Imbalance:
    """Return how a run handles classes of different size, for its plan and its results."""
    loss = config.loss
    return Imbalance(
        loss=loss._target_ or LOSSES[loss.name].in_words(loss.name, loss),
        class_weights=loss.class_weights,
        sampling="balanced" if config.data.balanced else "each image once",
    )


def loss_of(config: Config, source: "Source", *, trusted: bool = False) -> "Callable[[ResolvedPhase], nn.Module]":
    """Return a function that builds the training loss of a phase, single-label or multi-label.

    Args:
        config: Checked configuration.
        source: Data set that gives the classes.
        trusted: Whether the user typed the configuration, or trusts its run; otherwise no user-supplied loss is built.

    Raises:
        UserError: A user-supplied loss cannot be built, or does not take the targets.
    """
    import torch

    from finetune.data.class_weights import class_weights, positive_weights
    from finetune.training.losses import MultiLabelLoss, TrainingLoss

    index = source.index
    loss = MultiLabelLoss if index.multi_label else TrainingLoss
    if config.loss._target_ is not None:
        make = partial(
            user_loss, config, num_classes=len(index.classes), multi_label=index.multi_label, trusted=trusted
        )
        make()
        return lambda phase: make()
    weights = None
    if config.loss.class_weights == "balanced":
        counts = index.counts()["train"]
        balanced = positive_weights(counts, len(index.rows("train"))) if index.multi_label else class_weights(counts)
        weights = torch.tensor(balanced, dtype=torch.float32)

    def build(phase: "ResolvedPhase") -> "nn.Module":
        return loss(
            name=config.loss.name,
            label_smoothing=phase.label_smoothing,
            class_weights=weights,
            **LOSSES[config.loss.name].specific_settings(config.loss),
        )

    return build


# setting below `trainer` that is not an argument of Lightning's
_TIMEOUT = "timeout_s"
DEFAULT_TIMEOUT_S = 300.0


def timeout_s(config: Config) -> float:
    """Return the seconds without a sign of life after which a process of a run counts as gone.

    Raises:
        UserError: It is not a positive number.
    """
    given = config.trainer.get(_TIMEOUT, DEFAULT_TIMEOUT_S)
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given < math.inf:
        raise UserError(f"trainer.{_TIMEOUT}={given!r}: must be a number of seconds above 0.")
    return float(given)


def _for_lightning(config: Config) -> Mapping[str, Any]:
    return {"_target_": TRAINER, **{key: value for key, value in config.trainer.items() if key != _TIMEOUT}}


def check_training(
    config: Config,
    run_dir: Path,
    *,
    multi_label: bool,
    user_metrics: Collection[str] = (),
    callbacks: Sequence[Any] = (),
) -> None:
    """Check what training needs besides data and network before the run folder is created, so that none of it fails later.

    Args:
        config: Checked configuration that the user typed.
        run_dir: Folder that the run will have.
        multi_label: Whether images have several labels.
        user_metrics: Names of metrics that were given as objects.
        callbacks: Callbacks that were given as objects.

    Raises:
        UserError: The monitor, a trainer argument, a device, a logger or a callback is wrong.
    """
    from finetune.training.user_callbacks import UserCallbacks, check_callback

    if config.thresholds != "half" and not multi_label:
        raise UserError(
            f"thresholds={config.thresholds}: only for several labels per image. Leave it out; with one label the most probable "
            "class is predicted."
        )
    if config.monitor in OF_SEVERAL_LABELS and not multi_label:
        raise UserError(f"monitor={config.monitor!r}: only for several labels per image. Set monitor=val/f1_macro.")
    user_supplied = (f"val/{name}" for name in (*config.metrics, *user_metrics))
    monitors = [*built_in(multi_label=multi_label), *user_supplied]
    if config.monitor not in monitors:
        raise UserError(
            f"monitor={config.monitor!r}: not a validation metric. Metrics: {', '.join(monitors)}."
            f"{did_you_mean(config.monitor, monitors)}"
        )
    # for a Python object, the configuration holds only its class
    own = {name: node for name, node in config.metrics.items() if "_target_" in node or "object" not in node}
    for section, nodes in (("logger", config.logger), ("callbacks", config.callbacks), ("metrics", own)):
        for name, node in nodes.items():
            made = check_node(node, where=f"{section}.{name}")
            if section == "callbacks":
                check_callback(made, where=f"callbacks.{name}")
    UserCallbacks(callbacks)
    check_trainer(config, run_dir, trusted=True)


def check_trainer(config: Config, run_dir: Path, *, trusted: bool) -> None:
    """Check the trainer's arguments by building one.

    Args:
        config: Configuration that names them.
        run_dir: Folder of the run.
        trusted: Whether the user typed them; if not, they may name only listed classes.

    Raises:
        UserError: An argument is wrong, or this machine lacks the device.
    """
    check_node(_for_lightning(config), where="trainer")
    timeout_s(config)
    precision = config.trainer.get("precision", "auto")
    build = trainer_factory(
        config, run_dir, precision="32-true" if precision == "auto" else str(precision), trusted=trusted
    )
    # stand-ins for the arguments that a phase decides; see RunSession.fit_trainer
    build(
        max_epochs=1,
        accumulate_grad_batches=1,
        gradient_clip_val=None,
        default_root_dir=str(run_dir),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        plugins=[],
        callbacks=[],
        **QUIET_TRAINER,
    )


# part of a message of Lightning, which raises no types of its own -> the message about the setting that caused it
_TRANSLATED = {
    "No supported gpu backend": "trainer.accelerator={accelerator!r}: this machine has no GPU that torch can use. "
    "Set trainer.accelerator=cpu, or install a torch with CUDA.",
    "`CUDAAccelerator` can not run": "trainer.accelerator={accelerator!r}: this machine has no CUDA device. "
    "Set trainer.accelerator=cpu, or auto.",
    "`MPSAccelerator` can not run": "trainer.accelerator={accelerator!r}: this machine has no Apple GPU. "
    "Set trainer.accelerator=cpu, or auto.",
    "can not run on your system": "trainer.accelerator={accelerator!r}: this machine has no such device. "
    "Set trainer.accelerator=auto.",
    "You selected an invalid accelerator name": "trainer.accelerator={accelerator!r}: not known. "
    "Choices: auto, cpu, gpu, mps, tpu.",
    "You requested gpu": "trainer.devices={devices!r}: this machine has fewer devices. Set trainer.devices=1.",
    "Device should be": "trainer.devices={devices!r}: must be a number of devices, a list of their numbers, or auto.",
    "`devices` selected with": "trainer.devices={devices!r}: must be a positive whole number on a processor.",
    "`Trainer(devices=": "trainer.devices={devices!r}: must be a number of devices, a list of their numbers, or auto.",
    "Allowed precision values": "trainer.precision={precision!r}: not known. "
    "Choices: auto, 32-true, bf16-mixed, 16-mixed, bf16-true, 64-true.",
}


def _translated(error: UserError, config: Config) -> UserError:
    """Translate a message of Lightning's Trainer into one about the setting that caused it."""
    text = str(error)
    values = {key: config.trainer.get(key) for key in ("accelerator", "devices", "precision")}
    return next((UserError(template.format(**values)) for part, template in _TRANSLATED.items() if part in text), error)


# names of Lightning's under which each process holds a whole copy of the network
_STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")


def _require_copies(strategy: object) -> None:
    """Refuse the name of a strategy that shards the network or copies this process, before Lightning looks for its libraries.

    Raises:
        UserError: It is such a name, or none.
    """
    if isinstance(strategy, str) and strategy not in _STRATEGIES:
        raise UserError(
            f"trainer.strategy={strategy!r}: must be auto or ddp. Each process trains a whole copy of the network, which fits on "
            f"one device, so that nothing is sharded.{did_you_mean(strategy, _STRATEGIES)}"
        )


def _require_room_for_devices(devices: object) -> None:
    """Refuse a number of devices that Lightning would list, and start processes for, before it looks at the machine.

    Raises:
        UserError: There are neither so many accelerators nor cores for so many processes.
    """
    import torch

    if isinstance(devices, (int, str)) and str(devices).isdecimal() and int(devices) > torch.accelerator.device_count():
        require_processes(int(devices), setting="trainer.devices", per_core=MOST_RANKS_PER_CORE)


# argument of the Trainer that would change how many steps, epochs or validations a phase has -> its values that change nothing,
# and what to do instead. A run counts its steps, warmup and epochs from whole epochs, each of which ends with a validation.
_COUNTED: Mapping[str, tuple[tuple[object, ...], str]] = {
    "max_steps": ((-1,), "Set schedule.max_steps"),
    "min_steps": (
        (None,),
        "Leave it out; a phase has schedule.epochs epochs, and stops early only by schedule.patience",
    ),
    "min_epochs": (
        (None,),
        "Leave it out; a phase has schedule.epochs epochs, and stops early only by schedule.patience",
    ),
    "limit_train_batches": ((None, 1.0), "Set data.limit_per_class to train on fewer images, or schedule.max_steps"),
    "limit_test_batches": ((None, 1.0), "Leave it out; the test covers the whole test split"),
    "overfit_batches": ((0.0,), "Set data.limit_per_class to train on fewer images"),
    "fast_dev_run": ((False,), "For a quick try set epochs=1 and data.limit_per_class"),
    "barebones": ((False,), "Leave it out"),
    "check_val_every_n_epoch": ((1,), "Leave it out; every epoch ends with a validation"),
    "val_check_interval": ((None, 1.0), "Leave it out; every epoch ends with a validation"),
    "reload_dataloaders_every_n_epochs": ((0,), "Leave it out; the batches of every epoch are drawn anew"),
}


def _require_whole_epochs(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of the Trainer that change how many steps, epochs or validations a phase has.

    Raises:
        UserError: There is such an argument.
    """
    for name, (harmless, instead) in _COUNTED.items():
        value = arguments.get(name, harmless[0])
        # 1 is one batch, 1.0 all of them, and True equals 1
        if not any(value == one and type(value) is type(one) for one in harmless):
            raise UserError(
                f"trainer.{name}={value!r}: the run decides it itself, because it counts the steps, epochs and validations of "
                f"each phase. {instead}."
            )


def trainer_factory(config: Config, run_dir: Path, *, precision: "Json", trusted: bool) -> Callable[..., Any]:
    """Return a function that builds a Lightning Trainer from the configuration's node and the arguments that a run decides.

    Args:
        config: Checked configuration.
        run_dir: Run folder.
        precision: Precision that replaces ``auto``.
        trusted: Whether the user typed the node; if not, it may name only listed classes.

    Raises:
        UserError: The node sets an argument that the run decides.
    """
    from finetune.training.rank_monitor import check_strategy

    if not isinstance(precision, str):  # from run.json, which someone else may have written
        raise UserError(f"precision={str(precision)[:80]!r}: must be a string such as 32-true.")

    def build(**decided: Any) -> Any:
        if taken := sorted(set(config.trainer) & set(decided)):
            raise UserError(
                f"trainer.{taken[0]}={config.trainer[taken[0]]!r}: the run sets {shortened(taken)} itself, phase by phase. "
                "See schedule.*, checkpoint.*, logger.* and callbacks.*."
            )
        _require_whole_epochs(config.trainer)
        _require_copies(config.trainer.get("strategy", "auto"))
        _require_room_for_devices(config.trainer.get("devices"))
        if config.trainer.get("num_nodes", 1) != 1 and not knows_other_machines():
            raise UserError(
                f"trainer.num_nodes={config.trainer['num_nodes']}: this process was not told of other machines, and would wait "
                "forever. Start it by torchrun on each machine (finetune train --help has the line), or by SLURM."
            )
        try:
            trainer = instantiate(
                {**_for_lightning(config), "precision": precision},
                trusted=trusted,
                run_dir=run_dir,
                **decided,
            )
        except UserError as error:
            raise _translated(error, config) from error
        check_strategy(trainer)
        return trainer

    return build

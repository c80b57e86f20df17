"""Compose the run that teaches a trained model new classes or more images: what ``finetune grow`` adds to the user's settings."""

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from finetune.config import from_yaml, quoted
from finetune.config.overrides import values_of
from finetune.config.schema import Config, DataConfig, PhaseSettings
from finetune.data.table_file import open_rows
from finetune.errors import UserError, did_you_mean, shortened
from finetune.models.heads import HEADS
from finetune.models.user_modules import OWN
from finetune.run_names import CONFIG
from finetune.runners.run_data import data_config, read_as_trained
from finetune.safe_files import inside
from finetune.terminal_log import show

log = logging.getLogger(__name__)

# settings that are those of the earlier run
_KEPT = (
    "backbone",
    "head",
    "weights",
    "input.channels",
    "input.adapt",
    "data.old_classes",
    "data.rename",
    "data.split_from",
)


def grown_config(run: str, overrides: Sequence[str], *, rename: Path | None = None) -> Config:
    """Return the configuration of a run that starts from a trained model and has its classes first.

    Args:
        run: Folder of a finished run.
        overrides: Checked overrides of the user; among them the data.
        rename: Table of new names of classes, with the columns ``old`` and ``new``; None keeps all names.

    Raises:
        UserError: The run is not finished or cannot grow, the data shows no new class, or a setting or the table is wrong.
    """
    from finetune.build.data import build_source
    from finetune.build.paths import check_paths
    from finetune.bundle import find_bundle, read_model_json
    from finetune.inference.decode_options import decode_options_of

    model = read_model_json(find_bundle(run))["model"]
    _refuse_own_settings(overrides, run=run)
    head, network = model["head"], model["backbone"]
    _check_grows(multi_label=model.get("multi_label", False), head=head["name"], source=network["source"], run=run)
    typed = values_of(overrides)
    if "data" not in typed:
        raise UserError(f"finetune grow {run}: needs the data to grow by. Give its folder or table, or data=NAME.")
    folder = Path(os.path.abspath(Path(run).expanduser()))
    if not os.path.lexists(folder / CONFIG):
        raise UserError(
            f"RUN={run!r}: a bundle does not record the split of its images. Give the run that it comes from."
        )
    earlier = from_yaml(inside(folder, CONFIG))
    new_names = {} if rename is None else read_renames(rename, classes=model["classes"])
    old = list(dict.fromkeys(new_names.get(name, name) for name in model["classes"]))
    for name in old:
        if name.startswith("~"):
            raise UserError(
                f"RUN={run!r}: a class named {name!r} would be read as a path in a configuration. Rename it."
            )
        quoted(name)

    config = data_config(run, overrides)
    # from the bundle, which has been checked: a configuration that somebody else wrote may name any class
    network = {key: network[key] for key in ("source", "name", "kwargs", "pool") if network.get(key) is not None}
    config.backbone = replace(config.backbone, **network, weights=str(folder))
    config.head = replace(config.head, name=head["name"], drop_rate=head["drop_rate"], weights=str(folder))
    given_input = {key.partition(".")[2]: value for key, value in typed.items() if key.startswith("input.")}
    config.input = replace(
        earlier.input,
        **({"channels": model["input_spec"]["channels"]} | {key: getattr(config.input, key) for key in given_input}),
    )
    read_as_trained(config, overrides, decode_options_of(run))
    config.data = replace(config.data, old_classes=old, rename=new_names, split_from=str(folder))
    _group_as_before(config.data, earlier.data, typed)
    listing = check_paths(config)
    index = build_source(config, listing=listing, download=True).index
    if list(index.classes) == old and not new_names:
        raise UserError(
            f"finetune grow {run}: the data has no class that the run does not know ({shortened(old)}). To go on with more "
            f"images of the same classes: finetune DATA data.split_from={run} weights={run} backbone=NAME (its network); "
            f"head.weights={run} keeps its head too, if the data shows all classes."
        )
    counts = index.counts()["train"]
    if unseen := [name for name, count in zip(old, counts, strict=False) if not count]:
        _train_step_by_step(config)
        log.warning(
            "%d of the %d old classes have no training image and may be forgotten: %s. To rehearse them, give their images too, "
            "for example 'data.root=[OLD,NEW]'. The head is trained step by step from its old rows, which solving it would lose.",
            len(unseen),
            len(old),
            shortened(unseen),
        )
    show(
        f"classes: {len(old)} of the run, then {len(index.classes) - len(old)} new: {shortened(list(index.classes[len(old) :]))}"
    )
    return config


def _train_step_by_step(config: Config) -> None:
    """Let no phase solve the head, which would give classes without images rows of no use.

    Raises:
        UserError: A phase is to solve it by all means.
    """
    places: dict[str, PhaseSettings] = {"schedule": config.schedule}
    places |= {f"schedule.phases[{number}]": phase for number, phase in enumerate(config.schedule.phases)}
    for place, settings in places.items():
        if settings.solver == "lbfgs":
            raise UserError(
                f"{place}.solver='lbfgs': solves the head from images of every class, and old classes have none. Set "
                "solver=gradient, or give their images too."
            )
        if settings.solver == "auto":
            settings.solver = "gradient"


def _refuse_own_settings(overrides: Sequence[str], *, run: str) -> None:
    for word in overrides:
        key = word.lstrip("+").partition("=")[0]
        if key in _KEPT or key.startswith(("backbone.", "head.", "data.rename.")):
            raise UserError(f"{word}: finetune grow takes it from {run}. Leave it out.")


def _check_grows(*, multi_label: bool, head: str, source: str, run: str) -> None:
    """Check that a model can take new classes.

    Raises:
        UserError: It is for several labels, its network is the user's own, or its head is not linear.
    """
    if multi_label:
        raise UserError(
            f"RUN={run!r}: was trained for several labels per image; only a model of one label grows. Train again."
        )
    if head not in HEADS or not HEADS[head].is_linear:
        raise UserError(
            f"RUN={run!r}: has a {head} head; only a linear head takes new classes. Train again with head=linear."
        )
    if source == OWN:
        raise UserError(f"RUN={run!r}: has a network of your own; only networks of a library grow. Train again.")


def _group_as_before(data: DataConfig, earlier: DataConfig, typed: Collection[str]) -> None:
    """Group the images as the earlier run did, unless the data is of another kind or the user says it, and say so."""
    if data.source != earlier.source or {"data.group_pattern", "data.group_column"} & set(typed):
        return
    data.group_pattern, data.group_column = earlier.group_pattern, earlier.group_column
    if grouped := data.group_pattern or data.group_column:
        show(f"images are grouped as in the run: {grouped}")


def read_renames(table: Path, *, classes: Sequence[str]) -> dict[str, str]:
    """Read a table of new names.

    Args:
        table: CSV, TSV or Parquet file with the columns ``old`` and ``new``.
        classes: Classes of the run.

    Raises:
        UserError: The table cannot be read, or names a class twice, or one that the run does not have, or a name is both old and
            new.
    """
    name, renames = f"--rename {table}", dict[str, str]()
    if not table.is_file():
        raise UserError(f"{name}: no such file.")
    with open_rows(table, name=name) as rows:
        if missing := [column for column in ("old", "new") if rows.columns.count(column) != 1]:
            raise UserError(f"{name}: needs one column {missing[0]!r}. Columns: {shortened(rows.columns, 8)}.")
        for cells in rows.read([rows.columns.index("old"), rows.columns.index("new")]):
            old, new = (str(cell).strip() for cell in cells)
            if old not in classes:
                raise UserError(
                    f"{name}: {old!r} is not a class of the run, which has {shortened(list(classes))}."
                    f"{did_you_mean(old, classes)}"
                )
            if old in renames or not new:
                raise UserError(f"{name}: {old!r} needs one new name, in one row.")
            quoted(new)
            if new != old:
                renames[old] = new
    if both := sorted(set(renames) & set(renames.values())):
        raise UserError(f"{name}: {shortened(both)} would be an old and a new name at once. Choose another new name.")
    return renames

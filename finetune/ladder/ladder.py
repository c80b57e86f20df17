"""The ladder's loop: train every strategy over several seeds, or read finished runs, and compare the results."""

import os
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.atomic_files import write_json, write_text
from finetune.build import assemble
from finetune.build.classifier import weights_origin
from finetune.build.data import build_source
from finetune.build.paths import check_paths, data_name
from finetune.build.training import trainer_factory
from finetune.checksums import verify
from finetune.config import command_line, compose
from finetune.config.overrides import plain_words
from finetune.errors import UserError, shortened
from finetune.file_lock import LOCK, FolderLock
from finetune.ladder.networks import Network
from finetune.ladder.recommend import Rung, ladder_table, more_data, recommend
from finetune.ladder.strategies import LadderOptions, strategy_overrides
from finetune.ladder_result import LadderResult
from finetune.plain import from_plain, to_plain
from finetune.report.ladder_page import ladder_page
from finetune.run_folder import RunFolder
from finetune.runners.train import decide, train
from finetune.safe_files import links_out, need, read_json
from finetune.terminal_log import show
from finetune.training.quiet_lightning import QUIET_TRAINER, quiet_lightning

_DELETE = "Delete it to make it again."
_AGAIN = "Delete the folder of the run to train it again."
_LADDER = "ladder.json"


@dataclass(frozen=True, kw_only=True)
class _Accuracy:
    """What the ladder needs of the metrics of a split."""

    acc: float


@dataclass(frozen=True, kw_only=True)
class _Time:
    """What the ladder needs of the wall time of a run."""

    training: float


@dataclass(frozen=True, kw_only=True)
class _RunNumbers:
    """What the ladder needs of ``results.json``."""

    val: _Accuracy
    test: _Accuracy
    seconds: _Time


@dataclass(frozen=True, kw_only=True)
class _PhaseSize:
    """What the ladder needs of an entry of ``plan.json``."""

    trainable: int
    total: int


def run_ladder(overrides: Sequence[str], options: LadderOptions) -> LadderResult:
    """Train the remaining runs of a ladder, and write its table, page and recommendation.

    Raises:
        UserError: The folder holds something else, or the configuration is wrong.
    """
    base = compose(overrides)
    check_paths(base)
    folder = options.folder(data_name(base))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: must be a folder. It is a file. Choose another name.")
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder, name=f"--output {folder}"):
        return _compare(folder, overrides, options)


def _compare(folder: Path, overrides: Sequence[str], options: LadderOptions) -> LadderResult:
    """Train, compare and write, in a folder that this process holds."""
    _begin(folder, overrides, options)
    curves: list[list[dict[str, float]]] = []
    if options.networks:
        ways = _networks(folder, overrides, options)
    else:
        ways, curves = _strategies(folder, overrides, options)
    chosen = recommend([way.rung for way in ways])
    command = None
    if chosen is not None:
        words = next(way.overrides for way in ways if way.rung.name == chosen.name)
        command = command_line("train", plain_words([*overrides, *words]))
    result = LadderResult(
        command=command_line("ladder", plain_words(overrides)),
        options=options.to_plain(),
        rungs=tuple(way.rung.result() for way in ways),
        recommended=chosen,
        train_it=command,
        learning_curve=tuple(tuple(curve) for curve in curves),
    )
    write_json(folder / _LADDER, to_plain(result))
    write_text(folder / "ladder.html", ladder_page(result, more_data=more_data(curves) if curves else None))
    show("")
    show(ladder_table(result))
    show(f"written: {folder / 'ladder.html'}, {folder / _LADDER}")
    return result


@dataclass(frozen=True, kw_only=True)
class _Way:
    """A rung with its runs, and the overrides that train it."""

    rung: Rung
    overrides: Sequence[str]


def _strategies(
    folder: Path, overrides: Sequence[str], options: LadderOptions
) -> tuple[list[_Way], list[list[dict[str, float]]]]:
    """Return the strategies of one network with their runs, and the learning curve of each seed."""
    curves: list[list[dict[str, float]]] = []
    simple: dict[str, list[dict[str, float]]] = {"majority": [], "knn": []}
    for seed in range(options.seeds):
        curve, baselines = _on_features(folder, overrides, seed, options)
        curves.append(curve)
        for name, measured in baselines.items():
            simple[name].append(measured)
    ways = []
    for name in options.rungs:
        words = [] if name in simple else strategy_overrides(name, epochs=options.epochs)
        runs = simple[name] if name in simple else _trained(folder, [*overrides, *words], name, options)
        ways.append(_Way(rung=Rung(name=name, runs=runs), overrides=words))
    return ways, curves


def _networks(folder: Path, overrides: Sequence[str], options: LadderOptions) -> list[_Way]:
    """Return the networks with a solved head, best first on validation, the best ones followed by their other strategies."""
    for network in options.networks:
        # a file of weights that is missing, before the first network is trained
        check_paths(compose([*overrides, *network.overrides()]))
    probes: list[tuple[Network, Rung, list[str]]] = []
    for network in options.networks:
        words = [*network.overrides(), *strategy_overrides("probe", epochs=options.epochs)]
        runs = _trained(folder, [*overrides, *words], network.label, options)
        rung = Rung(
            name=network.label,
            runs=runs,
            parameters=_network_size(folder / "runs" / f"{network.label}-0"),
            licence=weights_origin(compose([*overrides, *words])).licence,
        )
        probes.append((network, rung, words))
    probes.sort(key=lambda probe: -probe[1].mean("val"))
    ways = []
    for place, (network, rung, words) in enumerate(probes):
        ways.append(_Way(rung=rung, overrides=words))
        others = [name for name in options.rungs if name != "probe"] if place < options.finalists else []
        for name in others:
            words = [*network.overrides(), *strategy_overrides(name, epochs=options.epochs)]
            label = f"{network.label}-{name}"
            runs = _trained(folder, [*overrides, *words], label, options)
            ways.append(_Way(rung=replace(rung, name=label, runs=runs), overrides=words))
    return ways


def _network_size(run_dir: Path) -> int:
    """Return the number of parameters of a run's network, head included."""
    plan = RunFolder(run_dir).plan
    return from_plain(_PhaseSize, read_json(plan, list)[0], name=str(plan), remedy=_AGAIN).total


def _begin(folder: Path, overrides: Sequence[str], options: LadderOptions) -> None:
    """Create the folder, or check that it belongs to this ladder."""
    # the file of weights too: one of the same name elsewhere, or written again, is another network
    networks = [network.identity() for network in options.networks]
    config = compose(_words(overrides, 0))
    settings = {"overrides": list(overrides), "epochs": options.epochs} | ({"networks": networks} if networks else {})
    used = {
        "data": build_source(config, download=True).index.fingerprint(),
        "weights": Network(name=config.backbone.name, weights=config.backbone.weights).identity(),
    }
    path = folder / "begun.json"
    if os.path.lexists(path):
        if links := list(links_out(folder)):
            raise UserError(
                f"--output {folder}: holds links out of it, which nothing is written through: {shortened(links)}."
            )
        stored = read_json(path, dict)
        need(stored, {"overrides": list, "epochs": int}, name=str(path))
        if changed := [name for name, value in used.items() if stored.pop(name, None) != value]:
            raise UserError(
                f"--output {folder}: by its {path.name}, the {' and the '.join(changed)} have changed since this ladder began, "
                "so its finished runs cannot stand beside new ones. Choose another folder."
            )
        if stored != settings:
            raise UserError(
                f"--output {folder}: its {path.name} is of a ladder with other settings: "
                f"{' '.join(map(str, stored['overrides']))}, --epochs {stored['epochs']}. "
                "Choose another folder, or give the same settings to continue it."
            )
        return
    if any(child.name != LOCK for child in folder.iterdir()):
        raise UserError(f"--output {folder}: must be new, or of an interrupted ladder. It holds other files.")
    write_json(path, settings | used)


def _words(overrides: Sequence[str], seed: int) -> list[str]:
    return [*overrides, f"seed={seed}"]


def _trained(folder: Path, overrides: Sequence[str], rung: str, options: LadderOptions) -> list[dict[str, float]]:
    """Return the results of a rung that trains, one per seed; train the runs that are missing."""
    results = []
    for seed in range(options.seeds):
        run_dir = folder / "runs" / f"{rung}-{seed}"
        began = time.monotonic()
        if not RunFolder(run_dir).is_finished:
            log = folder / "runs" / f"{rung}-{seed}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a", encoding="utf-8") as file, redirect_stdout(file):
                words = [*_words(overrides, seed), f"run_dir={run_dir}", "resume=auto", "logger=none", "report=false"]
                train(compose(words))
        verify(RunFolder(run_dir).results)
        verify(RunFolder(run_dir).plan)
        results.append({"seed": seed, **_read_numbers(run_dir)})
        show(
            f"{rung:10} seed {seed}  val {100 * results[-1]['val']:.2f}%  test {100 * results[-1]['test']:.2f}%  "
            f"trained in {results[-1]['seconds']:.1f} s, {time.monotonic() - began:.1f} s in all"
        )
    return results


def _read_numbers(run_dir: Path) -> dict[str, float]:
    """Return the numbers of a run that the ladder compares.

    Raises:
        UserError: A file of the run is damaged.
    """
    folder = RunFolder(run_dir)
    results = from_plain(_RunNumbers, read_json(folder.results, dict), name=str(folder.results), remedy=_AGAIN)
    phases = [
        from_plain(_PhaseSize, phase, name=str(folder.plan), remedy=_AGAIN) for phase in read_json(folder.plan, list)
    ]
    if not phases or min(phase.trainable for phase in phases) < 0:
        raise UserError(f"{folder.plan}: damaged. It has no phases, or a phase with fewer than no parameters. {_AGAIN}")
    val, test, seconds = results.val.acc, results.test.acc, results.seconds.training
    if not (0 <= val <= 1 and 0 <= test <= 1 and seconds >= 0):
        raise UserError(
            f"{folder.results}: damaged. Accuracies {val:g} and {test:g} in {seconds:g} seconds cannot be. {_AGAIN}"
        )
    return {"val": val, "test": test, "seconds": seconds, "trained": max(phase.trainable for phase in phases)}


def _on_features(
    folder: Path, overrides: Sequence[str], seed: int, options: LadderOptions
) -> tuple[list[dict[str, float]], dict[str, dict[str, float]]]:
    """Return the learning curve and the baselines, computed from the cache that the other strategies use."""
    path = folder / "features" / f"{seed}.json"
    if not os.path.lexists(path):
        from finetune.activation_cache.cache import eval_features
        from finetune.ladder.baselines import baselines, learning_curve

        config = compose([*_words(overrides, seed), "schedule=probe"])
        parts = assemble(config, trusted=True)
        precision = decide(config, parts).precision
        began = time.monotonic()
        with quiet_lightning():
            trainer = trainer_factory(config, folder, precision=precision.name, trusted=True)(**QUIET_TRAINER)
            parts.classifier.eval()
            features = eval_features(
                parts.classifier,
                parts.data.image_views(),
                splits=("train", "val", "test"),
                limit_bytes=int(config.cache.max_gb * 1e9),
                device=trainer.strategy.root_device,
                context=trainer.precision_plugin.forward_context,
            )
        seconds = time.monotonic() - began
        write_json(
            path,
            {
                "curve": learning_curve(features, parts.source.index, seed=seed),
                "baselines": baselines(features, parts.source.index, seconds=seconds),
            },
        )
    stored = read_json(path, dict)
    need(stored, {"curve": list, "baselines": dict}, name=str(path), remedy=_DELETE)
    for name, measured in stored["baselines"].items():
        if not isinstance(measured, dict):
            raise UserError(f"{path}: damaged. The baseline {name!r} is not a table. {_DELETE}")
        need(measured, {"val": (int, float), "test": (int, float)}, name=f"{path}, {name}", remedy=_DELETE)
    for name, measured in stored["baselines"].items():
        if name in options.rungs:
            show(f"{name:10} seed {seed}  val {100 * measured['val']:.2f}%  test {100 * measured['test']:.2f}%")
    return stored["curve"], {name: {"seed": seed, **measured} for name, measured in stored["baselines"].items()}

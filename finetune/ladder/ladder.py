"""The ladder's loop: train every strategy over several seeds, or read finished runs, and compare the results."""

import os
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

from finetune.atomic_files import write_json, write_text
from finetune.build import assemble
from finetune.build.paths import check_paths, data_name
from finetune.build.training import trainer_factory
from finetune.checksums import verify
from finetune.config import command_line, compose
from finetune.config.overrides import plain_words
from finetune.errors import UserError
from finetune.file_lock import LOCK, FolderLock
from finetune.ladder.recommend import Rung, ladder_table, more_data, recommend
from finetune.ladder.strategies import LadderOptions, strategy_overrides
from finetune.ladder_result import LadderResult
from finetune.plain import from_plain, to_plain
from finetune.report.ladder_page import ladder_page
from finetune.run_folder import RunFolder
from finetune.runners.train import decide, train
from finetune.safe_files import need, read_json
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
    simple: dict[str, list[dict[str, float]]] = {"majority": [], "knn": []}
    for seed in range(options.seeds):
        curve, baselines = _on_features(folder, overrides, seed, options)
        curves.append(curve)
        for name, measured in baselines.items():
            simple[name].append(measured)
    rungs = [
        Rung(name=name, runs=simple[name] if name in simple else _trained(folder, overrides, name, options))
        for name in options.rungs
    ]
    chosen = recommend(rungs)
    command = None
    if chosen is not None:
        words = [*overrides, *strategy_overrides(chosen.name, epochs=options.epochs)]
        command = command_line("train", plain_words(words))
    result = LadderResult(
        command=command_line("ladder", plain_words(overrides)),
        options=asdict(options),
        rungs=tuple(rung.result() for rung in rungs),
        recommended=chosen,
        train_it=command,
        learning_curve=tuple(tuple(curve) for curve in curves),
    )
    write_json(folder / _LADDER, to_plain(result))
    write_text(folder / "ladder.html", ladder_page(result, more_data=more_data(curves)))
    show("")
    show(ladder_table(result))
    show(f"written: {folder / 'ladder.html'}, {folder / _LADDER}")
    return result


def _begin(folder: Path, overrides: Sequence[str], options: LadderOptions) -> None:
    """Create the folder, or check that it belongs to this ladder."""
    settings = {"overrides": list(overrides), "epochs": options.epochs}
    path = folder / "begun.json"
    if os.path.lexists(path):
        stored = read_json(path, dict)
        need(stored, {"overrides": list, "epochs": int}, name=str(path))
        if stored != settings:
            raise UserError(
                f"--output {folder}: its {path.name} is of a ladder with other settings: "
                f"{' '.join(map(str, stored['overrides']))}, --epochs {stored['epochs']}. "
                "Choose another folder, or give the same settings to continue it."
            )
        return
    if any(child.name != LOCK for child in folder.iterdir()):
        raise UserError(f"--output {folder}: must be new, or of an interrupted ladder. It holds other files.")
    write_json(path, settings)


def _words(overrides: Sequence[str], seed: int) -> list[str]:
    return [*overrides, f"seed={seed}"]


def _trained(folder: Path, overrides: Sequence[str], rung: str, options: LadderOptions) -> list[dict[str, float]]:
    """Return a strategy's results, one per seed; train the runs that are missing."""
    results = []
    for seed in range(options.seeds):
        run_dir = folder / "runs" / f"{rung}-{seed}"
        began = time.monotonic()
        if not RunFolder(run_dir).is_finished:
            log = folder / "runs" / f"{rung}-{seed}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a", encoding="utf-8") as file, redirect_stdout(file):
                words = [
                    *_words(overrides, seed),
                    *strategy_overrides(rung, epochs=options.epochs),
                    f"run_dir={run_dir}",
                ]
                train(compose([*words, "resume=auto", "logger=none", "report=false"]))
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

"""A run: one ``Trainer.fit`` for each phase, then the test, the results and the bundle; interrupted, it goes on."""

import gc
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from torch import nn

from finetune.activation_cache.cache import ActivationCache
from finetune.activation_cache.policy import CachePolicy, cache_results
from finetune.atomic_files import remove_parts, sync_folders
from finetune.bundle import save_bundle
from finetune.checksums import checked_path, keep_checksum, remedy, verify, write_checked_json, write_checked_text
from finetune.data.datamodule import ImageDataModule
from finetune.distributed import is_rank_zero
from finetune.errors import UserError, shortened
from finetune.files import EVALUATION
from finetune.models.classifier import Classifier
from finetune.models.memory_format import memory_format_for
from finetune.safe_files import inside, load_tensors, need, read_json
from finetune.safetensors_writer import write_tensors
from finetune.training.callbacks.checkpoint_contents import (
    ContentsError,
    check_best,
    check_last,
    check_rows,
    check_tensors,
    is_finished,
    naming,
    saved_averages,
    saved_processes,
)
from finetune.training.callbacks.checkpoints import (
    BEST,
    LAST,
    AtomicCheckpointIO,
    PhaseCheckpoints,
    by_parameter,
    read_checkpoint,
)
from finetune.training.callbacks.metrics_csv import RunLog
from finetune.training.callbacks.progress_display import EpochLines, PhaseProgressBar, rates_in_words
from finetune.training.companions import Companions, check_strategy
from finetune.training.eval_outputs import Validation, save_outputs
from finetune.training.evaluation import MOST_KEPT, evaluate, reusable_validation
from finetune.training.freezing import apply_phase, tensors_of
from finetune.training.head_phases import head_phase, how_it_ended, needs_no_trainer, setting_of, what_it_does
from finetune.training.interruption import Interruption, leave_signals_alone
from finetune.training.param_groups import OptimizerFactory, build_param_groups
from finetune.training.phase_module import PhaseModule
from finetune.training.phases import Phase
from finetune.training.predictions import predictions_csv
from finetune.training.results import RunResult, run_results
from finetune.training.staged_module import PREFIX
from finetune.training.time_left import TimeLeft

START, RESULT, TRIALS = "start.safetensors", "result.json", "trials.ckpt"
Say = Callable[[str], None]


@dataclass(kw_only=True)
class Run:
    """Trains a classifier through a schedule.

    Args:
        classifier: Network at its start; rebuilt in the same way when a run is resumed.
        data: Batches.
        schedule: Phases in order.
        caches: For each of them, whether it trains on cached activations.
        run_dir: Where everything is written; exists.
        seed: Of all randomness.
        make_trainer: Makes a Trainer from the arguments that the run decides.
        make_optimizer: For a phase, makes the function that turns groups into an optimizer.
        make_loss: For a phase.
        monitor: Metric that decides which epoch is best.
        checkpoint_every: Batches between checkpoints inside an epoch.
        loggers: Beside ``metrics.csv``.
        callbacks: The user's own.
        say: Takes lines for the user; only the first process calls it.
        card: Makes the model card from the results.
        facts: Said in the results: where the weights came from, what the data set holds.
        cache_limit_bytes: Of the whole cache.
        compiled: Compile what trains.
        free_memory: Called before each phase and before the test.
    """

    classifier: Classifier
    data: ImageDataModule
    schedule: Sequence[Phase]
    caches: Sequence[CachePolicy]
    run_dir: Path
    seed: int
    make_trainer: Callable[..., pl.Trainer]
    make_optimizer: Callable[[Phase], OptimizerFactory]
    make_loss: Callable[[Phase], nn.Module]
    monitor: str = "val/acc"
    checkpoint_every: int | None = None
    loggers: Sequence[Logger] = ()
    callbacks: Sequence[pl.Callback] = ()
    say: Say = print
    card: Callable[[Classifier, dict[str, Any]], str] = lambda classifier, results: ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    cache_limit_bytes: int = 20 * 10**9
    compiled: bool = False
    free_memory: Callable[[], object] = gc.collect

    def phase_dir(self, number: int) -> Path:
        """Folder of one phase."""
        return self.run_dir / "phases" / f"{number}-{self.schedule[number].name}"

    def execute(self) -> RunResult:
        """Train what is left to train, then test and write the bundle.

        Raises:
            UserError: Files of the run do not fit its configuration.
            RunError: Training cannot go on.
            Interrupted: A signal stopped it.
        """
        if is_rank_zero():
            remove_parts(self.run_dir)
            sync_folders(self.run_dir)
        self.classifier.to(memory_format=memory_format_for(self.classifier.input_spec))
        log = RunLog(self.run_dir / "metrics.csv")
        phases: list[dict[str, Any]] = []
        self._validated: Validation | None = None
        carried: dict[str, Any] | None = None
        command = f"finetune resume {shlex.quote(str(self.run_dir))}"
        with (
            Interruption(f"go on with: {command}") as interruption,
            Companions(resume_hint=f"Go on with: {command}", interruption=interruption) as companions,
        ):
            self._companions, self._interruption = companions, interruption
            self._time_left = TimeLeft(self.schedule, images=len(self.data.source.index.rows("train")))
            try:
                for number, phase in enumerate(self.schedule):
                    self.free_memory()
                    result, carried = self._phase(number, phase, phases, log, carried)
                    phases.append(result)
                self.free_memory()
                interruption.where = "before the test was over"
                interruption.check()
                evaluated = self._evaluate()
            except Exception as error:
                explained = companions.explained(error)
                if explained is error:
                    raise
                raise explained from error
            interruption.where = "before its results were written"
            return self._finish(phases, evaluated)

    def _phase(
        self, number: int, phase: Phase, before: list[dict[str, Any]], log: RunLog, carried: dict[str, Any] | None
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        folder = self.phase_dir(number)
        self._interruption.where = f"in phase {number + 1} ({phase.name})"
        self._interruption.check()
        if os.path.lexists(folder / RESULT):
            (folder / TRIALS).unlink(missing_ok=True)
            verify(folder / RESULT)
            result = _read_result(folder / RESULT, phase.name)
            log.add(result["rows"])
            self._load(self._after(number))
            return result, None
        self._start_weights(folder)
        if carried is None and phase.carry_optimizer and number > 0:
            carried = self._carried(number - 1)
        began = time.monotonic()
        apply_phase(self.classifier, phase)
        cache = self._cache(number, phase)
        self.data.begin_phase(
            name=phase.name,
            batch_size=phase.batch_size,
            augment=self.caches[number].augment(phase),
            views=self.caches[number].views,
            activations=cache,
        )
        if needs_no_trainer(phase):
            return self._on_features(number, phase, before, log, cache), None
        steps, val_images = self.data.batches_per_epoch(phase.batch_size), len(self.data.source.index.rows("val"))
        offset = (sum(p["epochs"] for p in before), sum(p["steps"] for p in before))
        module = PhaseModule(
            classifier=self.classifier,
            phase=phase,
            optimizer=self.make_optimizer(phase),
            loss=self.make_loss(phase),
            seed=self.seed,
            monitor=self.monitor,
            steps_per_epoch=steps,
            phase_number=number,
            offset=offset,
            file_of=self.data.source.index.path,
            carried=carried if phase.carry_optimizer else None,
            cached_stage=cache.cached_stage if cache is not None else None,
            compiled=self.compiled,
            keep_validation=number + 1 == len(self.schedule) and val_images * len(self.classifier.classes) <= MOST_KEPT,
        )
        if is_rank_zero():
            self.say(
                f"phase {number + 1} of {len(self.schedule)}: {phase.name}, training {', '.join(phase.train)}, "
                f"lr {rates_in_words(list(phase.rates().values()))} {phase.lr_schedule}, {phase.epochs} epochs"
            )
        checkpoint = folder / LAST
        state = read_checkpoint(checkpoint) if os.path.lexists(checkpoint) else None
        if state is not None:
            with naming(checkpoint):
                self._check_last(state, phase, averages=module.averages)
        if state is not None and is_finished(state):
            module.take_results(state)
            epochs, optimizer_steps, carry = len(module.rows), int(state["global_step"]), None
        else:
            before_world = saved_processes(state) if state is not None else None
            del state  # as large as the network, three times
            trainer = self._trainer(phase, folder, log)
            if before_world is not None and before_world != trainer.world_size and is_rank_zero():
                self.say(
                    f"  begun by {before_world} processes, goes on with {trainer.world_size}: gradients are summed in another "
                    "order, and dropout and mixup draw anew in each process, so the result is not the same to the bit"
                )
            with self._running(trainer), module.restoring(checkpoint):
                trainer.fit(
                    module,
                    datamodule=self.data,
                    ckpt_path=str(checkpoint) if os.path.lexists(checkpoint) else None,
                    weights_only=True,
                )
            trainer.strategy.barrier("phase end")
            epochs, optimizer_steps, carry = len(module.rows), trainer.global_step, module.optimizer_state()
        if cache is not None:
            cache.close()
        log.add(module.rows)
        self._restore(folder, phase)
        best = module.progress.best_epoch
        score = module.progress.history[best][0]
        kept = best if phase.restore == "best" else epochs - 1
        self._validated = reusable_validation(
            module.validated, step=module.rows[kept]["step"] - offset[1], images=val_images
        )
        result = {
            "name": phase.name,
            "train": list(phase.train),
            "frozen": list(phase.frozen),
            "epochs": epochs,
            "steps": optimizer_steps,
            "restored": phase.restore,
            "weights": "ema" if phase.ema_decay else "raw",
            "best_epoch": best,
            "best": {self.monitor: score},
            "rates": phase.rates(),
            **cache_results(self.caches[number]),
            "rows": module.rows,
            "seconds": round(time.monotonic() - began, 3),
        }
        if is_rank_zero():
            self._save(self._after(number))
            write_checked_json(folder / RESULT, result)
            self.say(f"  {self.monitor} {score:.4f} at epoch {best + 1} of {epochs}, {result['seconds']:.0f} s")
        return result, carry

    def _carried(self, number: int) -> dict[str, Any]:
        """Optimizer state by parameter name from a phase's last checkpoint."""
        checkpoint, phase = self.phase_dir(number) / LAST, self.schedule[number]
        state = read_checkpoint(checkpoint)
        apply_phase(self.classifier, phase)
        with naming(checkpoint):
            self._check_last(state, phase)
        return by_parameter(state["optimizer_states"][0], self.classifier, phase)

    def _cache(self, number: int, phase: Phase) -> ActivationCache | None:
        if (choice := self.caches[number]).cached_stage is None:
            return None
        return ActivationCache(
            classifier=self.classifier,
            phase=phase,
            choice=choice,
            data=self.data,
            seed=self.seed,
            limit_bytes=self.cache_limit_bytes,
            say=self.say,
        )

    def _on_features(
        self, number: int, phase: Phase, before: list[dict[str, Any]], log: RunLog, cache: ActivationCache | None
    ) -> dict[str, Any]:
        """A phase on cached features that needs no Trainer."""
        if is_rank_zero():
            self.say(f"phase {number + 1} of {len(self.schedule)}: {phase.name}, {what_it_does(phase)}")
        if cache is None:
            raise UserError(
                f"schedule.phases[{number}].{setting_of(phase)} on cached features, and this phase has no cache "
                f"({self.caches[number].why})."
            )
        result = head_phase(
            phase,
            classifier=self.classifier,
            cache=cache,
            data=self.data,
            loss=self.make_loss(phase),
            monitor=self.monitor,
            offset=(sum(p["epochs"] for p in before), sum(p["steps"] for p in before)),
            trainer=self._silent_trainer(),
            views=self.caches[number].views,
            make_optimizer=self.make_optimizer(phase),
            seed=self.seed,
            checkpoint=self.phase_dir(number) / TRIALS,
            interruption=self._interruption,
        ) | cache_results(self.caches[number])
        log.add(result["rows"])
        if is_rank_zero():
            self._save(self._after(number))
            write_checked_json(self.phase_dir(number) / RESULT, result)
            (self.phase_dir(number) / TRIALS).unlink(missing_ok=True)
            self.say(
                f"  {self.monitor} {result['best'][self.monitor]:.4f} {how_it_ended(result)}, {result['seconds']:.0f} s"
            )
        return result

    def _after(self, number: int) -> Path:
        """Where the weights after a phase are kept: as the start of the next one, or as the run's own."""
        last = number + 1 == len(self.schedule)
        return self.run_dir / "final.safetensors" if last else self.phase_dir(number + 1) / START

    def _start_weights(self, folder: Path) -> None:
        """Write what the phase starts from, or read it where the phase had been begun."""
        start = folder / START
        if os.path.lexists(start):
            self._load(start)
        elif is_rank_zero():
            self._save(start)

    def _save(self, path: Path) -> None:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.classifier.state_dict().items()}
        with checked_path(path) as part:
            write_tensors(part, state)

    def _load(self, path: Path) -> None:
        verify(path)
        state = load_tensors(inside(path.parent, path.name))
        broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
        if broken:
            raise UserError(f"{path}: damaged. It holds numbers that are not finite: {shortened(broken)}.")
        try:
            self.classifier.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"{path}: does not fit this run's network. {str(error).splitlines()[0]}") from error

    def _restore(self, folder: Path, phase: Phase) -> None:
        """The weights that the phase hands on: of its best epoch or its last, averaged ones where it averages."""
        chosen = folder / (BEST if phase.restore == "best" else LAST)
        loaded, wanted = read_checkpoint(chosen), tensors_of(self.classifier, phase.train)
        with naming(chosen):
            check_best(loaded, phase=phase.name, weights={PREFIX + name: tensor for name, tensor in wanted.items()})
            averages = saved_averages(loaded) if phase.restore == "last" and phase.ema_decay else None
            if averages is not None:
                check_tensors(averages, wanted, name="averages")
        state = averages or {name.removeprefix(PREFIX): tensor for name, tensor in loaded["state_dict"].items()}
        self.classifier.load_state_dict(state, strict=False)

    def _check_last(
        self, state: dict[str, Any], phase: Phase, *, averages: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        check_last(
            state,
            phase=phase.name,
            weights={PREFIX + name: tensor for name, tensor in tensors_of(self.classifier, phase.train).items()},
            averages=averages,
            groups=build_param_groups(self.classifier, rates=phase.rates(), weight_decay=phase.weight_decay),
            make_optimizer=self.make_optimizer(phase),
        )

    def _trainer(self, phase: Phase, folder: Path, log: RunLog) -> pl.Trainer:
        display = (
            PhaseProgressBar(self._time_left) if PhaseProgressBar.wanted() else EpochLines(self.say, self._time_left)
        )
        return self.make_trainer(
            max_epochs=phase.epochs,
            accumulate_grad_batches=phase.accumulate,
            gradient_clip_val=phase.gradient_clip,
            default_root_dir=str(self.run_dir),
            num_sanity_val_steps=0,
            # ours places rows on processes, and Lightning's would shuffle even what is not to be shuffled
            use_distributed_sampler=False,
            enable_model_summary=False,
            enable_progress_bar=isinstance(display, PhaseProgressBar),
            logger=list(self.loggers) or False,
            log_every_n_steps=1,
            plugins=[AtomicCheckpointIO()],
            callbacks=[
                *self.callbacks,
                display,
                PhaseCheckpoints(
                    folder=folder, log=log, every_n_steps=self.checkpoint_every, interruption=self._interruption
                ),
            ],
        )

    def _silent_trainer(self) -> pl.Trainer:
        """For what is no fit: it writes nothing."""
        return self.make_trainer(
            default_root_dir=str(self.run_dir),
            use_distributed_sampler=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            logger=False,
        )

    @contextmanager
    def _running(self, trainer: pl.Trainer) -> Iterator[None]:
        """Around every call of a Trainer, which may start further processes."""
        check_strategy(trainer)
        self.data.check_processes(trainer.world_size, [phase.batch_size for phase in self.schedule])
        self._companions.watch(trainer.strategy.launcher)
        leave_signals_alone(trainer)
        yield

    def _evaluate(self) -> dict[str, Any]:
        """Validation and test metrics of the final weights, and what they say of each image."""
        number = len(self.schedule) - 1
        return evaluate(
            phase=self.schedule[number],
            # validation images have passed the frozen prefix of the last phase, if it has one, already
            make_cache=lambda: self._cache(number, self.schedule[number]),
            validated=self._validated,
            classifier=self.classifier,
            data=self.data,
            trainer=self._silent_trainer(),
            running=self._running,
        )

    def _finish(self, phases: list[dict[str, Any]], evaluated: dict[str, Any]) -> RunResult:
        index = self.data.source.index
        results = run_results(
            classifier=self.classifier,
            data=self.data,
            phases=phases,
            evaluated=evaluated,
            facts=self.facts,
            seed=self.seed,
        )
        if is_rank_zero():
            test = evaluated["gathered"]["test"]
            keep_checksum(self.run_dir / "metrics.csv")
            predictions = predictions_csv(index, test["rows"], test["probabilities"])
            write_checked_text(self.run_dir / "predictions.csv", predictions)
            save_outputs(self.run_dir / EVALUATION, evaluated["gathered"])
            save_bundle(
                self.classifier,
                self.run_dir / "model",
                metrics={"val": evaluated["val"], "test": evaluated["test"]},
                data=results["data"],
                training={"seed": self.seed, "phases": results["phases"], **self.facts},
                card=self.card(self.classifier, results),
            )
            write_checked_json(self.run_dir / "results.json", results)
        return RunResult(run_dir=self.run_dir, bundle=self.run_dir / "model", results=results)


def _read_result(path: Path, phase: str) -> dict[str, Any]:
    """What a finished phase left.

    Raises:
        UserError: It is damaged.
    """
    result: dict[str, Any] = read_json(inside(path.parent, path.name), dict)
    need(result, {"name": str, "rows": list, "epochs": int, "steps": int, "best": dict}, name=str(path))
    try:
        check_rows(result["rows"], phase=phase)
    except ContentsError as error:
        raise UserError(f"{path}: damaged. {error}. {remedy(path)}.") from None
    return result

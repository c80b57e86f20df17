"""One phase of a run: freeze, cache, train, restore, write the result.

The files are written atomically and in this order, so that a run killed between any two of them can be resumed:

1. ``start.safetensors`` before the first step (of a later phase: by the phase before, at its end);
2. at the end of each epoch ``best.ckpt`` if it improved, ``metrics.csv``, ``last.ckpt``; after a signal ``last.ckpt`` alone
   (:mod:`finetune.training.callbacks.checkpoints`);
3. at the end of the phase the chosen epoch is loaded; ``metrics.csv``; all weights as the next phase's start, or as
   ``final.safetensors``; last ``result.json``, which marks the phase as finished.

Heads that train side by side are kept in ``trials.ckpt`` in place of 2: after a signal, and once all of them are trained; it
is deleted after 3.

All but the checkpoints have their SHA-256 in ``checksums.json``, which is written first and which a resumed run checks;
``metrics.csv`` has it from the end of the run on.
"""

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.activation_cache.cache import ActivationCache
from finetune.counted import counted
from finetune.distributed import is_rank_zero
from finetune.errors import UserError
from finetune.monitors import minimizes
from finetune.phases import ResolvedPhase
from finetune.results import Offset, PhaseResult
from finetune.training.callbacks.checkpoint_contents import check_last, errors_naming, is_finished, saved_processes
from finetune.training.callbacks.checkpoints import by_parameter, read_checkpoint
from finetune.training.callbacks.progress_display import rates_in_words
from finetune.training.epoch_history import EpochHistory
from finetune.training.eval_outputs import Validation, sample_of
from finetune.training.evaluation import MOST_KEPT, reusable_validation
from finetune.training.freezing import apply_phase
from finetune.training.linear_probe import solve_phase
from finetune.training.low_rank import low_rank
from finetune.training.param_groups import OptimizerState, phase_param_groups
from finetune.training.phase_module import FitSettings, PhaseModule
from finetune.training.phase_result import Trained, passed_on, phase_result, read_phase_result, write_phase_result
from finetune.training.phase_weights import begin_from_start_weights, load_weights, restore_chosen_epoch, save_weights
from finetune.training.rate_trials import train_trials
from finetune.training.run_context import RunContext, RunSession
from finetune.training.run_loggers import log_row, mark_running
from finetune.training.staged_module import checkpoint_tensors


@dataclass(frozen=True, kw_only=True)
class PhaseOutcome:
    """The result of a phase, and what it passes on to the next phase and to the test.

    Args:
        result: Result of the phase.
        optimizer_state: State of the optimizer by parameter name; None if this process did not fit the phase.
        validation: Last validation, if it covered every image with the weights that the phase passes on; else None.
    """

    result: PhaseResult
    optimizer_state: OptimizerState | None = None
    validation: Validation | None = None


class PhaseRunner:
    """Runs one phase to its end, starting where an earlier process left it.

    Args:
        context: Objects that the phases of the run share.
        session: This process's signals, log and clock.
        number: Position of the phase in the schedule, from 0.
        before: Results of the earlier phases.
    """

    def __init__(
        self, context: RunContext, session: RunSession, *, number: int, before: tuple[PhaseResult, ...]
    ) -> None:
        self._context, self._session, self._number = context, session, number
        self._phase, self._policy = context.schedule[number], context.cache_policies[number]
        self._folder = context.phase_folder(number)
        self._begins_with = passed_on(before)
        self._offset = Offset(sum(result.epochs for result in before), sum(result.steps for result in before))

    def run(self, optimizer_state: OptimizerState | None = None) -> PhaseOutcome:
        """Train the phase, or read its result if it is finished.

        Args:
            optimizer_state: State of the optimizer after the phase before; None reads it from that phase's checkpoint if this
                phase continues with it.
        """
        self._session.reach(f"in phase {self._number + 1} ({self._phase.name})")
        if os.path.lexists(self._folder.result):
            self._delete_trials()
            return self._read_outcome()
        classifier, began = self._context.classifier, time.monotonic()
        begin_from_start_weights(classifier, self._folder.start)
        carried = self._carried_state(optimizer_state)
        with low_rank(classifier, self._phase, seed=self._context.settings.seed, merge=True):
            apply_phase(classifier, self._phase)
            cache = self._context.make_cache(self._number)
            self._begin_data(cache)
            self._announce()
            with contextlib.closing(cache) if cache is not None else contextlib.nullcontext():
                if self._phase.needs_features:
                    trained, state, validation = self._train_head(cache), None, None
                else:
                    trained, state, validation = self._fit(cache, carried)
        if keeps_start := self._start_was_better(trained):
            load_weights(classifier, self._folder.start)
            validation = None
        result = phase_result(
            self._phase,
            trained,
            keeps_start=keeps_start,
            monitor=self._context.settings.monitor,
            policy=self._policy,
            seconds=time.monotonic() - began,
        )
        self._session.metrics_csv.add(result.rows or ())
        if self._phase.needs_features:
            for row in result.rows or ():
                log_row(self._context.loggers, row)
        self._write(result)
        return PhaseOutcome(result=result, optimizer_state=state, validation=validation)

    @property
    def _weights_after(self) -> Path:
        """Return the file of the weights after the phase: the start of the next one, or the run's final weights."""
        last = self._number + 1 == len(self._context.schedule)
        return self._context.folder.final_weights if last else self._context.phase_folder(self._number + 1).start

    def _read_outcome(self) -> PhaseOutcome:
        """Read the result and the weights of a phase that an earlier process finished."""
        result = read_phase_result(self._folder.result, self._phase, monitor=self._context.settings.monitor)
        self._session.metrics_csv.add(result.rows or ())
        # a finished run keeps only the weights after its last phase
        if self._weights_after.is_file() or not self._context.folder.final_weights.is_file():
            load_weights(self._context.classifier, self._weights_after)
        return PhaseOutcome(result=result)

    def _carried_state(self, optimizer_state: OptimizerState | None) -> OptimizerState | None:
        """Return the optimizer's state after the phase before, if this phase continues with it; else None."""
        if not self._phase.carry_optimizer or self._number == 0:
            return None
        return self._read_optimizer_state(self._number - 1) if optimizer_state is None else optimizer_state

    def _read_optimizer_state(self, number: int) -> OptimizerState:
        """Read the optimizer's state at the end of a phase, by parameter name, from its checkpoint.

        The checkpoint numbers the parameters in the order of that phase's groups, so that phase is applied to read it; this
        phase is applied afterwards.
        """
        classifier, phase = self._context.classifier, self._context.schedule[number]
        file = self._context.phase_folder(number).last
        checkpoint = read_checkpoint(file)
        apply_phase(classifier, phase)
        with errors_naming(file):
            self._check_last(checkpoint, phase)
        return by_parameter(checkpoint["optimizer_states"][0], classifier, phase)

    @property
    def _minimize(self) -> bool | None:
        """Tell whether less of the monitored metric is better, as a metric of the user's says; None for a built-in one."""
        monitor = self._context.settings.monitor
        own = self._context.make.metrics.get(monitor.removeprefix("val/"))
        return None if own is None else minimizes(monitor, higher_is_better=own.higher_is_better)

    def _start_was_better(self, trained: Trained) -> bool:
        """Tell whether no epoch was better than the weights that the phase began with, where the best are kept."""
        begun = self._begins_with
        if begun is None or self._phase.restore == "last" or self._phase.solves_head or not self._validates_all():
            return False
        monitor = self._context.settings.monitor
        history = EpochHistory(monitor=monitor, minimize=self._minimize)
        for row in (begun, trained.rows[trained.best_epoch]):
            history.history.append((row.values[monitor], row.values["val/loss"]))
        return history.best_epoch == 0

    def _validates_all(self) -> bool:
        """Return whether a validation covers every image: metrics of a part are not compared with those of the phase before."""
        limit = self._context.quiet_trainer().limit_val_batches
        # 1 is one batch, 1.0 is all of them
        return isinstance(limit, float) and limit == 1.0

    def _begin_data(self, cache: ActivationCache | None) -> None:
        self._context.data.begin_phase(
            name=self._phase.name,
            batch_size=self._phase.batch_size,
            augment=self._policy.augment(self._phase),
            views=self._policy.views,
            activations=cache,
        )

    def _announce(self) -> None:
        phase = self._phase
        if phase.solves_head:
            plan = "solving the head"
        elif phase.lr_trials:
            plan = f"training {len(phase.lr_trials)} heads at lr {', '.join(f'{rate:g}' for rate in phase.lr_trials)}"
        else:
            rates = rates_in_words(list(phase.rates().values()))
            plan = (
                f"training {', '.join(phase.train)}, lr {rates} {phase.lr_schedule}, {counted(phase.epochs, 'epoch')}"
            )
        self._context.show(f"phase {self._number + 1} of {len(self._context.schedule)}: {phase.name}, {plan}")

    def _train_head(self, cache: ActivationCache | None) -> Trained:
        """Train only the head on cached features, without a fit: solve it, or try several rates side by side."""
        context, phase, settings = self._context, self._phase, self._context.settings
        if cache is None:
            setting = "solver='lbfgs': solves the head" if phase.solves_head else "lr_trials: trains heads"
            instead = "solver=gradient" if phase.solves_head else "one lr instead of lr_trials"
            raise UserError(
                f"schedule.phases[{self._number}].{setting} on cached features, and this phase has no cache "
                f"({self._policy.why}). Remove the cause, for example raise cache.max_gb or free "
                f"disk space, or set {instead}."
            )
        if phase.solves_head:
            return solve_phase(
                classifier=context.classifier,
                phase=phase,
                cache=cache,
                data=context.data,
                loss=context.make.loss(phase),
                monitor=settings.monitor,
                trainer=context.quiet_trainer(),
                views=self._policy.views,
                offset=self._offset,
            )
        return train_trials(
            classifier=context.classifier,
            phase=phase,
            cache=cache,
            data=context.data,
            loss=context.make.loss(phase),
            monitor=settings.monitor,
            make_optimizer=context.make.optimizer_factory(phase),
            trainer=context.quiet_trainer(),
            seed=settings.seed,
            offset=self._offset,
            checkpoint=self._folder.trials,
            interruption=self._session.interruption,
        )

    def _fit(
        self, cache: ActivationCache | None, carried: OptimizerState | None
    ) -> tuple[Trained, OptimizerState | None, Validation | None]:
        """Fit the phase from its start or its last checkpoint, and load the weights that it passes on.

        Returns:
            What the fit came to, and the other fields of :class:`PhaseOutcome`.
        """
        module = self._module(cache, carried)
        checkpoint = read_checkpoint(self._folder.last) if os.path.lexists(self._folder.last) else None
        if checkpoint is not None:
            with errors_naming(self._folder.last):
                self._check_last(checkpoint, self._phase, averages=module.averages)
        optimizer_state: OptimizerState | None = None
        if checkpoint is not None and is_finished(checkpoint):
            module.take_results(checkpoint)
            steps = int(checkpoint["global_step"])
        else:
            processes = None if checkpoint is None else saved_processes(checkpoint)
            if checkpoint is not None:
                self._context.show(f"  continues after step {int(checkpoint['global_step']):,} of this phase")
            del checkpoint  # three times the size of the network
            steps, optimizer_state = self._run_trainer(module, processes)
        restore_chosen_epoch(self._context.classifier, self._phase, self._folder)
        best = module.progress.best_epoch
        trained = Trained(
            rows=tuple(module.rows),
            steps=steps,
            rates=self._phase.rates(),
            best_epoch=best,
            best=module.progress.history[best][0],
        )
        kept = best if self._phase.restore == "best" else len(module.rows) - 1
        validation = reusable_validation(
            module.validated,
            step=module.rows[kept].step - self._offset.steps,
            images=len(self._context.data.source.index.rows("val")),
        )
        return trained, optimizer_state, validation

    def _module(self, cache: ActivationCache | None, carried: OptimizerState | None) -> PhaseModule:
        context, settings = self._context, self._context.settings
        rows = context.data.source.index.rows("val")
        is_last, outputs = self._number + 1 == len(context.schedule), len(rows) * len(context.classifier.classes)
        return PhaseModule(
            classifier=context.classifier,
            phase=self._phase,
            optimizer=context.make.optimizer_factory(self._phase),
            loss=context.make.loss(self._phase),
            settings=FitSettings(
                monitor=settings.monitor,
                minimize=self._minimize,
                seed=settings.seed,
                number=self._number,
                offset=self._offset,
                compiled=settings.compiled,
                embedded_rows=sample_of(torch.from_numpy(rows)) if is_last and outputs <= MOST_KEPT else None,
            ),
            batches_per_epoch=context.data.batches_per_epoch(self._phase.batch_size),
            file_of=context.data.source.index.path,
            user_metrics=context.make.metrics,
            carried=carried,
            cached_stage=None if cache is None else cache.cached_stage,
        )

    def _run_trainer(self, module: PhaseModule, processes: int | None) -> tuple[int, OptimizerState]:
        """Fit; return the optimizer steps of the phase and the optimizer's state.

        Args:
            module: Module of the phase.
            processes: Number of processes that wrote the checkpoint; None if there is none.
        """
        trainer = self._session.fit_trainer(self._context, self._number)
        if processes not in (None, trainer.world_size):
            self._context.show(
                f"  started with {counted(processes, 'process')}, continuing with {trainer.world_size}: gradients are summed in "
                "a different order and each process draws its own dropout and mixup, so the result will not be bitwise identical"
            )
        self._session.prepare_trainer(self._context, trainer)
        with module.restoring(self._folder.last):
            trainer.fit(
                module,
                datamodule=self._context.data,
                ckpt_path=None if processes is None else str(self._folder.last),
                weights_only=True,
            )
        mark_running(self._context.loggers)
        trainer.strategy.barrier("phase end")
        return trainer.global_step, module.optimizer_state()

    def _check_last(
        self, checkpoint: Mapping[str, Any], phase: ResolvedPhase, *, averages: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Check that a checkpoint has the contents that the phase would write.

        Raises:
            ContentsError: Its contents differ.
        """
        classifier = self._context.classifier
        check_last(
            checkpoint,
            phase=phase.name,
            weights=checkpoint_tensors(classifier, phase),
            averages=averages,
            groups=phase_param_groups(classifier, phase),
            make_optimizer=self._context.make.optimizer_factory(phase),
        )

    def _delete_trials(self) -> None:
        """Delete the heads of a finished phase, which it no longer needs; a killed process may have left them."""
        self._folder.trials.unlink(missing_ok=True)

    def _write(self, result: PhaseResult) -> None:
        """Write the weights, then the result; from then on the phase counts as finished."""
        if is_rank_zero():
            save_weights(self._context.classifier, self._weights_after)
            write_phase_result(self._folder.result, result)
            self._delete_trials()
        self._context.show(f"  {result.in_words()}")

"""A run: its phases, then the test, the results and the bundle. An interrupted run continues where it stopped."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from finetune.atomic_files import remove_parts, sync_folders
from finetune.bundle import save_bundle
from finetune.checksums import keep_checksum, write_checked_json, write_checked_text
from finetune.distributed import is_rank_zero
from finetune.models.classifier import Classifier
from finetune.models.memory_format import memory_format_for
from finetune.plain import to_plain
from finetune.results import Growth, PhaseResult, Results
from finetune.training.calibrating import apply_thresholds, calibrate, with_probabilities
from finetune.training.eval_outputs import SplitEvaluation, Validation, save_outputs
from finetune.training.evaluation import evaluate, require_finite
from finetune.training.knowing import fit_curves, fit_unknown_images, rows_to_fit
from finetune.training.phase_runner import PhaseOutcome, PhaseRunner
from finetune.training.predictions import predictions_csv
from finetune.training.rank_monitor import RankMonitor
from finetune.training.run_context import RunContext, RunSession, run_session
from finetune.training.run_result import RunResult, run_results


@dataclass(frozen=True, kw_only=True)
class Run:
    """Trains a classifier through a schedule, tests it and writes its bundle and results.

    Args:
        context: Network, data, schedule, folder and settings, which the phases share.
        card: Function that writes the model card from the network and the results.
        growth: Function that measures old and new classes of a network that grew from another, from the network, its outputs and
            the file of the weights that training started from; it returns None for any other network.
        free_memory: Function called before each phase and before the test.
    """

    context: RunContext
    card: Callable[[Classifier, Results], str]
    growth: Callable[[Classifier, Mapping[str, SplitEvaluation], Path], Growth | None] = lambda *_: None
    free_memory: Callable[[], object] = gc.collect

    def execute(self) -> RunResult:
        """Train the phases that are left, then test the network and write the bundle.

        Raises:
            UserError: Files of the run do not fit its configuration.
            RunError: Training cannot continue.
            Interrupted: A signal stopped the run.
        """
        self._clean_up()
        self._choose_memory_format()
        with run_session(self.context) as session:
            with naming_dead_rank(session.rank_monitor):
                phases, validation = self._train(session)
                evaluated = self._evaluate(session, validation)
                require_finite(evaluated, self._final_weights(phases))
            session.interruption.where = "before its results were written"
            return self._write(phases, evaluated)

    def _clean_up(self) -> None:
        """Remove the partial files of a killed process, and flush what it renamed last to the disk."""
        if is_rank_zero():
            remove_parts(self.context.folder.path)
            sync_folders(self.context.folder.path)

    def _choose_memory_format(self) -> None:
        classifier = self.context.classifier
        classifier.to(memory_format=memory_format_for(classifier.input_spec))

    def _train(self, session: RunSession) -> tuple[tuple[PhaseResult, ...], Validation | None]:
        """Run the phases; return their results, and the last validation if it can be reused."""
        results: tuple[PhaseResult, ...] = ()
        outcome: PhaseOutcome | None = None
        for number in range(len(self.context.schedule)):
            self.free_memory()
            runner = PhaseRunner(self.context, session, number=number, before=results)
            outcome = runner.run(None if outcome is None else outcome.optimizer_state)
            results += (outcome.result,)
        return results, None if outcome is None else outcome.validation

    def _evaluate(self, session: RunSession, validation: Validation | None) -> dict[str, SplitEvaluation]:
        """Evaluate the final weights on the validation and the test images, and on some of the training images."""
        self.free_memory()
        session.reach("before the test finished")
        context, last = self.context, len(self.context.schedule) - 1
        return evaluate(
            phase=context.schedule[last],
            # validation images have already passed the frozen prefix of the last phase, if it has one
            make_cache=lambda: context.make_cache(last),
            validated=validation,
            classifier=context.classifier,
            data=context.data,
            trainer=context.quiet_trainer(),
            user_metrics=context.make.metrics,
            prepare=partial(session.prepare_trainer, context),
            train_rows=rows_to_fit(context.data.source.index) if self._tells_unknown else None,
        )

    def _final_weights(self, phases: tuple[PhaseResult, ...]) -> Path:
        """Return the file of the weights that the last phase passed on; its folder where it trained none of its own."""
        folder = self.context.phase_folder(len(phases) - 1)
        if phases[-1].restored == "start":
            return folder.start
        return folder.last if folder.last.is_file() else folder.path

    @property
    def _tells_unknown(self) -> bool:
        return self.context.settings.accept_known is not None and not self.context.classifier.multi_label

    def _write(self, phases: tuple[PhaseResult, ...], evaluated: Mapping[str, SplitEvaluation]) -> RunResult:
        """Write predictions, outputs, the bundle and, last, the results; from then on the run counts as finished."""
        context, folder = self.context, self.context.folder
        calibration, unknown, thresholds = None, None, None
        if context.settings.accept_known is not None:
            unknown = fit_unknown_images(context.classifier, evaluated, accept=context.settings.accept_known)
        evaluated = {split: evaluation for split, evaluation in evaluated.items() if split != "train"}
        if context.settings.calibrate:
            calibration, evaluated = calibrate(context.classifier, evaluated, user_metrics=context.make.metrics)
        if context.settings.fits_thresholds:
            thresholds, evaluated = apply_thresholds(context.classifier, evaluated, user_metrics=context.make.metrics)
        fit_curves(context.classifier, evaluated)
        results = run_results(
            classifier=context.classifier,
            data=context.data,
            phases=phases,
            metrics={split: evaluation.metrics for split, evaluation in evaluated.items()},
            facts=context.settings.facts,
            seed=context.settings.seed,
            calibration=calibration,
            unknown=unknown,
            thresholds=thresholds,
            growth=self.growth(context.classifier, evaluated, context.phase_folder(0).start),
        )
        if is_rank_zero():
            outputs = {split: with_probabilities(context.classifier, one.outputs) for split, one in evaluated.items()}
            test = outputs["test"]
            # embeddings of validation images have served
            outputs["val"] |= {name: outputs["val"][name][:0] for name in ("embedded_rows", "embeddings")}
            keep_checksum(folder.metrics)
            predictions = predictions_csv(
                context.data.source.index, test["rows"], test["probabilities"], context.classifier.thresholds
            )
            write_checked_text(folder.predictions, predictions)
            save_outputs(folder.evaluation, outputs)
            save_bundle(
                context.classifier,
                folder.bundle,
                metrics={"val": to_plain(results.val), "test": to_plain(results.test)},
                data=to_plain(results.data),
                training={
                    "seed": context.settings.seed,
                    "phases": [to_plain(phase) for phase in results.phases],
                    **to_plain(context.settings.facts),
                },
                card=self.card(context.classifier, results),
            )
            write_checked_json(folder.results, to_plain(results))
        return RunResult(run_dir=folder.path, bundle=folder.bundle, results=results)


@contextmanager
def naming_dead_rank(rank_monitor: RankMonitor) -> Iterator[None]:
    """Replace an error by its cause if another process of the run has died."""
    try:
        yield
    except Exception as error:
        cause = rank_monitor.cause_of(error)
        if cause is error:
            raise
        raise cause from error

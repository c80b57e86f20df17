"""Build the objects of a run from its configuration: :func:`assemble` builds all of them."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.build.classifier import Show, build_described_model, build_model, network_name
from finetune.build.data import build_data, build_source
from finetune.build.paths import check_paths
from finetune.build.phases import build_phases
from finetune.build.python_objects import PythonObjects, check_metrics, transform_of
from finetune.config.schema import Config
from finetune.errors import ConfigError

if TYPE_CHECKING:  # imported where they are used, so that a wrong path is reported before torch is loaded
    from finetune.data.audit import Audit
    from finetune.data.datamodule import ImageDataModule
    from finetune.data.image_source import Source
    from finetune.models.classifier import Classifier
    from finetune.phases import ResolvedPhase


log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunParts:
    """The objects from which a run, a plan or a learning-rate search starts."""

    source: "Source"
    classifier: "Classifier"
    data: "ImageDataModule"
    phases: "list[ResolvedPhase]"


def _report_data(source: "Source", show: Show) -> "Audit | None":
    """Report the audit in a few lines, and the decisions about the data; return the audit of a data set of files."""
    from finetune.data.audit import audit
    from finetune.data.audit_text import short

    audited = audit(source, look_alikes=False) if source.facts is not None else None
    for line in (*(short(audited) if audited is not None else []), *source.index.notes):
        show(line)
    return audited


def _phases(config: Config, classifier: "Classifier", objects: PythonObjects, show: Show) -> "list[ResolvedPhase]":
    """Return the phases; stages without the kind of parameters that a phase trains stay frozen in it, which is reported.

    Raises:
        ConfigError: The schedule does not fit the network, or no stage is left to a phase.
    """
    from finetune.training.freezing import without_empty_stages

    phases = []
    for phase in build_phases(config, stages=classifier.stages, network=network_name(config), objects=objects):
        phases.append(without_empty_stages(classifier, phase))
        if not phases[-1].train:
            raise ConfigError(
                [
                    f"schedule.phases[{len(phases) - 1}].train={list(phase.train)}: nothing is left to train. In "
                    f"{network_name(config)} they have no {phase.parameters} parameters. Name other stages, or set "
                    "parameters=all."
                ]
            )
        if empty := [stage for stage in phase.train if stage not in phases[-1].train]:
            has = "has" if len(empty) == 1 else "have"
            show(
                f"phase {phase.name}: {', '.join(empty)} {has} no {phase.parameters} parameters and "
                f"{'stays' if len(empty) == 1 else 'stay'} frozen"
            )
    return phases


def assemble(
    config: Config,
    show: Show = lambda line: None,
    description: Mapping[str, Any] | None = None,
    worker_init: Callable[[int], None] | None = None,
    *,
    trusted: bool = False,
    objects: PythonObjects = PythonObjects(),
) -> RunParts:
    """Build source, network, data module and schedule of a configuration.

    Args:
        config: Checked configuration.
        show: Function that shows a line to the user.
        description: Description of the network, if its weights will be loaded from a run, so that nothing is downloaded;
            None builds the network from the configuration.
        worker_init: Function called in each loader process with its number; None for none.
        trusted: Whether the user typed the configuration, or trusts its run; otherwise no user-supplied class is built.
        objects: Objects from Python that take the place of settings.

    Raises:
        UserError: Parts of the configuration do not fit together, or objects do not fit the configuration.
    """
    source = objects.source
    if source is None:
        source = build_source(config, listing=check_paths(config), download=trusted)
    if description is None:
        from finetune.build.input_lines import input_lines, unused_input

        audited = _report_data(source, show)
        classifier = build_model(config, source, show, trusted=trusted, objects=objects)
        for line in input_lines(classifier, audited.sizes) if audited is not None else []:
            show(line)
        for line in unused_input(config.input, classifier.input_spec):
            log.warning("%s", line)
    else:
        classifier = build_described_model(config, description, trusted=trusted, objects=objects)
    phases = _phases(config, classifier, objects, show)
    data = build_data(config, source, classifier, worker_init, trusted=trusted)
    check_metrics(objects.metrics, num_classes=len(source.index.classes), multi_label=source.index.multi_label)
    if objects.transform is not None:
        data.transform = transform_of(objects.transform, classifier.input_spec)
    return RunParts(source=source, classifier=classifier, data=data, phases=phases)

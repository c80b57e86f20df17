"""Staged transfer learning for images.

>>> import finetune
>>> finetune.InputSpec(channels=1).size
(224, 224)
"""

import importlib
from typing import TYPE_CHECKING, Any

from finetune.attribute_names import CALLS
from finetune.errors import ConfigError, RunError, UserError, did_you_mean
from finetune.input_spec import InputSpec

if TYPE_CHECKING:
    from finetune.api.figures import plot_confusion, show_batch, top_losses
    from finetune.api.fit import fit, resume
    from finetune.api.models import embed, load, pick, predict, save_bundle, search
    from finetune.api.phase import Phase
    from finetune.api.schedule import Schedule
    from finetune.api.steps import Export, Plan, audit, evaluate, export, ladder, plan
    from finetune.embeddings.embeddings import Embeddings
    from finetune.inference.trained_model import TrainedModel
    from finetune.ladder_result import LadderResult
    from finetune.models.backbone import Backbone
    from finetune.models.build import build_backbone
    from finetune.models.classifier import Classifier, build_classifier
    from finetune.table import Table
    from finetune.training.fine_tuner import FineTuner
    from finetune.training.run_result import RunResult

# modules that take seconds to import are imported on first use
_LATER = {
    "fit": "finetune.api.fit",
    "resume": "finetune.api.fit",
    "load": "finetune.api.models",
    "save_bundle": "finetune.api.models",
    "embed": "finetune.api.models",
    "search": "finetune.api.models",
    "Embeddings": "finetune.embeddings.embeddings",
    "Backbone": "finetune.models.backbone",
    "build_backbone": "finetune.api.networks",
    "Classifier": "finetune.models.classifier",
    "build_classifier": "finetune.api.networks",
    "FineTuner": "finetune.training.fine_tuner",
    "RunResult": "finetune.training.run_result",
    "Table": "finetune.table",
    "TrainedModel": "finetune.inference.trained_model",
    "predict": "finetune.api.models",
    "pick": "finetune.api.models",
    "show_batch": "finetune.api.figures",
    "plot_confusion": "finetune.api.figures",
    "top_losses": "finetune.api.figures",
    "Phase": "finetune.api.phase",
    "Schedule": "finetune.api.schedule",
    "plan": "finetune.api.steps",
    "audit": "finetune.api.steps",
    "evaluate": "finetune.api.steps",
    "export": "finetune.api.steps",
    "ladder": "finetune.api.steps",
    "Plan": "finetune.api.steps",
    "Export": "finetune.api.steps",
    "LadderResult": "finetune.ladder_result",
}

__all__ = [
    "Backbone",
    "Classifier",
    "ConfigError",
    "Embeddings",
    "Export",
    "FineTuner",
    "InputSpec",
    "LadderResult",
    "Phase",
    "Plan",
    "RunError",
    "RunResult",
    "Schedule",
    "Table",
    "TrainedModel",
    "UserError",
    "audit",
    "build_backbone",
    "build_classifier",
    "embed",
    "evaluate",
    "export",
    "fit",
    "ladder",
    "load",
    "pick",
    "plan",
    "plot_confusion",
    "predict",
    "resume",
    "save_bundle",
    "search",
    "show_batch",
    "top_losses",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from finetune.versions import versions

        return versions()["finetune"]
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    if name in CALLS:
        raise AttributeError(f"finetune.{name}: no such function. Use {CALLS[name]}.")
    raise AttributeError(f"module 'finetune' has no attribute {name!r}.{did_you_mean(name, __all__)}")

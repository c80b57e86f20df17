"""What Python's functions take as a trained model: a folder, the result of a fit, or a model in memory."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import UserError, type_in_words
from finetune.run_names import CONFIG

if TYPE_CHECKING:
    from torch import nn

    from finetune.inference.trained_model import TrainedModel
    from finetune.models.classifier import Classifier
    from finetune.training.run_result import RunResult

    Run = str | Path | RunResult | TrainedModel


@dataclass(frozen=True, kw_only=True)
class ModelArgument:
    """A trained model as a caller named it.

    Args:
        folder: Run or bundle folder that the model comes from; None for a model that is not saved in one.
        given: The model, if the caller has it in memory; None reads it from the folder.
        modules: Modules of the caller's own classes, by part.
        trust: Whether to build the classes that the folder names.
    """

    folder: str | None = None
    given: "Classifier | None" = None
    modules: "Mapping[str, nn.Module]" = field(default_factory=dict)
    trust: bool = False

    @property
    def records_data(self) -> bool:
        """Tell whether its folder is a run, which records where its data is; a bundle does not."""
        return self.folder is not None and os.path.lexists(Path(self.folder).expanduser() / CONFIG)

    def require_folder(self, name: str) -> str:
        """Return the folder.

        Raises:
            UserError: The model is not saved in a folder.
        """
        if self.folder is None:
            raise UserError(
                f"{name}: this model is not saved in a folder. Save it, and give the folder: "
                "finetune.save_bundle(model, 'bundle')."
            )
        return self.folder

    def load(self) -> "Classifier":
        """Return the model in memory, or load it.

        Raises:
            UserError: There is no complete bundle, or it needs classes of the caller's own that were not given.
        """
        if self.given is not None:
            return self.given
        from finetune.bundle import load_bundle
        from finetune.inference.decode_options import decode_options_of
        from finetune.inference.trained_model import trained_model
        from finetune.runners.bundle_modules import modules_of

        folder = self.require_folder("model")
        modules = {**modules_of(folder, trust=self.trust, given=self.modules), **self.modules}
        return trained_model(
            load_bundle(folder, modules=modules), decode_options=decode_options_of(folder), folder=folder
        )

    def load_saved(self) -> "Classifier":
        """Load the model from its folder, though the caller has it in memory.

        Raises:
            UserError: The model in memory has been trained since it was loaded, or see :meth:`load`.
        """
        import copy

        import torch

        from finetune.bundle import load_bundle
        from finetune.models.user_modules import user_classes
        from finetune.runners.bundle_modules import modules_of

        folder = self.require_folder("run")
        if self.given is None:
            return load_bundle(
                folder, modules={**modules_of(folder, trust=self.trust, given=self.modules), **self.modules}
            )
        parts = {"head": self.given.head, "backbone": self.given.backbone.net}
        own = {part: copy.deepcopy(parts[part]).cpu() for part in user_classes(self.given.describe())}
        model, now = load_bundle(folder, modules=own), self.given.state_dict()
        saved = model.state_dict()
        if set(saved) != set(now) or not all(torch.equal(now[key].cpu(), value) for key, value in saved.items()):
            raise UserError(
                f"run: this model's weights are no longer those in {folder}. Save it, and give the copy: "
                "finetune.save_bundle(model, 'bundle')."
            )
        return model


def model_argument(
    value: Any, name: str = "run", *, modules: "Mapping[str, nn.Module] | None" = None, trust: bool = False
) -> ModelArgument:
    """Return the model that an argument names: a run or bundle folder, the result of a fit, or a model in memory.

    Args:
        value: The argument.
        name: Its name, for messages.
        modules: Modules of the caller's own classes, by part.
        trust: Whether to build the classes that the folder names.

    Raises:
        UserError: It names none.
    """
    kept = dict(modules or {})
    if isinstance(value, (str, Path)):
        return ModelArgument(folder=str(value), modules=kept, trust=trust)

    from finetune.inference.trained_model import TrainedModel
    from finetune.models.classifier import Classifier
    from finetune.training.run_result import RunResult

    if isinstance(value, RunResult):
        return ModelArgument(folder=str(value.run_dir), modules=kept, trust=trust)
    if isinstance(value, TrainedModel):
        # a model in memory outlives the folder that it was read from
        there = value.folder is not None and os.path.exists(Path(value.folder).expanduser())
        return ModelArgument(folder=value.folder if there else None, given=value)
    if isinstance(value, Classifier):
        return ModelArgument(given=value)
    raise UserError(
        f"{name}: must be a run. It is {type_in_words(value)}. Give its folder, what finetune.fit returned, or a model from "
        "finetune.load."
    )


def run_folder(value: Any, name: str = "run") -> Path:
    """Return the folder of the run that an argument names.

    Raises:
        UserError: It names none.
    """
    return Path(model_argument(value, name).require_folder(name)).expanduser()

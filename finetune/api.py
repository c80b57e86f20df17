"""The same path from Python: what the commands do, as functions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune.models.classifier import Classifier
    from finetune.training.run import RunResult


def fit(
    *,
    data: str | Path,
    backbone: str = "resnet18",
    schedule: str = "gradual",
    weights: str | Path | None = None,
    run_dir: str | Path | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> "RunResult":
    """Train, test and write the bundle, as ``finetune train`` does.

    Args:
        data: A folder of images (``DIR/<class>/*`` or ``DIR/{train,val,test}/<class>/*``), or ``"digits"``.
        backbone: A choice of ``conf/backbone``.
        schedule: A choice of ``conf/schedule``.
        weights: Where the backbone's weights come from; None takes the configuration's.
        run_dir: A new folder; None makes one under ``runs/``.
        seed: Of all randomness.
        overrides: Whatever else the command line takes, for instance ``["schedule.phases.1.epochs=5"]``.

    Returns:
        ``run_dir``, ``bundle`` and ``results`` of the run.

    Raises:
        UserError: The configuration, the data or the weights are not right.
        RunError: Training could not go on.
    """
    from finetune.commands.train import train
    from finetune.config import compose, quoted

    words = ["data=digits"] if str(data) == "digits" else ["data=folder", f"data.root={quoted(data)}"]
    words += [f"backbone={backbone}", f"schedule={schedule}", f"seed={seed}"]
    words += [] if weights is None else [f"backbone.weights={quoted(weights)}"]
    words += [] if run_dir is None else [f"run_dir={quoted(run_dir)}"]
    return train(compose([*words, *overrides]))


def load(path: str | Path) -> "Classifier":
    """A trained model from a bundle folder or a run folder.

    Returns:
        A module in evaluation mode: ``uint8 (B, C, H, W)`` to logits ``(B, K)``, with ``classes`` and ``input_spec``.

    Raises:
        UserError: There is no whole bundle.
    """
    from finetune.bundle import load_bundle

    return load_bundle(path)

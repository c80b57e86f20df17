"""Build user-supplied modules that a bundle names, for a user who trusts it."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.config.trust import build_module
from finetune.errors import UserError

if TYPE_CHECKING:
    from torch import nn


def modules_of(run: str | Path, *, trust: bool, given: Collection[str] = ()) -> "dict[str, nn.Module]":
    """Build the user-supplied modules that a run or bundle needs, from the nodes that a configuration named.

    Args:
        run: Run folder or bundle folder.
        trust: Whether the user typed ``--trust``.
        given: Parts for which the user already has modules.

    Returns:
        Modules by part; empty for a model that consists of finetune's own parts.

    Raises:
        UserError: There is no complete bundle, it needs classes but is not trusted, or a class cannot be built.
    """
    from finetune.bundle import find_bundle, missing_classes_message, read_model_json
    from finetune.models.user_modules import user_classes, user_targets

    model = read_model_json(find_bundle(run))["model"]
    needed = {part: name for part, name in user_classes(model).items() if part not in given}
    targets = user_targets(model)
    if needed and (not trust or set(needed) - set(targets)):
        raise UserError(missing_classes_message(str(run), model, needed))
    return {part: build_module(targets[part], where=part, trusted=trust) for part in needed}

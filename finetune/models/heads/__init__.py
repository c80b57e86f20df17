"""Classifier heads by name.

A new one is a file like those beside this, and a line in :data:`HEADS`; its settings are fields of ``HeadConfig`` in
``config/schema.py``, and a preset is a file in ``conf/head/``.
"""

import torch

from finetune.errors import UserError, did_you_mean
from finetune.models.heads.cosine import COSINE
from finetune.models.heads.kind import Head, HeadKind
from finetune.models.heads.linear import LINEAR
from finetune.models.heads.mlp import MLP

HEADS: dict[str, HeadKind] = {"linear": LINEAR, "mlp": MLP, "cosine": COSINE}


def build_head(
    *, name: str, num_features: int, num_classes: int, drop_rate: float = 0.0, seed: int = 0, **specific: float
) -> Head:
    """Build a head with seeded weights; leave the global random state alone.

    Args:
        name: Kind of head, a key of :data:`HEADS`.
        num_features: Number of features ``D`` of the backbone.
        num_classes: Number of classes ``K``, at least 2.
        drop_rate: Probability of dropping a feature in training, 0 to below 1.
        seed: Seed of the weights.
        specific: Settings of its kind; those of other kinds have no effect. ``hidden`` (``mlp``): width of the hidden layer, 512.
            ``scale`` (``cosine``): initial value of the learned scale, 16.

    Raises:
        UserError: The name is unknown or a value is out of range.
        TypeError: No kind of head has a setting of that name.

    >>> build_head(name="linear", num_features=8, num_classes=3)(torch.zeros(2, 8)).shape
    torch.Size([2, 3])
    """
    if name not in HEADS:
        raise UserError(f"head.name={name!r}: not a head. Heads: {', '.join(HEADS)}.{did_you_mean(name, HEADS)}")
    if num_classes < 2:
        raise UserError(f"head.num_classes={num_classes}: a classifier needs at least two classes.")
    if not 0 <= drop_rate < 1:
        raise UserError(f"head.drop_rate={drop_rate}: must be at least 0 and below 1.")
    known = {key for kind in HEADS.values() for key in kind.specific}
    if unknown := sorted(set(specific) - known):
        raise TypeError(f"{unknown[0]!r} is not a setting of a head. Settings: {', '.join(sorted(known))}.")
    for kind in HEADS.values():
        kind.check(specific)
    chosen = HEADS[name]
    settings = {key: specific.get(key, setting.default) for key, setting in chosen.specific.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return chosen.module(num_features=num_features, num_classes=num_classes, drop_rate=drop_rate, **settings)


def sizes_of_heads() -> tuple[str, ...]:
    """Return the settings, of any kind of head, that are a number of units."""
    return tuple(key for kind in HEADS.values() for key, setting in kind.specific.items() if setting.is_size)

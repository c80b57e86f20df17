"""The report's section on answers that can be trusted."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from finetune.confidence.conformal import conformal_curve
from finetune.confidence.selective import risk_coverage
from finetune.report.trust import trust_section

CLASSES = ("a", "b", "c")


def draw(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    shares = random.dirichlet([0.3] * 3, images).astype(np.float32)
    return shares, (shares.cumsum(1) > random.random((images, 1))).argmax(1)


def outputs(images: int, embedded: np.ndarray) -> dict[str, Any]:
    shares, targets = draw(images, 1)
    rows = np.arange(images) * 3
    # the only feature is the score
    features = np.linspace(0, 1.25, images, dtype=np.float32)[embedded, None]
    return {
        "rows": rows,
        "targets": targets,
        "probabilities": shares,
        "embedded_rows": rows[embedded],
        "embeddings": features,
    }


def model(*, tells_unknown: bool) -> Any:
    shares, targets = draw(400, 0)
    return SimpleNamespace(
        classes=CLASSES,
        selective=risk_coverage(shares.max(1), shares.argmax(1) == targets),
        conformal=conformal_curve(shares, targets),
        unknown=(lambda features: features[:, 0]) if tells_unknown else None,
    )


def test_its_figures_are_those_of_the_test_images() -> None:
    test = outputs(500, np.arange(0, 500, 2))
    section = trust_section(model(tells_unknown=False), test)
    assert section is not None
    assert section.images == 500
    assert section.unknown is None
    assert section.places == []
    confidence, right = test["probabilities"].max(1), test["probabilities"].argmax(1) == test["targets"]
    assert section.promises[-1].wanted == section.best
    for promise in section.promises:
        accepted = confidence >= promise.confidence
        assert promise.share == pytest.approx(accepted.mean())
        assert promise.right == pytest.approx(right[accepted].mean())
        assert promise.right > promise.wanted - 0.05
    for one in section.sets:
        assert one.wanted - 0.04 < one.covered <= 1
        assert 1 <= one.classes <= 3
    assert [one.classes for one in section.sets] == sorted(one.classes for one in section.sets)
    assert str(section.chart).startswith("<svg")


def test_unknown_images_are_counted_by_class_and_the_most_unlike_shown_first() -> None:
    embedded = np.arange(0, 500, 2)
    test = outputs(500, embedded)
    section = trust_section(model(tells_unknown=True), test)
    assert section is not None
    unlike = [at for at in embedded if torch.linspace(0, 1.25, 500)[at] > 1]
    assert (section.images, section.unknown) == (250, len(unlike))
    assert list(section.places) == unlike[::-1][:12]
    assert sum(row.unknown for row in section.classes) == len(unlike)
    # none of them is accepted
    assert all(promise.share <= 0.8 for promise in section.promises)


def test_a_model_without_a_curve_has_no_section() -> None:
    plain = model(tells_unknown=False)
    plain.selective = None
    assert trust_section(plain, outputs(20, np.arange(20))) is None

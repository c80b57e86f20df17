"""Calibration against torchmetrics, and the temperature against logits of a known scale."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from finetune.confidence.temperature import (
    answers,
    assess,
    fit_temperature,
    mean_loss,
    reliability,
    tempered,
    why_not_tempered,
)


def drawn(scale: float, *, images: int = 4000, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are ``scale`` times the calibrated ones, and classes drawn from the calibrated ones."""
    generator = torch.Generator().manual_seed(0)
    calibrated = torch.randn(images, classes, generator=generator) * 2
    targets = torch.multinomial(calibrated.softmax(1), 1, generator=generator)[:, 0]
    return scale * calibrated, targets


def test_the_calibration_error_is_that_of_torchmetrics() -> None:
    logits, targets = drawn(2.0, images=500)
    shares = logits.softmax(1)
    ours = reliability(*answers(shares.numpy(), targets.numpy())).ece
    theirs = multiclass_calibration_error(shares, targets, num_classes=5, n_bins=15, norm="l1")
    assert ours == pytest.approx(float(theirs), abs=1e-6)
    several = (logits > 1.0).long()
    ours = reliability(*answers(logits.sigmoid().numpy(), several.numpy())).ece
    theirs = binary_calibration_error(logits.sigmoid().flatten(), several.flatten(), n_bins=15, norm="l1")
    assert ours == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_the_scale_of_the_logits(scale: float) -> None:
    logits, targets = drawn(scale)
    assert fit_temperature(logits.softmax(1).numpy(), targets.numpy()) == pytest.approx(scale, rel=0.05)
    several = torch.bernoulli((logits / scale).sigmoid(), generator=torch.Generator().manual_seed(1)).long()
    assert fit_temperature(logits.sigmoid().numpy(), several.numpy()) == pytest.approx(scale, rel=0.05)


def test_tempered_probabilities_are_those_of_divided_logits_and_keep_every_answer() -> None:
    logits, targets = drawn(3.0, images=200)
    changed = tempered(logits.softmax(1).numpy(), 3.0, multi_label=False)
    np.testing.assert_allclose(changed, (logits / 3.0).softmax(1).numpy(), atol=1e-5)
    assert (changed.argmax(1) == logits.argmax(1).numpy()).all()
    # near 1, single precision has few digits left to take a logarithm of
    changed_several = tempered(logits.sigmoid().numpy(), 3.0, multi_label=True)
    np.testing.assert_allclose(changed_several, (logits / 3.0).sigmoid().numpy(), atol=3e-3)
    expected = torch.nn.functional.cross_entropy(logits / 3.0, targets)
    assert mean_loss(changed, targets.numpy()) == pytest.approx(float(expected), rel=1e-4)


def test_many_images_are_assessed_in_blocks_to_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = drawn(2.0, images=300)
    shares = logits.softmax(1).numpy()
    whole = assess(shares, targets.numpy(), 2.0)
    monkeypatch.setattr("finetune.confidence.temperature._AT_ONCE", 5 * 37)
    blocks = assess(shares, targets.numpy(), 2.0)
    assert blocks[1] == pytest.approx(whole[1])
    assert blocks[0].ece == pytest.approx(whole[0].ece)
    assert blocks[0].counts.tolist() == whole[0].counts.tolist()
    assert whole[1] == pytest.approx(float(torch.nn.functional.cross_entropy(logits / 2.0, targets)), rel=1e-4)


def test_a_probability_of_zero_for_the_true_class_is_no_end() -> None:
    shares = np.array([[1.0, 0.0], [0.9, 0.1], [0.2, 0.8]], np.float32)
    targets = np.array([1, 0, 1])
    assert np.isfinite(mean_loss(shares, targets))
    assert 0.05 <= fit_temperature(shares, targets) <= 20


def test_no_temperature_is_supported_by_faultless_answers_or_by_a_gain_that_chance_brings() -> None:
    generator = torch.Generator().manual_seed(0)
    sure = torch.randn(200, 4, generator=generator).mul(3).softmax(1)
    faultless = sure.argmax(1).numpy()
    fitted = fit_temperature(sure.numpy(), faultless)
    assert fitted < 0.1
    assert why_not_tempered(sure.numpy(), faultless, fitted).startswith(
        "every answer on the validation images is correct"
    )
    # labels drawn from the probabilities: nothing to mend
    drawn = torch.multinomial(sure, 1, generator=generator)[:, 0].numpy()
    fitted = fit_temperature(sure.numpy(), drawn)
    assert "no better than by chance" in why_not_tempered(sure.numpy(), drawn, fitted)


def test_a_network_that_is_far_too_sure_gets_its_temperature_with_one_label_and_with_several() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 4, generator=generator) * 2
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0].numpy()
    too_sure = (logits * 3).softmax(1).numpy()
    assert why_not_tempered(too_sure, targets, fit_temperature(too_sure, targets)) == ""
    several = torch.bernoulli(logits.sigmoid(), generator=generator).long().numpy()
    too_sure = (logits * 3).sigmoid().numpy()
    assert why_not_tempered(too_sure, several, fit_temperature(too_sure, several)) == ""

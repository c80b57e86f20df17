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


def test_a_few_images_of_many_labels_support_none() -> None:
    probabilities = np.full((1, 40), 0.9, np.float32)
    fitted = fit_temperature(probabilities, np.zeros((1, 40), np.int64))
    assert (fitted.temperature, fitted.interval) == (1.0, None)
    assert fitted.why_not == "1 validation image of at least 10 that it takes"


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_the_scale_of_the_logits(scale: float) -> None:
    logits, targets = drawn(scale)
    assert fit_temperature(logits.softmax(1).numpy(), targets.numpy()).temperature == pytest.approx(scale, rel=0.05)
    several = torch.bernoulli((logits / scale).sigmoid(), generator=torch.Generator().manual_seed(1)).long()
    assert fit_temperature(logits.sigmoid().numpy(), several.numpy()).temperature == pytest.approx(scale, rel=0.05)


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
    assert fit_temperature(shares, targets).temperature == 1


def test_no_temperature_is_supported_by_faultless_answers_or_by_a_gain_that_chance_brings() -> None:
    generator = torch.Generator().manual_seed(0)
    sure = torch.randn(200, 4, generator=generator).mul(3).softmax(1)
    fit = fit_temperature(sure.numpy(), sure.argmax(1).numpy())
    assert (fit.temperature, fit.interval) == (1.0, None)
    assert fit.why_not == (
        "none of 200 answers on the validation images is wrong, and it takes 10 to tell how confident the network should be"
    )
    # labels drawn from the probabilities: nothing to mend
    labels = torch.multinomial(sure, 1, generator=generator)[:, 0].numpy()
    fit = fit_temperature(sure.numpy(), labels)
    assert (fit.temperature, fit.why_not) == (1.0, "on 200 validation images one fits no better than by chance")
    nine = np.where(np.arange(200) < 9, (sure.argmax(1).numpy() + 1) % 4, sure.argmax(1).numpy())
    assert fit_temperature(sure.numpy(), nine).why_not.startswith("9 of 200 answers on the validation images are wrong")
    # answers that are as often wrong as chance: the best temperature is without end
    fit = fit_temperature(np.array([[0.9, 0.1]] * 40, np.float32), np.arange(40) % 2)
    assert (fit.temperature, fit.why_not) == (1.0, "on 40 validation images no temperature fits best")


@pytest.mark.parametrize("several", [False, True])
def test_a_network_that_is_far_too_sure_gets_its_temperature_with_an_interval(several: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 4, generator=generator) * 2
    if several:
        targets, shares = torch.bernoulli(logits.sigmoid(), generator=generator).long(), (logits * 3).sigmoid()
    else:
        targets, shares = (
            torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0],
            (logits * 3).softmax(1),
        )
    fit = fit_temperature(shares.double().numpy(), targets.numpy())
    assert fit.why_not == ""
    assert fit.interval is not None
    low, high = fit.interval
    assert 1 < low < fit.temperature < high
    assert low < 3 < high
    # at its ends the likelihood is what 95 % of chance draws stay within
    best, end = (
        mean_loss(tempered(shares.double().numpy(), at, multi_label=several), targets.numpy())
        for at in (fit.temperature, low)
    )
    assert 2 * targets.numel() * (end - best) == pytest.approx(3.84, rel=0.02)


def test_the_interval_holds_the_true_temperature_as_often_as_it_says() -> None:
    held = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(150, 3, generator=generator) * 2
        targets = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
        fit = fit_temperature((logits * 2).double().softmax(1).numpy(), targets.numpy())
        held.append(fit.interval is not None and fit.interval[0] <= 2 <= fit.interval[1])
    # 95 % less three standard errors
    assert np.mean(held) > 0.90

"""The temperature of a run: fitted on validation, kept in the bundle, and in what the model answers afterwards."""

import json
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multiclass_calibration_error

import finetune
from finetune.bundle import json_sha256, load_bundle, save_bundle
from finetune.data.transforms import eval_view
from finetune.errors import UserError
from finetune.metrics import metrics_of_outputs
from finetune.models.batch_norm_folding import fast_features
from finetune.training.calibrating import calibrate, with_probabilities
from finetune.training.eval_outputs import SplitEvaluation
from finetune.training.fine_tuner import FineTuner
from finetune.training.quiet_lightning import quiet_lightning
from tests.export.trained import settled_classifier, tell_unknown

CLASSES = ("a", "b", "c", "d")


def evaluation(seed: int, *, factor: float, several: bool = False, images: int = 600) -> SplitEvaluation:
    """Outputs of a network whose logits are ``factor`` times the calibrated ones."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, len(CLASSES), generator=generator) * 2
    if several:
        targets = torch.bernoulli(logits.sigmoid(), generator=generator).long()
    else:
        targets = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    outputs = {"rows": torch.arange(images), "targets": targets, "logits": logits * factor}
    return SplitEvaluation(metrics=metrics_of_outputs(outputs["logits"], targets), outputs=outputs)


@pytest.mark.parametrize("several", [False, True])
def test_the_metrics_of_a_run_are_those_of_the_calibrated_network(several: bool) -> None:
    model = settled_classifier(name="test_resnet", classes=CLASSES)
    model.multi_label = several
    evaluated = {split: evaluation(seed, factor=3.0, several=several) for seed, split in enumerate(("val", "test"))}
    fitted, after = calibrate(model, evaluated)
    assert model.temperature == fitted.temperature == pytest.approx(3.0, rel=0.15)
    assert fitted.images == 600
    for split in ("val", "test"):
        before, now = evaluated[split].metrics, after[split].metrics
        assert fitted.before[f"{split}/ece"] == before.ece
        assert fitted.before[f"{split}/loss"] == before.loss
        assert now.ece < before.ece / 2
        assert now.loss < before.loss
        # the answers stay
        assert (now.acc, now.f1_macro, now.recall, now.confusion) == (
            before.acc,
            before.f1_macro,
            before.recall,
            before.confusion,
        )
    outputs = with_probabilities(model, after["test"].outputs)
    assert set(outputs) == {"rows", "targets", "probabilities"}
    if not several:
        theirs = multiclass_calibration_error(
            outputs["probabilities"], outputs["targets"], num_classes=4, n_bins=15, norm="l1"
        )
        assert after["test"].metrics.ece == pytest.approx(float(theirs), abs=1e-6)


def test_a_network_that_needs_no_temperature_keeps_its_metrics_to_the_bit() -> None:
    model = settled_classifier(name="test_resnet", classes=CLASSES)
    evaluated = {split: evaluation(seed, factor=1.0) for seed, split in enumerate(("val", "test"))}
    fitted, after = calibrate(model, evaluated)
    assert (model.temperature, fitted.temperature, fitted.interval) == (1.0, 1.0, None)
    assert fitted.why_not == "on 600 validation images one fits no better than by chance"
    assert after == evaluated


@pytest.fixture
def calibrated(tmp_path: Path) -> Path:
    """A bundle of a model that divides its logits by 2.5."""
    model = settled_classifier(name="test_resnet", classes=CLASSES)
    model.temperature = 2.5
    return save_bundle(tell_unknown(model), tmp_path / "model")


def test_a_bundle_keeps_the_temperature_and_every_way_to_ask_it_answers_alike(calibrated: Path, tmp_path: Path) -> None:
    plain = settled_classifier(name="test_resnet", classes=CLASSES)
    model = load_bundle(calibrated)
    assert model.temperature == 2.5
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = plain(pixels)
        torch.testing.assert_close(model(pixels), logits / 2.5)
        torch.testing.assert_close(model.logits(fast_features(model)(pixels)), logits / 2.5, rtol=1e-3, atol=1e-4)
        # those of training
        torch.testing.assert_close(model.head(model.embed(pixels)), logits)
        view = eval_view(plain.input_spec)(pixels[0])
        expected = (plain(view[None]) / 2.5).softmax(1)
    Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(tmp_path / "one.png")
    table = finetune.load(calibrated).predict([tmp_path / "one.png"])
    assert list(table["probability"]) == pytest.approx([float(expected[0].max())], abs=1e-5)


@pytest.mark.parametrize("value", [0.0, -1.0, 1e9, "2", None, True, [2.5]])
def test_a_temperature_that_is_none_is_refused(value: object, calibrated: Path) -> None:
    path = calibrated / "model.json"
    values = json.loads(path.read_text())
    values["calibration"] = {"temperature": value}
    path.write_text(json.dumps(values | {"sha256": json_sha256(values)}))
    with pytest.raises(
        UserError, match=r"model\.json: damaged\. calibration\.temperature: must be a number from 0\.05 to 20"
    ):
        load_bundle(calibrated)


def test_training_on_starts_without_the_temperature(calibrated: Path) -> None:
    model = load_bundle(calibrated)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8))
    batches = DataLoader([(image, number % 4) for number, image in enumerate(images)], batch_size=4)  # type: ignore[arg-type]
    with quiet_lightning():
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.fit(FineTuner(model, train=["head"]), batches, batches)
    assert (model.temperature, model.unknown, model.selective, model.conformal) == (1.0, None, None, None)

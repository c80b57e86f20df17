"""What a run fits to tell unknown images and to abstain: kept in the bundle, the same in every runtime."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import finetune
from finetune.bundle import file_sha256, json_sha256, load_bundle, save_bundle
from finetune.errors import UserError
from finetune.inference.onnx_engine import OnnxEngine
from finetune.inference.torch_engine import TorchEngine
from finetune.metrics import metrics_of_outputs
from finetune.models.classifier import Classifier
from finetune.training.eval_outputs import SplitEvaluation
from finetune.training.knowing import fit_curves, fit_unknown_images
from tests.export.pictures import CLASSES, picture
from tests.export.trained import settled_classifier, tell_unknown


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = settled_classifier(name="resnet10t")
    model.temperature = 1.5
    return save_bundle(tell_unknown(model), tmp_path_factory.mktemp("knowing") / "model")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Pictures of the classes, and ones of plain noise and of one colour."""
    folder, generator = tmp_path_factory.mktemp("files"), torch.Generator().manual_seed(5)
    for number in range(20):
        pixels = picture(number % len(CLASSES), channels=3, size=(40, 36), generator=generator)
        if number >= 15:
            pixels = torch.randint(0, 256, (3, 40, 36), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{number:02}.png")
    return sorted(str(path) for path in folder.iterdir())


@pytest.mark.usefixtures("resized_in_two_parts")
def test_every_runtime_gives_the_same_score_and_decision(bundle: Path, files: list[str]) -> None:
    engine = TorchEngine(bundle)
    ours = engine.classify([engine.read(file) for file in files])
    assert ours.unknown_N is not None
    known = ours.unknown_N <= 1
    assert 0 < known.sum() < len(files)
    table = finetune.predict(bundle, files, unknown=True, least=0.5, sets=0.98)
    np.testing.assert_allclose(table["unknown_score"], ours.unknown_N, rtol=1e-4)
    assert list(table["known"]) == known.tolist()
    expected = np.where(known, table["nearest"], "unknown").tolist()
    assert list(table["predicted"]) == expected
    assert list(table["accepted"]) == ((ours.probabilities_NK.max(1) >= 0.5) & known).tolist()
    assert engine.conformal is not None
    least = engine.conformal.threshold(0.98)
    order = np.argsort(-ours.probabilities_NK, kind="stable")
    sets = [
        ";".join(engine.classes[at] for rank, at in enumerate(ranked) if rank == 0 or row[at] >= least)
        for ranked, row in zip(order, ours.probabilities_NK, strict=True)
    ]
    assert list(table["set"]) == sets
    assert len({text.count(";") for text in sets}) > 1, "sets of one size would prove little"
    assert finetune.export(bundle, "onnx", images=files, check=8)
    onnx = OnnxEngine(bundle / "exports" / "model.onnx")
    theirs = onnx.classify([onnx.read(file) for file in files])
    assert onnx.tells_unknown
    assert onnx.selective == engine.selective
    assert onnx.conformal == engine.conformal
    assert theirs.unknown_N is not None
    np.testing.assert_allclose(theirs.unknown_N, ours.unknown_N, rtol=1e-4)
    assert ((theirs.unknown_N <= 1) == known).all()


def test_a_bundle_without_what_was_fitted_answers_as_before(bundle: Path, files: list[str], tmp_path: Path) -> None:
    model = load_bundle(bundle)
    model.unfit()
    old = save_bundle(model, tmp_path / "old")
    assert not (old / "unknown.safetensors").exists()
    table = finetune.predict(old, files[:2])
    assert "known" not in table
    with pytest.raises(UserError, match=r"accept=0\.9: the model does not say how accurate its confident answers are"):
        finetune.predict(old, files[:2], accept=0.9)
    with pytest.raises(UserError, match="unknown: this model cannot tell unknown images"):
        finetune.predict(old, files[:2], unknown=True)


@pytest.mark.parametrize("damage", ["nan", "shape", "other", "missing", "digest"])
def test_a_damaged_score_ends_in_one_error(bundle: Path, tmp_path: Path, damage: str) -> None:
    broken = save_bundle(load_bundle(bundle), tmp_path / "broken")
    file, described = broken / "unknown.safetensors", broken / "model.json"
    tensors = load_file(file)
    if damage == "nan":
        tensors["precision"] = torch.tensor(float("nan"))
    elif damage == "shape":
        tensors["basis_DR"] = tensors["basis_DR"][1:].contiguous()
    elif damage == "other":
        tensors["precision"] += 1
    save_file(tensors, file)
    if damage == "missing":
        file.unlink()
    values = json.loads(described.read_text())
    if damage in ("nan", "shape"):
        values["unknown"]["sha256"] = file_sha256(file)
    if damage == "digest":
        values["unknown"]["sha256"] = 7
    described.write_text(json.dumps(values | {"sha256": json_sha256(values)}))
    name = "model" if damage == "digest" else "unknown"
    with pytest.raises(UserError, match=rf"{name}\.(json|safetensors): (damaged|missing)\."):
        load_bundle(broken)


def outputs(model: Classifier, seed: int, images: int) -> SplitEvaluation:
    """Outputs on drawn pictures."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(images) % len(model.classes)
    pictures = [picture(int(k), channels=3, size=model.input_spec.size, generator=generator) for k in targets]
    with torch.inference_mode():
        features_ND = model.embed(torch.stack(pictures))
        logits_NK = model.head(features_ND)
    rows = torch.arange(images)
    tensors = {"rows": rows, "targets": targets, "logits": logits_NK, "embedded_rows": rows, "embeddings": features_ND}
    return SplitEvaluation(metrics=metrics_of_outputs(logits_NK, targets), outputs=tensors)


def test_a_run_fits_both_and_says_why_it_does_not() -> None:
    model = settled_classifier(name="test_resnet")
    evaluated = {split: outputs(model, seed, 60) for seed, split in enumerate(("train", "val", "test"))}
    found = fit_unknown_images(model, evaluated, accept=0.9)
    fit_curves(model, evaluated)
    assert model.unknown is not None
    assert model.selective is not None
    assert found.threshold is not None
    assert (found.images, found.val_images, found.why_not) == (60, 60, "")
    assert found.known["val"] == pytest.approx(55 / 60)
    # unknown images of validation are accepted at no confidence
    assert model.selective.images == 60
    assert model.selective.points[-1].accepted == 55
    assert model.conformal is not None
    assert model.conformal.images == 60
    few = {split: outputs(model, seed, 10) for seed, split in enumerate(("train", "val", "test"))}
    found = fit_unknown_images(model, few, accept=0.9)
    assert (model.unknown, found.threshold, found.known) == (None, None, {})
    assert found.why_not == "it takes 20 validation images to accept 0.9 of them, and there are 10"
    model.multi_label = True
    assert fit_unknown_images(model, few, accept=0.9).why_not == "an image may show several classes, or none of them"

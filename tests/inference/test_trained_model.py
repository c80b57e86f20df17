"""``model.predict``: the same answers for every form in which Python has an image, in a table."""

import builtins
import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import finetune
from finetune.cache_dir import cache_folder
from finetune.cli import main
from finetune.data.transforms import eval_view
from finetune.errors import UserError
from finetune.table import Table, frame
from tests.bundles import small_bundle
from tests.export.trained import settled_classifier


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = settled_classifier(name="resnet10t", size=(48, 48), classes=("cat", "dog", "error"))
    return small_bundle(tmp_path_factory.mktemp("bundle"), model)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four colour pictures of several sizes, and a file that is none."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(4):
        coarse = Image.fromarray(random.integers(0, 256, (7, 7, 3), dtype=np.uint8))
        coarse.resize((60 + 9 * number, 90), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    (folder / "4.png").write_bytes(b"no picture")
    return folder


def test_predict_has_the_answers_of_the_command_and_names_what_it_cannot_read(
    bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    table = finetune.load(bundle).predict(pictures)
    assert isinstance(table, pd.DataFrame)
    assert list(table.columns) == [
        "image",
        "predicted",
        "probability",
        "margin",
        "uncertain",
        "cat",
        "dog",
        "p_error",
        "error",
    ]
    assert main(["predict", str(bundle), str(pictures), "--output", str(tmp_path / "p.csv")]) == 0
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(table["image"]) == [row["path"] for row in rows]
    assert list(table["predicted"]) == [row["predicted"] for row in rows]
    np.testing.assert_allclose(table["probability"][:4], [float(row["probability"]) for row in rows[:4]], atol=1e-5)
    assert "cannot be read as an image" in table["error"][4]
    assert table["uncertain"][4]
    shares = table[["cat", "dog", "p_error"]].to_numpy()[:4]
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    margins = np.sort(shares)[:, -1] - np.sort(shares)[:, -2]
    np.testing.assert_allclose(table["margin"][:4], margins, atol=1e-6)
    assert list(table["uncertain"][:4]) == list(margins < 0.2)


def test_paths_pillow_images_arrays_tensors_and_data_frames_have_the_same_answers(bundle: Path, pictures: Path) -> None:
    model = finetune.load(bundle).train()
    files = [pictures / f"{number}.png" for number in range(4)]
    opened = [Image.open(file) for file in files]
    arrays = [np.asarray(image) for image in opened]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    forms: list[Any] = [
        files,
        opened,
        arrays,
        tensors,
        [tensor / 255 for tensor in tensors],
        pd.DataFrame({"path": files}),
    ]
    expected = model.predict([str(file) for file in files], batch_size=3)
    assert model.training
    for form in forms:
        pd.testing.assert_frame_equal(model.predict(form).iloc[:, 1:], expected.iloc[:, 1:], rtol=1e-5, atol=1e-6)
    stacked = np.stack([arrays[0], arrays[0]])
    for one in (stacked, torch.from_numpy(stacked).permute(0, 3, 1, 2), [arrays[0], opened[0]]):
        assert list(model.predict(one)["cat"]) == pytest.approx([expected["cat"][0]] * 2, abs=1e-6)
    assert list(model.predict(opened[0])["image"]) == ["image 0"]


def test_pictures_of_other_channels_are_converted_as_files_are(tmp_path: Path, pictures: Path) -> None:
    grey = settled_classifier(name="resnet10t", channels=1)
    opened = Image.open(pictures / "0.png")
    by_file = finetune.predict(grey, pictures / "0.png")
    for image in (opened, opened.convert("L"), np.asarray(opened), np.asarray(opened.convert("L"))):
        assert finetune.predict(grey, image)["probability"][0] == pytest.approx(by_file["probability"][0], abs=2e-3)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (7, r"images: is an int\. Give paths, Pillow images"),
        ([3.5], r"images\[0\]: is a float\. Give paths"),
        ([], r"images: none given"),
        (np.zeros((4, 4, 5), np.uint8), r"\(4, 4, 5\), as \(H, W, C\): must have 1 or 3 channels"),
        (np.full((4, 4, 3), 200.0), r"float from 200 to 200.*divide by 255"),
        (np.where(np.eye(4) > 0, np.nan, 0.5), r"images: hold NaN\. Replace"),
        (np.zeros((4, 4), np.int64), r"of type int64: must be uint8"),
        (pd.DataFrame({"file name": ["a"]}), r"needs a column path or file .* Its columns: file name"),
        ("nowhere.png", r"nowhere\.png.*no such file"),
    ],
)
def test_what_is_no_image_is_refused_with_the_forms_that_are(bundle: Path, images: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        finetune.load(bundle).predict(images)


def test_several_labels_are_joined_and_the_margin_is_that_of_the_nearest_to_one_half() -> None:
    model = settled_classifier(name="resnet10t")
    model.multi_label = True
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    row = finetune.predict(model, image).iloc[0]
    shares = np.array([row[name] for name in model.classes])
    assert row["predicted"] == ";".join(name for name, share in zip(model.classes, shares, strict=True) if share > 0.5)
    assert row["margin"] == pytest.approx(2 * np.abs(shares - 0.5).min(), abs=1e-6)


def test_without_pandas_the_table_is_a_small_one_that_converts(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without_pandas(name: str, *rest: Any, **named: Any) -> Any:
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name="pandas")
        return imported(name, *rest, **named)

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "__import__", without_pandas)
        table = frame({"predicted": ["<cat>", "dog"], "probability": [0.51234, None]})
    assert isinstance(table, Table)
    assert (len(table), table["predicted"]) == (2, ["<cat>", "dog"])
    assert list(table.rows())[1] == {"predicted": "dog", "probability": None}
    assert "&lt;cat&gt;" in table._repr_html_()
    assert repr(table).splitlines() == ["predicted  probability", "<cat>      0.5123", "dog"]
    assert list(table.to_pandas()["predicted"]) == table["predicted"]
    with pytest.raises(KeyError, match="Did you mean 'predicted'"):
        table["predictd"]


def test_a_batch_of_the_input_size_is_a_finished_view_and_predict_crops_a_picture_of_that_size() -> None:
    model = settled_classifier(name="resnet10t", size=(32, 32))
    model.input_spec = replace(model.input_spec, crop_pct=0.5)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        finished, cropped = model(image), model(eval_view(model.input_spec)(image[0])[None])
        larger = torch.nn.functional.pad(image, (0, 1))
        resized = model(eval_view(model.input_spec)(larger[0])[None])
        assert torch.equal(model(larger), resized)
    assert not torch.allclose(finished, cropped)
    shares = finetune.predict(model, image)[list(model.classes)].to_numpy()
    np.testing.assert_allclose(shares, model.probabilities(cropped).numpy(), atol=1e-5)


def test_a_bundle_in_the_home_is_saved_where_it_is_loaded_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    finetune.save_bundle(settled_classifier(name="test_resnet", classes=("a", "b")), "~/bundle")
    assert (tmp_path / "bundle/model.json").is_file()
    assert finetune.load("~/bundle").classes == ("a", "b")
    assert not (tmp_path / "~").exists()
    monkeypatch.setenv("FINETUNE_CACHE", "~/cache")
    assert cache_folder("facts") == tmp_path / "cache/facts"

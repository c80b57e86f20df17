"""The steps beside training, from Python: typed results that show themselves in a notebook, and figures."""

import shutil
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import finetune
from finetune.errors import UserError
from tests.api.test_fit import QUICK, Pairs
from tests.conftest import make_pets, write_images


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a class whose name is HTML, and a picture that is there twice."""
    root = make_pets(tmp_path_factory.mktemp("pets"))
    write_images(root / "<b>bold", count=16, hue=(200, 200, 200), seed=9)
    (root / "1 cat" / "copy.png").write_bytes((root / "1 cat" / "0.png").read_bytes())
    return root


@pytest.fixture(scope="module")
def run(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return finetune.fit(pets, **QUICK, run_dir=tmp_path_factory.mktemp("run") / "run")


def test_a_plan_has_phases_stages_and_seconds_and_trains_nothing(pets: Path, tmp_path: Path) -> None:
    plan = finetune.plan(pets, **QUICK, run_dir=tmp_path / "run")
    assert [phase.name for phase in plan.phases] == ["head"]
    assert plan.phases[0].stages["layer4"].mode == "frozen"
    assert plan.seconds > 0
    assert "phase 1 of 1: head (schedule.phases.0)" in str(plan)
    assert "<pre>phase 1 of 1: head" in plan._repr_html_()
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"lrr: not an argument of finetune\.plan"):
        finetune.plan(pets, lrr=1)


def test_a_schedule_plans_and_trains_on_data_as_fit_does(pets: Path, run: Any, tmp_path: Path) -> None:
    schedule = finetune.Schedule(QUICK["schedule"])
    with pytest.raises(FrozenInstanceError):
        schedule.phases = "gradual"  # type: ignore[misc]  # the mistake under test
    rest = {key: value for key, value in QUICK.items() if key != "schedule"}
    trained = schedule.fit(pets, **rest, run_dir=tmp_path / "run")
    assert trained.results.weights_hash == run.results.weights_hash
    by_keyword = finetune.plan(pets, **rest, schedule=finetune.Schedule("probe"))
    for plan in (by_keyword, finetune.Schedule("probe").plan(pets, **rest)):
        assert [phase.name for phase in plan.phases] == ["probe"]
    assert str(schedule.plan(pets, **rest)).splitlines()[0] == str(finetune.plan(pets, **QUICK)).splitlines()[0]
    with pytest.raises(
        UserError, match=r"schedule='full': not an argument of Schedule\.fit, which trains its own phases"
    ):
        schedule.fit(pets, schedule="full")
    with pytest.raises(UserError, match=r"schedule: is a list with .*Give finetune\.Phase"):
        finetune.Schedule([finetune.Phase(train=["head"]), "full"])  # type: ignore[list-item]  # the mistake under test


def test_an_audit_shows_its_findings_with_names_escaped(pets: Path) -> None:
    audit = finetune.audit(pets)
    assert audit.images == 65
    assert [finding.kind for finding in audit.findings] == ["duplicates"]
    assert "more than once" in audit._repr_html_()
    from tests.api.test_fit import Colours

    with pytest.raises(UserError, match="an audit needs image files"):
        finetune.audit(Colours())


def test_a_run_result_shows_its_metrics(run: Any) -> None:
    page = run._repr_html_()
    assert f"{run.results.test.acc:.4g}" in page
    assert "<caption>" in page


def test_evaluate_repeats_the_test_of_a_run_and_takes_other_data_and_loaded_models(run: Any, pets: Path) -> None:
    tested = finetune.evaluate(run.run_dir)
    assert tested.metrics.acc == pytest.approx(run.results.test.acc)
    assert tested.images == sum(run.results.data.counts["test"])
    everything = finetune.evaluate(run.run_dir, pets, split="all")
    assert everything.images == 65
    model = finetune.load(run.bundle)
    assert finetune.evaluate(model, pets, split="all").metrics == everything.metrics
    files = sorted((pets / "2 dog").iterdir())
    frame = pd.DataFrame({"path": files, "label": "2 dog"})
    some = finetune.evaluate(model, frame)
    assert (some.images, some.missing_classes) == (16, ("1 cat", "10 owl", "<b>bold"))
    assert "16 images" in some._repr_html_()
    with pytest.raises(UserError, match="data: must be given for a classifier"):
        finetune.evaluate(model)


def test_a_data_set_of_fewer_classes_in_another_order_is_aligned_by_their_names(run: Any, pets: Path) -> None:
    from torchvision.datasets import ImageFolder

    everything = finetune.evaluate(run, pets, split="all")
    some = pets.parent / "some"
    for name in ("2 dog", "10 owl"):
        shutil.copytree(pets / name, some / name)
    part = ImageFolder(str(some))
    part.classes = ["10 owl", "2 dog"]
    # without splits, all of it is tested; a part named test is no training data
    for data in (part, {"test": part}):
        tested = finetune.evaluate(run, data)
        assert tested.images == 32
        assert set(tested.missing_classes) == {"1 cat", "<b>bold"}
        for name in part.classes:
            assert tested.metrics.recall[run.results.data.classes.index(name)] == pytest.approx(
                everything.metrics.recall[run.results.data.classes.index(name)]
            )
    only = [(np.asarray(Image.open(path)), 0) for path in sorted((some / "2 dog").iterdir())]
    assert len(finetune.embed(run, data=Pairs(*only)).features) == 16


@pytest.mark.parametrize("form", ["result", "model", "folder"])
def test_every_step_takes_the_result_of_a_fit_and_a_loaded_model_where_it_takes_a_folder(
    form: str, run: Any, tmp_path: Path
) -> None:
    given = {"result": run, "model": finetune.load(run), "folder": str(run.run_dir)}[form]
    assert finetune.load(given).classes == run.results.data.classes
    assert finetune.evaluate(given, split="val").metrics.acc == pytest.approx(run.results.val.acc)
    made = finetune.export(given, "head", output=tmp_path / "head.safetensors", check=2)
    assert made.path.is_file()
    own = finetune.embed(given)
    assert own.classes == run.results.data.classes
    assert {own.split(row) for row in range(len(own))} == {"train", "val", "test"}
    picture = own.paths[0]
    assert list(finetune.predict(given, picture)["image"]) == [picture]


def test_labelled_data_is_embedded_with_its_labels_and_pictures_in_memory_as_their_files(run: Any, pets: Path) -> None:
    from PIL import Image

    labelled = finetune.embed(run, data=pets)
    assert (len(labelled), labelled.label(0)) == (65, Path(labelled.paths[0]).parent.name)
    file = pets / "2 dog" / "3.png"
    with Image.open(file) as picture:
        of_object = finetune.embed(run, [picture.copy()])
    np.testing.assert_array_equal(of_object.features, finetune.embed(run, file).features)
    with pytest.raises(UserError, match=r"images and data: only one of them"):
        finetune.embed(run, file, data=pets)


def test_a_model_trained_since_it_was_loaded_is_tested_as_it_is_and_exported_only_once_it_is_saved(
    run: Any, tmp_path: Path
) -> None:
    model = finetune.load(run)
    with torch.no_grad():
        next(model.head.parameters()).zero_()
    with pytest.raises(UserError, match=r"run: this model's weights are no longer those in .*finetune\.save_bundle"):
        finetune.export(model, "head", output=tmp_path / "head.safetensors")
    assert finetune.evaluate(model).metrics != finetune.evaluate(run).metrics


def test_an_export_is_compared_and_says_where_it_is(run: Any, pets: Path, tmp_path: Path) -> None:
    made = finetune.export(run.bundle, "head", output=tmp_path / "head.safetensors", images=[pets], check=4)
    assert (made.path, made.path.is_file()) == (tmp_path / "head.safetensors", True)
    assert made.summary
    assert "head.safetensors" in made._repr_html_()
    with pytest.raises(UserError, match=r"format='onx': must be one of .* Did you mean 'onnx'"):
        finetune.export(run.bundle, "onx")
    with pytest.raises(UserError, match=r"layout='hwc': must be one of nhwc, nchw"):
        finetune.export(run.bundle, "onnx", layout="hwc")


def test_a_ladder_has_rungs_by_name_and_refuses_what_it_has_not(tmp_path: Path, pets: Path) -> None:
    settings = {key: QUICK[key] for key in ("backbone", "overrides")}
    ladder = finetune.ladder(pets, **settings, seeds=2, epochs=1, rungs=["knn"], output=tmp_path / "ladder")
    assert [rung.name for rung in ladder.rungs] == ["knn"]
    assert len(ladder.rung("knn").runs) == 2
    assert "knn" in ladder._repr_html_()
    with pytest.raises(KeyError, match="not a rung of this ladder"):
        ladder.rung("full")
    with pytest.raises(UserError, match=r"rungs='prob': no such strategy.*Did you mean 'probe'"):
        finetune.ladder(pets, rungs=["prob"])


def test_figures_show_views_confusions_and_the_worst_answers(run: Any, pets: Path) -> None:
    from matplotlib.figure import Figure

    batch = finetune.show_batch(pets, images=5, size=32, seed=1)
    titles = [axes.get_title() for axes in batch.axes if axes.get_title()]
    assert len(titles) == 5
    assert set(titles) <= {"1 cat", "2 dog", "10 owl", "<b>bold"}
    assert [axes.images[0].get_array().shape for axes in batch.axes if axes.images] == [(32, 32, 3)] * 5
    confusion = finetune.plot_confusion(run)
    counts = sum(int(text.get_text()) for text in confusion.axes[0].texts)
    assert counts == sum(run.results.data.counts["test"])
    worst = finetune.top_losses(run.run_dir, images=3)
    losses = [float(axes.get_title().rpartition("loss ")[2]) for axes in worst.axes if axes.get_title()]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 3
    assert all(isinstance(figure, Figure) for figure in (batch, confusion, worst))
    with pytest.raises(UserError, match=r"result: must be a run\. It is an int\. Give its folder"):
        finetune.plot_confusion(3)  # type: ignore[arg-type]  # the mistake under test


def test_show_batch_takes_grey_arrays_of_a_data_set() -> None:
    from tests.api.test_fit import Pairs

    pairs = [(np.full((9, 9), 20 * number, np.uint8), number % 2) for number in range(8)]
    figure = finetune.show_batch(Pairs(*pairs), images=4, augment="none", size=16)
    assert [axes.images[0].get_array().shape for axes in figure.axes if axes.images] == [(16, 16)] * 4


DEEP = dict.fromkeys(
    ("train", "val", "test"),
    tuple((Image.fromarray(np.full((8, 8), level, np.uint16)), number) for number, level in enumerate((4095, 2048))),
)


@pytest.mark.parametrize(
    ("words", "levels"),
    [
        ([], [16, 8]),
        (["data.bit_depth=12"], [255, 128]),
        (["data.integer_range=[0,8190]"], [128, 64]),
        (["data.high_depth=stretch"], [255, 0]),
    ],
)
def test_deep_pictures_in_memory_are_read_by_the_settings_of_depth(words: list[str], levels: list[int]) -> None:
    from finetune.api.settings import FitArguments
    from finetune.data.decode import DecodeOptions

    deep = DEEP
    if "data.high_depth=stretch" in words:  # by the range of each picture
        halves = np.repeat([[4095, 2048]], 8, axis=0).astype(np.uint16)
        deep = dict.fromkeys(DEEP, ((Image.fromarray(halves), 0), (Image.fromarray(halves[:, ::-1]), 1)))
    arguments = FitArguments(data=deep, classes=["a", "b"], overrides=words)
    trained, tested = arguments.config_and_objects()[1].source, arguments.evaluation_source()
    assert trained is not None
    as_trained = arguments.evaluation_source(read_as=DecodeOptions(channels=1, integer_range=(0, 65535)))
    for source in (trained, tested, as_trained):
        found = [source.read(row).unique().tolist() for row in range(2)]
        assert found == ([sorted(levels)] * 2 if deep is not DEEP else [[level] for level in levels])


@pytest.mark.parametrize(
    "word", ["data.group_pattern=(a)", "data.max_pixels=9", "data.on_unreadable=skip", "data.layout=classes"]
)
def test_a_setting_of_files_is_refused_for_data_given_as_objects(word: str) -> None:
    from finetune.api.settings import FitArguments

    key = word.partition("=")[0]
    with pytest.raises(
        UserError, match=rf"{key}='?.*: not a setting of data given as objects, which takes val_fraction, "
    ):
        FitArguments(data=DEEP, classes=["a", "b"], overrides=[word, "data.batch_size=2"]).config_and_objects()


def test_deep_pictures_in_memory_are_tested_as_training_read_deep_files() -> None:
    from finetune.api.settings import FitArguments
    from finetune.data.decode import DecodeOptions

    read_as = DecodeOptions(channels=1, integer_range=(0, 4095))
    pictures = [(Image.fromarray(np.full((8, 8), level, np.uint16)), n) for n, level in enumerate((4095, 4000))]
    source = FitArguments(data=dict.fromkeys(("train", "val", "test"), pictures), classes=["a", "b"]).evaluation_source(
        read_as=read_as
    )
    assert source.read(0).unique().tolist() == [255]
    assert (
        FitArguments(data=dict.fromkeys(("train", "val", "test"), pictures), classes=["a", "b"], channels=1)
        .evaluation_source()
        .read(0)
        .max()
        < 32
    )

"""Settings of the data, from the command line to the index of a run."""

import csv
import inspect
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image

from finetune.build.data import build_data, build_source, decode_options_from
from finetune.config import compose
from finetune.config.checks import split_settings
from finetune.config.schema import Config, DataConfig
from finetune.data.decode import DecodeOptions
from finetune.data.sources import DATA_SOURCES
from finetune.errors import ConfigError, UserError
from finetune.input_spec import InputSpec
from finetune.split_settings import SplitSettings
from tests.data.folders import write_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


def source_of(*words):
    return build_source(compose(list(words)))


def test_folds_limits_and_fractions_reach_the_splits(tmp_path):
    root = write_folder(tmp_path / "data", {"a": 20, "b": 20})
    words = ["data=folder", f"data.root={root}"]
    assert source_of(*words, "data.limit_per_class=2").index.counts()["train"] == [2, 2]
    assert source_of(*words, "data.val_fraction=0.3").index.counts()["val"] == [6, 6]
    validated = [source_of(*words, "data.folds=4", f"data.fold={fold}").index.rows("val") for fold in range(4)]
    assert len(np.unique(np.concatenate(validated))) == sum(map(len, validated)) == 34


def test_several_folders_are_given_as_a_list(tmp_path):
    one = write_folder(tmp_path / "one", {"a": 4, "b": 4})
    two = write_folder(tmp_path / "two", {"b": 4, "c": 4})
    index = source_of("data=folder", f"data.root=[{one},{two}]").index
    assert index.classes == ("a", "b", "c")
    assert len(index) == 16


def test_a_manifest_with_a_column_for_each_class_is_read(tmp_path):
    root = write_folder(tmp_path / "data", {"a": 6, "b": 6})
    with (tmp_path / "t.csv").open("w", newline="") as file:
        rows = [(path, int(path.parent.name == "a"), 1) for path in sorted(root.rglob("*.png"))]
        csv.writer(file).writerows([("path", "sharp", "new"), *rows])
    index = source_of("data=manifest", f"data.path={tmp_path / 't.csv'}", "data.label_columns=[sharp,new]").index
    assert index.multi_label
    assert index.classes == ("sharp", "new")


def test_a_setting_that_a_source_does_not_take_is_refused():
    with pytest.raises(UserError, match=r"data\.on_unreadable='skip': not a setting of data=digits"):
        source_of("data=digits", "data.on_unreadable=skip")


@pytest.mark.parametrize("words", [["data=manifest"], ["data=torchvision"], ["data=huggingface"]])
def test_what_a_source_cannot_do_without_is_asked_for(words):
    with pytest.raises(UserError, match=r"data\.(path|name): must be given"):
        compose(words)


def test_balanced_sampling_draws_every_class_equally_often(tmp_path):
    root = write_folder(tmp_path / "data", {"a": 60, "b": 12})
    config = compose(["data=folder", f"data.root={root}", "data.balanced=true", "data.num_workers=0"])
    source = build_source(config)
    classifier = type("Classifier", (), {"input_spec": InputSpec(size=(8, 8))})()
    data = build_data(config, source, classifier)
    drawn = [np.concatenate([batch.targets.numpy() for batch in data.train_dataloader()]) for _ in range(4)]
    share = np.concatenate(drawn).mean()
    assert 0.35 < share < 0.65


def test_what_is_done_about_imbalance_is_in_the_plan_and_in_the_results(tmp_path, capsys):
    from finetune.cli import main
    from finetune.results import Imbalance
    from tests.conftest import TINY, make_pets
    from tests.runs import train_tiny

    make_pets(tmp_path / "pets")
    words = ["data=folder", f"data.root={tmp_path / 'pets'}", *TINY, "schedule=frozen", "schedule.phases.0.epochs=1"]
    words += ["loss.name=focal", "loss.focal_gamma=1.5", "loss.class_weights=balanced", "data.balanced=true"]
    assert main(["plan", *words]) == 0
    assert "loss: focal, gamma 1.5, class weights: balanced, sampling: balanced" in capsys.readouterr().out
    results = train_tiny(words, tmp_path / "run").results
    assert results.imbalance == Imbalance(loss="focal, gamma 1.5", class_weights="balanced", sampling="balanced")


def test_a_split_that_is_not_wanted_is_left_out_by_a_fraction_of_0(tmp_path):
    root = write_folder(tmp_path / "data", {"a": 20, "b": 20})
    index = source_of("data=folder", f"data.root={root}", "data.test_fraction=0").index
    assert index.counts() == {"train": [17, 17], "val": [3, 3], "test": [0, 0]}
    assert any("No test split" in note for note in index.notes)


def test_settings_of_the_splits_are_refused_before_the_data_is_looked_at():
    with pytest.raises(ConfigError) as caught:
        compose(["data=folder", "data.root=nowhere", "data.val_fraction=1", "data.folds=1"])
    assert caught.value.problems == (
        "data.val_fraction=1.0: must be at least 0 and below 1.",
        "data.folds=1: must be at least 2.",
    )


def test_every_setting_that_a_source_takes_is_a_key_of_the_configuration():
    keys = {field.name for field in fields(DataConfig)}
    for name, kind in DATA_SOURCES.items():
        assert set(kind.settings) <= keys, name
        built = set(inspect.signature(kind.builder()).parameters)
        # what a run hands over beside its settings
        built -= {"listing", "use", "download"}
        assert built == {
            *kind.specific,
            "split",
            *(("decode_options", "on_unreadable") if kind.decodes else ("channels",)),
        }, name


def test_the_configuration_and_python_have_the_same_defaults():
    assert split_settings(Config()) == SplitSettings()
    assert decode_options_from(Config()) == DecodeOptions()


def test_data_without_a_validation_image_says_why(tmp_path):
    root = write_folder(tmp_path / "data", {"a": 20, "b": 20})
    with pytest.raises(
        UserError, match=r"data\.val_fraction=0\.0 sets no image aside\. Raise it, or give a validation split"
    ):
        source_of("data=folder", f"data.root={root}", "data.val_fraction=0")
    split = write_folder(tmp_path / "split", {"train/a": 6, "train/b": 6, "val/a": 2, "val/b": 2})
    index = source_of("data=folder", f"data.root={split}", "data.val_fraction=0").index
    assert index.counts()["val"] == [2, 2]


@pytest.mark.parametrize(
    ("kinds", "words", "channels", "note"),
    [
        (("L", "L"), (), 1, "input.channels=auto: 1, because all images are grey."),
        (("I;16", "LA"), (), 1, "input.channels=auto: 1, because all images are grey."),
        (("L", "RGB"), (), 3, "input.channels=auto: 3. 5 of 10 images are grey and become three equal channels."),
        (("RGB", "P"), (), 3, None),
        (("L", "L"), ("input.channels=3",), 3, None),
        (("L", "L"), ("input.channels=null",), 3, None),
        (("RGB", "RGB"), ("input.channels=1",), 1, None),
    ],
)
def test_a_grey_data_set_is_recognised_and_the_choice_is_noted(kinds, words, channels, note, tmp_path):
    for kind, name in zip(kinds, "ab", strict=True):
        (tmp_path / name).mkdir()
        for number in range(5):
            level = 40 * number + 20 * (name == "b")
            image = (
                Image.fromarray(np.full((9, 9), 99 * level, np.uint16))
                if kind == "I;16"
                else Image.new("RGB", (9, 9), (level, level, 0)).convert(kind)
            )
            image.save(tmp_path / name / f"{number}.png")
    source = source_of("data=folder", f"data.root={tmp_path}", *words)
    assert source.decode_options.channels == source.read(0).shape[0] == channels
    assert [line for line in source.index.notes if "input.channels" in line] == ([note] if note else [])


@pytest.mark.parametrize("value", ["grey", "0", "1.5", "true"])
def test_channels_are_auto_or_a_number(value):
    with pytest.raises(UserError, match=r"input\.channels=.*: must be auto or a whole number, at least 1"):
        compose(["data=digits", f"input.channels={value}"])

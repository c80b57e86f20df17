"""Wrong calls of the public functions: each is one message with the right form, before anything is built or written."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import finetune
from finetune.errors import UserError

FUNCTIONS = [name for name in finetune.__all__ if name.islower()]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_answers_a_wrong_call_with_a_user_error(name: str) -> None:
    function = finetune.__getattr__(name)
    if name != "build_backbone":  # its further arguments go to the network's library
        with pytest.raises(UserError, match=rf"no_such: not an argument of finetune\.{name}"):
            function("a", no_such=1)
    with pytest.raises(
        UserError, match=rf"finetune\.{name}: missing a required argument.*Call it as finetune\.{name}\("
    ):
        function()
    with pytest.raises(UserError, match=rf"finetune\.{name}: too many positional arguments"):
        function(*range(12))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_checked_argument_of_every_function_refuses_an_object_with_the_right_form(name: str) -> None:
    from finetune.arguments import KINDS

    function = finetune.__getattr__(name)
    parameters = inspect.signature(function).parameters
    given: dict[str, Any] = {"classes": ["a", "b"], "count": 1}
    if name == "build_classifier":
        given["backbone"] = finetune.build_backbone("resnet10t", weights="none")
    needed = [key for key, at in parameters.items() if at.default is at.empty and at.kind is not at.VAR_KEYWORD]
    required = {key: given.get(key, "a") for key in needed}
    for argument in [
        key for key in parameters if key in KINDS and parameters[key].default is not inspect.Parameter.empty
    ]:
        with pytest.raises(UserError, match=rf"^{argument}: must be .*It is an object\.$"):
            function(**required, **{argument: object()})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnet34"}, r"model: not an argument of finetune\.fit\. Use backbone=\.\.\."),
        ({"path": "pets"}, r"path: not .* Use data=\.\.\."),
        ({"bs": 16}, r"bs: not .* Use batch_size=\.\.\."),
        ({"momentum": 0.9}, r"momentum: not .* Use overrides=\['optimizer\.momentum=\.\.\.'\]"),
        ({"lrr": 1}, r"lrr: not .* Did you mean 'lr'\?"),
        ({"freeze": 2}, r"freeze: must be a stage or a list of stages.* It is an int"),
        ({"lr": slice(1e-5, 1e-3)}, r"lr: must be a number.*lr_slice=\[1e-5, 1e-3\].* It is a slice"),
        ({"metrics": ["accuracy"]}, r"metrics: must be a dict of torchmetrics metrics.* It is a list, \['accuracy'\]"),
        ({"metrics": {"top": lambda p, t: 0}}, r"metrics: must be a dict of torchmetrics.* It is a dict with function"),
        ({"callbacks": [print]}, r"callbacks: must be a list of Lightning callbacks.* builtin_function_or_method"),
        ({"loggers": [3]}, r"loggers: must be tensorboard.* It is a list, \[3\]"),
        ({"size": "big"}, r"size: must be a whole number of pixels, or \(height, width\)\. It is a str"),
        ({"overrides": "seed=1"}, r"overrides: must be a list of overrides.* It is a str"),
        ({"epochs": 2.5}, r"epochs: must be a whole number\. It is a float"),
        ({"epochs": True}, r"epochs: must be a whole number\. It is a bool"),
        ({"schedule": 3}, r"schedule: must be a name or phases\. It is an int\. Give 'gradual'"),
        ({"transform": "flip"}, r"transform: must be a function"),
    ],
)
def test_a_wrong_argument_of_fit_and_plan_is_refused_before_the_run_folder_exists(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        finetune.fit("digits", run_dir=tmp_path / "run", **arguments)
    with pytest.raises(UserError, match=message.replace(r"finetune\.fit\.", r"finetune\.plan\.")):
        finetune.plan("digits", **arguments)
    assert not (tmp_path / "run").exists()


def test_a_metric_that_does_not_take_probabilities_of_the_classes_is_refused_before_the_run_folder_exists(
    tmp_path: Path,
) -> None:
    from torchmetrics.classification import MulticlassAccuracy

    arguments: dict[str, Any] = {
        "metrics": {"top": MulticlassAccuracy(num_classes=3)},
        "backbone": "resnet10t",
        "weights": "none",
        "size": 32,
    }
    message = r"metrics\['top'\]=MulticlassAccuracy: must take probabilities \(B, 10\).* Choose a metric that does"
    with pytest.raises(UserError, match=message):
        finetune.fit("digits", run_dir=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, r"epoch: not an argument of finetune\.Phase\. Use epochs=\.\.\."),
        ({"freeze": ["stem"]}, r"freeze: not an argument of finetune\.Phase\. A phase trains the stages in train="),
        ({"layers": ["head"]}, r"layers: not .* Use train=\.\.\."),
        ({"train": []}, r"^train=\[\]: must name the stages that train\. Give \['head'\][^\n]*$"),
        ({"train": 3}, r"train=3: must name the stages"),
        ({"lr": slice(1e-5, 1e-3)}, r"lr: must be a number.*lr_slice"),
    ],
)
def test_a_wrong_setting_of_a_phase_is_refused_where_it_is_written(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        finetune.Phase(**settings)
    with pytest.raises(UserError, match=r"takes its settings by name"):
        finetune.Phase(["head"])  # type: ignore[arg-type]  # the mistake under test


def test_a_phase_shows_what_was_set_and_describes_every_setting() -> None:
    from finetune.config.schema import PhaseConfig

    assert repr(finetune.Phase(train=["head"], epochs=3)) == "Phase(epochs=3, train=['head'])"
    for name in PhaseConfig.__dataclass_fields__:
        assert f"    {name}: " in str(finetune.Phase.__doc__)
    assert finetune.Phase.__name__ == "Phase"


def test_a_stage_to_freeze_and_a_single_phase_need_no_list() -> None:
    from finetune.api.settings import FitArguments

    config, _ = FitArguments(
        data="digits", freeze="stem,layer1", schedule=finetune.Phase(train="head")
    ).config_and_objects()  # type: ignore[arg-type]  # a text is taken too
    assert config.freeze == ["stem", "layer1"]
    assert [phase.train for phase in config.schedule.phases] == [["head"]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: finetune.evaluate("run", split="validation"),
            r"split='validation': must be one of .*Did you mean 'val'",
        ),
        (lambda: finetune.search("run", "fish"), r"embeddings: must be embeddings\. It is a str\. Compute them"),
        (
            lambda: finetune.load(3),
            r"path: must be a run\. It is an int\. Give its folder, what finetune\.fit returned",
        ),
        (lambda: finetune.embed(3, "a.png"), r"model: must be a run\. It is an int"),
        (lambda: finetune.export([1], "onnx"), r"run: must be a run\. It is a list"),
        (lambda: finetune.resume(3), r"run_dir: must be a run\. It is an int"),
        (lambda: finetune.build_backbone(3), r"name: must be the name of a network or an nn\.Module\. It is an int"),
        (
            lambda: finetune.build_classifier("resnet18", classes=["a"]),
            r"backbone: must be what finetune\.build_backbone",
        ),
        (lambda: finetune.top_losses(3), r"run: must be a run\. It is an int"),
    ],
)
def test_what_is_no_run_and_no_split_is_refused_by_its_name(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("train", r"finetune\.fit\(data"),
        ("fine_tune", r"finetune\.fit\("),
        ("vision_learner", r"finetune\.fit\("),
        ("create_model", r"finetune\.build_backbone"),
        ("load_learner", r"finetune\.load\(run\)"),
    ],
)
def test_a_name_of_another_library_is_answered_with_the_call_that_does_it(name: str, call: str) -> None:
    with pytest.raises(AttributeError, match=rf"finetune\.{name}: no such function\. Use {call}"):
        getattr(finetune, name)


def test_every_call_that_a_message_names_is_one() -> None:
    import re

    from finetune.attribute_names import CALLS, CALLS_OF_A_MODEL, CALLS_OF_A_RUN

    calls = [call for calls in (CALLS, CALLS_OF_A_MODEL, CALLS_OF_A_RUN) for call in calls.values()]
    named = {name for call in calls for name in re.findall(r"finetune\.(\w+)\(", call)}
    assert named <= set(finetune.__all__)
    assert not set(CALLS) & set(finetune.__all__)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda model: model.predict("x", batch=3),
            r"^batch: not an argument of model\.predict\. Use batch_size=\.\.\.",
        ),
        (lambda model: model.predict(), r"missing a required argument: 'images'\. Call it as model\.predict\(images, "),
        (lambda model: model.predict("x", 3), r"^model\.predict: too many positional arguments"),
        (lambda model: model.predict("x", batch_size="3"), r"^batch_size: must be a whole number\. It is a str, '3'"),
        (lambda model: model.predict("no such"), r"^images='no such': no such file or folder"),
        (lambda model: model.predict(iter("ab")), r"list\(images\)"),
        (lambda model: model.predict(torch.zeros(1, 9, 9, 3)), r"Use images\.permute\(0, 3, 1, 2\)"),
        (lambda model: model.predict(np.zeros((1, 3, 9, 9), np.uint8)), r"Use images\.transpose\(0, 2, 3, 1\)"),
        (lambda model: model.predict(np.zeros((9, 9, 4), np.uint8)), r"must have 1 or 3 channels.*image\[\.\.\., :3\]"),
        (lambda model: finetune.resume("no such"), r"^run_dir='no such': no such folder"),
        (lambda model: model.embed("x"), r"call finetune\.embed\(model, images\)"),
        (lambda model: finetune.FineTuner(model, ["head"], rate=1), r"^rate: not an argument of finetune\.FineTuner"),
        (
            lambda model: finetune.load(".", modules={"head": torch.nn.Linear}),
            r"the class Linear; give an object of it",
        ),
        (
            lambda model: finetune.fit("digits", loss=torch.nn.functional.cross_entropy),
            r"^loss: .* forward of an nn\.Module",
        ),
        (lambda model: finetune.fit("digits", early_stopping=3), r"Use overrides=\['schedule\.patience=\.\.\.'\]"),
    ],
)
def test_methods_and_objects_answer_a_wrong_call_as_functions_do(
    call: Callable[[Any], Any], message: str, model: finetune.TrainedModel
) -> None:
    with pytest.raises(UserError, match=message):
        call(model)


def test_what_functions_return_shows_itself_in_a_line_and_in_a_notebook(model: finetune.TrainedModel) -> None:
    images = torch.zeros(3, 3, 9, 9, dtype=torch.uint8)
    table, features = model.predict(images), finetune.embed(model, images)
    found = finetune.search(features, features, k=2)
    assert repr(features) == "Embeddings(3 images x 512 features below the head, after layer4, float32, no labels)"
    assert repr(found) == "Neighbours(3 queries, the 2 nearest of each)"
    for one in (features, found, model, table):
        assert "<table" in one._repr_html_()
    assert "stem" in model._repr_html_()
    assert "3 x 64 x 64 pixels" in model._repr_html_()


def test_a_table_of_predictions_shows_its_answers_however_many_classes_there_are(model: finetune.TrainedModel) -> None:
    table = model.predict(torch.zeros(2, 3, 9, 9, dtype=torch.uint8))
    for shown in (repr(table), repr(table.head(1)), table._repr_html_()):
        assert all(name in shown for name in ("image", "predicted", "probability", "uncertain"))
        assert "columns not shown: margin, class 0, class 1, class 2, class 3 and 27 more" in shown
    assert list(table.columns)[:3] == ["image", "predicted", "probability"]
    assert max(map(len, repr(table.assign(image="a/long/path/" * 9)).splitlines()[:-1])) <= 80
    assert "class 29" in table
    assert "columns not shown" not in repr(table[["image", "class 3"]])


@pytest.fixture(scope="module")
def model() -> finetune.TrainedModel:
    backbone = finetune.build_backbone("resnet18", weights="none")
    built = finetune.build_classifier(backbone, classes=[f"class {n}" for n in range(30)], channels=3, size=(64, 64))
    return finetune.load(built)

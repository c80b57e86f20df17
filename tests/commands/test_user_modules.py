"""A network, a head and a loss that the configuration names by their classes: trained, resumed, loaded, and refused."""

import csv
import html
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import finetune
from finetune.build import assemble
from finetune.build.user_objects import user_loss
from finetune.cli import main
from finetune.config import compose
from finetune.data.transforms import eval_view
from finetune.errors import UserError
from finetune.runners.resume import resume
from finetune.training.losses import UserLoss
from tests.models.own_parts import Head, Net
from tests.runs import outcome, train_tiny

STAGES = "backbone.stages={stem: [conv1, bn1], layer1: [layer1], layer2: [layer2]}"
NET = ["backbone=own", "backbone._target_=tests.models.own_parts.Net", STAGES]
HEAD = ["head=own", "head._target_=tests.models.own_parts.Head", "head.kwargs.width=10"]
LOSS = ["loss=own", "loss._target_=tests.models.own_parts.Squared", "loss.kwargs.factor=4.0"]
TINY = ["keep=all", "input.size=24", "data.batch_size=8", "data.num_workers=0", "logger=none", "report=false"]
PHASES = ["schedule.phases.0.epochs=2", "schedule.phases.1.epochs=2", "schedule.phases.2.epochs=1"]


@pytest.fixture(scope="module")
def run_dir(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of own parts."""
    folder = tmp_path_factory.mktemp("own") / "run"
    words = [*NET, *HEAD, *LOSS, *TINY, *PHASES, "schedule.batch_norm=train"]
    run = finetune.fit(data=pets, backbone="own", schedule="gradual", run_dir=folder, overrides=words)
    return run.run_dir


@pytest.fixture
def begun(run_dir: Path, tmp_path: Path) -> Path:
    """Return a copy of the run as it was when its last phase had not begun."""
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    for name in ("results.json", "final.safetensors", "predictions.csv"):
        (copy / name).unlink()
    for path in copy.glob("phases/2-all/*"):
        if path.name not in ("start.safetensors", "checksums.json"):
            path.unlink()
    shutil.rmtree(copy / "model")
    return copy


def test_each_phase_trains_its_stages_alone_and_a_cut_that_cannot_be_made_is_said_in_the_plan(run_dir: Path) -> None:
    caches = json.loads((run_dir / "run.json").read_text())["decided"]["caches"]
    assert caches[0]["cached_stage"] == "layer2"
    assert caches[1]["cached_stage"] is None
    assert caches[1]["why"].endswith("own_parts.Net can be cut only after layer2, and not all of that is frozen")
    phases = json.loads((run_dir / "results.json").read_text())["phases"]
    assert [sorted(phase["rates"]) for phase in phases] == [
        ["head"],
        ["head", "layer2"],
        ["head", "layer1", "layer2", "stem"],
    ]


def test_the_model_of_a_run_comes_back_by_trust_or_by_objects_with_the_answers_of_its_test(
    run_dir: Path, pets: Path
) -> None:
    with pytest.raises(
        UserError, match=r"parts\.Head \(head\), .*parts\.Net \(backbone\).* so trust=True imports and builds them"
    ):
        finetune.load(run_dir)
    trusted = finetune.load(run_dir, trust=True)
    given = finetune.load(run_dir, modules={"head": Head(16, 3, width=10), "backbone": Net()})
    images = torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8)
    assert torch.equal(trusted(images), given(images))
    with (run_dir / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    source = assemble(compose(["data=folder", f"data.root={pets}", "backbone.weights=none", *TINY])).source
    view = eval_view(given.input_spec)
    by_path = {source.index.path(row): row for row in range(len(source.index))}
    pixels = torch.stack([view(source.read(by_path[row["path"]])) for row in rows])
    shares = given.probabilities(given(pixels)).detach().numpy()
    assert [given.classes[number] for number in shares.argmax(1)] == [row["predicted"] for row in rows]
    np.testing.assert_allclose(shares.max(1), [float(row["probability"]) for row in rows], atol=1e-5)


def test_resume_builds_own_classes_for_a_user_who_trusts_them_and_ends_at_the_same_bits(
    begun: Path, run_dir: Path
) -> None:
    with pytest.raises(UserError) as refused:
        resume(begun)
    for line in (
        "backbone: tests.models.own_parts.Net()",
        "head: tests.models.own_parts.Head(width=10)",
        "loss: tests.models.own_parts.Squared(factor=4.0)",
    ):
        assert line in str(refused.value)
    resume(begun, trust=True)
    assert outcome(begun) == outcome(run_dir)


def test_what_the_record_of_a_run_says_is_never_built_even_if_the_configuration_is_trusted(run_dir: Path) -> None:
    from finetune.config import from_yaml

    model = json.loads((run_dir / "run.json").read_text())["model"]
    model["head"]["target"] = {"_target_": "tests.models.own_parts.no_such_class"}
    model["backbone"]["kwargs"]["target"] = {"_target_": "tests.models.own_parts.no_such_class"}
    parts = assemble(from_yaml(run_dir / "config.yaml"), description=model, trusted=True)
    assert isinstance(parts.classifier.head, Head)
    assert isinstance(parts.classifier.backbone.net, Net)


@pytest.mark.parametrize(
    "changes",
    [NET, HEAD, ["data.transform._target_=tests.models.own_parts.Inverted"]],
    ids=["network", "head", "transform"],
)
def test_a_configuration_that_nobody_typed_builds_no_class_of_the_user_s(
    changes: list[str], words: Callable[..., list[str]]
) -> None:
    with pytest.raises(UserError, match=r"own_parts\.(Net|Head|Inverted): not on the list of what data may build"):
        assemble(compose(words("backbone.weights=none", *changes)))


def test_predict_asks_for_trust_and_classifies_with_it(
    run_dir: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(run_dir), str(pets), "--output", str(tmp_path / "p.csv")]
    assert main(command) == 2
    assert "needs classes that are not part of finetune" in capsys.readouterr().err
    assert main([*command, "--trust"]) == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 49


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_the_commands_after_training_take_a_run_of_own_classes_with_trust_alone(
    command: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(run_dir)]) == 2
    assert "--trust" in capsys.readouterr().err
    assert main([command, str(run_dir), "--trust"]) == 0
    if command == "report":
        page = html.unescape((run_dir / "report.html").read_text())
        assert f"finetune.load('{run_dir}/model', trust=True)" in page
        assert f"finetune evaluate {run_dir} data=DIR --trust" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["backbone._target_=tests.models.own_parts.Net"], r"backbone\.stages: must be given for backbone\._target_"),
        (["backbone.stages={stem: [conv1]}"], r"backbone\.stages: only for backbone\._target_"),
        (["head.kwargs.width=3"], r"head\.kwargs=\{'width': 3\}: only for head\._target_"),
        ([*HEAD, "head.drop_rate=0.5"], r"head\.drop_rate=0\.5: not for head\._target_"),
        ([*LOSS, "loss.class_weights=balanced"], r"loss\.class_weights='balanced': not for loss\._target_"),
        ([*LOSS, "schedule.label_smoothing=0.1"], r"schedule\.label_smoothing: not for loss\._target_"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_at_composition(changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose(["data=digits", *changes])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([*NET, "backbone.stages.stem=[conv1]"], r"In none: bn1\.weight, bn1\.bias"),
        ([*NET, "backbone.weights=imagenet"], r"backbone\.weights='imagenet': no library has weights for .*Net"),
        (
            [*NET, "backbone.kwargs.channels=4"],
            r"failed with RuntimeError: .*input\.mean and input\.std with a number for each",
        ),
        (
            ["head=own", "head._target_=tests.models.own_parts.Hat"],
            r"_target_='tests.models.own_parts.Hat': cannot be imp",
        ),
        (
            ["head=own", "head._target_=collections.OrderedDict"],
            r"head\._target_='collections\.OrderedDict': must build an nn",
        ),
        (
            [*HEAD, "head.kwargs.depth=2"],
            r"head\._target_: tests.models.own_parts.Head: does not take these arguments.*built with num_features and num_cl",
        ),
        (["head=own", "head._target_=no_such.Head"], r"imported\. No module named 'no_such'\. Install"),
        (
            ["head=own", "head._target_=torch.nn.Linear", "head.kwargs={in_features: 96, out_features: 5}"],
            r"must map features \(B, 96\) to logits \(B, 3\)\. .* gave \(2, 5\)",
        ),
        ([*HEAD, "schedule=probe"], r"solver='lbfgs': solves only linear heads"),
        ([*LOSS, "schedule=probe"], r"solver='lbfgs': needs a built-in convex loss"),
    ],
)
def test_a_class_that_does_not_fit_is_one_clear_error(
    changes: list[str], message: str, words: Callable[..., list[str]]
) -> None:
    with pytest.raises(UserError, match=message):
        assemble(compose(words("backbone.weights=none", *changes)), trusted=True)


def test_a_network_for_one_channel_is_said_by_its_mean_and_std(words: Callable[..., list[str]]) -> None:
    grey = ["backbone.kwargs.channels=1", "input.channels=1", "input.mean=[0.5]", "input.std=[0.25]"]
    model = assemble(compose(words(*NET, *grey)), trusted=True).classifier
    assert model.prepare(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)).tolist() == [[[[2.0, 2.0], [2.0, 2.0]]]]
    assert model.backbone.net.conv1.weight.shape[1] == 1  # type: ignore[union-attr,operator]  # nn.Module's attributes


def first_images(words: list[str]) -> torch.Tensor:
    """Return the images of the first training batch."""
    parts = assemble(compose(["backbone.weights=none", *words]), trusted=True)
    batch = next(iter(parts.data.train_dataloader()))
    images: torch.Tensor = batch.images
    return images


def test_a_transform_changes_each_training_view_after_the_augmentation_and_draws_the_same_again(
    words: Callable[..., list[str]],
) -> None:
    plain = first_images(words())
    inverted = ["data.transform._target_=tests.models.own_parts.Inverted"]
    assert torch.equal(first_images(words(*inverted)), 255 - plain)
    noisy = first_images(words(*inverted, "data.transform.noise=3"))
    difference = (noisy ^ (255 - plain)).unique()
    assert difference.tolist() == [0, 1, 2, 3]
    torch.manual_seed(1)
    assert torch.equal(first_images(words(*inverted, "data.transform.noise=3")), noisy)


def test_cached_views_of_one_transform_are_not_those_of_another(
    words: Callable[..., list[str]], tmp_path: Path
) -> None:
    losses = []
    for number, noise in enumerate((1, 255, 1)):
        transform = ["data.transform._target_=tests.models.own_parts.Inverted", f"data.transform.noise={noise}"]
        choice = ["schedule=frozen", "schedule.epochs=2", "schedule.cache=1", "backbone.weights=none"]
        train_tiny(words(*transform, *choice), tmp_path / str(number))
        with (tmp_path / str(number) / "metrics.csv").open() as file:
            losses.append([row["train/loss"] for row in csv.DictReader(file)])
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["data.transform._target_=torchvision.transforms.v2.Resize", "data.transform.size=[8,8]"],
            r"returned torch\.uint8 \(",
        ),
        (
            ["data.transform._target_=torchvision.transforms.v2.ToPILImage"],
            r"data\.transform: must return uint8 .* returned Image",
        ),
        (
            ["data.transform._target_=builtins.dict"],
            r"data\.transform\._target_='builtins\.dict': must build a function",
        ),
        (["data.transform._target_=tests.models.own_parts.Head"], r"Head: does not take these arguments"),
        (["data.transform.noise=3"], r"data\.transform: must have a _target_"),
        (
            ["data.transform._target_=tests.models.own_parts.Inverted", "data.augment=none"],
            r"with augment=none in every phase there is no training",
        ),
    ],
)
def test_a_transform_that_is_none_is_refused_before_anything_is_trained(
    changes: list[str], message: str, words: Callable[..., list[str]]
) -> None:
    with pytest.raises(UserError, match=message):
        assemble(compose(words("backbone.weights=none", *changes)), trusted=True)


def test_a_loss_of_one_number_pulls_as_its_mean_over_the_batch_and_one_of_each_image_as_it_is() -> None:
    targets = torch.tensor([0, 2, 1, 1])
    for reduction in ("mean", "none"):
        logits = torch.randn(4, 3, requires_grad=True, generator=torch.Generator().manual_seed(0))
        losses = UserLoss(torch.nn.CrossEntropyLoss(reduction=reduction))(logits, targets)
        assert losses.shape == (4,)
        (found,) = torch.autograd.grad(losses.mean(), logits)
        (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, targets), logits)
        assert torch.allclose(found, expected)
    with pytest.raises(UserError, match=r"For 4 images it gave \(4, 3\)\. Reduce the others"):
        UserLoss(torch.nn.MSELoss(reduction="none"))(logits, torch.zeros(4, 3))


def test_a_loss_is_tried_before_anything_is_trained() -> None:
    config = compose(["data=digits", "loss=own", "loss._target_=torch.nn.MSELoss"])
    with pytest.raises(
        UserError, match=r"loss\._target_='torch\.nn\.MSELoss': must take logits \(B, 3\) and targets \(2,\)"
    ):
        user_loss(config, num_classes=3, multi_label=False, trusted=True)
    assert user_loss(config, num_classes=3, multi_label=True, trusted=True)(
        torch.ones(2, 3), torch.zeros(2, 3)
    ).shape == (2,)


@pytest.mark.usefixtures("resized_in_two_parts")
@pytest.mark.parametrize("form", ["onnx", "torch_export"])
def test_a_run_of_own_classes_is_exported_to_programs_that_have_neither_them_nor_finetune(
    form: str, run_dir: Path, tmp_path: Path
) -> None:
    target = tmp_path / "model"
    words = ["export", str(run_dir), "--format", form, "--output", str(target), "--trust"]
    assert main(words) == 0
    (report,) = tmp_path.glob("*.parity.json")
    assert json.loads(report.read_text())["passed"]

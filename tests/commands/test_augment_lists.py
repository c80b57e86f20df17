import json

import pytest
import torch

from finetune.build import assemble
from finetune.build.augment_lists import build_augment_lists
from finetune.build.data import build_source
from finetune.cli import main
from finetune.config import compose
from finetune.config.trust import needs_trust
from finetune.data.loading import ViewDataset
from finetune.data.sampling import BatchKey
from finetune.data.transforms import train_view
from finetune.errors import UserError
from finetune.input_spec import InputSpec
from finetune.runners.resume import resume
from tests.data.folders import write_folder
from tests.runs import train_tiny

FLIPS = "data.augment=[light,RandomVerticalFlip,{RandomRotation:{degrees:[90,90]}},{ColorJitter:{brightness:0.5}}]"
RGB, GREY = InputSpec(size=(16, 16)), InputSpec(size=(16, 16), channels=1, mean=(0.5,), std=(0.5,))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("augment") / "data", {"a": 8, "b": 8})


def lists(*words, spec=RGB, trusted=True):
    return build_augment_lists(compose(["data.root=d", *words]), spec=spec, trusted=trusted)


def test_an_operation_does_to_a_view_what_torchvision_does():
    from torchvision.transforms.v2 import functional

    ((text, _),) = built = list(lists("data.augment=[{RandomRotation:{degrees:[90,90]}}]").items())
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    view = train_view(RGB, augment=text, lists=dict(built))
    assert torch.equal(view(image), functional.rotate(train_view(RGB, augment="none")(image), 90))


def test_a_preset_that_does_not_take_the_channels_is_refused_before_any_phase():
    spec = InputSpec(size=(16, 16), channels=4, mean=(0.5,) * 4, std=(0.5,) * 4)
    message = r"schedule\.phases\[1\]\.augment='rand_augment': takes images of 1 or 3 channels"
    with pytest.raises(UserError, match=message):
        lists("schedule=gradual", "schedule.phases.1.augment=rand_augment", spec=spec)


def test_the_same_image_epoch_and_seed_give_the_same_view_whatever_else_is_in_the_batch(root):
    source = build_source(compose([f"data.root={root}", "augment=aerial"]))
    ((text, _),) = built = list(lists("augment=aerial").items())
    view = train_view(RGB, augment=text, lists=dict(built))
    data = ViewDataset(source=source, view=view, seed=3, phase="p")

    def views(rows, epoch):
        import numpy as np

        return data.__getitems__(
            BatchKey(rows=np.array(rows), epoch=epoch, step=0, global_size=len(rows), world=1)
        ).images

    torch.manual_seed(0)
    together = views([0, 1, 2, 3], 1)
    torch.manual_seed(1)
    assert torch.equal(together[2], views([2], 1)[0])
    assert torch.equal(together[[3, 0]], views([3, 0], 1))
    assert not torch.equal(together[2], views([2], 2)[0])
    assert torch.initial_seed() == 1


@pytest.mark.parametrize("preset", ["microscopy", "aerial", "documents"])
def test_presets_take_colour_and_grey_pictures(preset):
    assert lists(f"augment={preset}", spec=GREY).keys() == lists(f"augment={preset}", spec=RGB).keys()


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ("RandomVerticalFlop", r"is not an operation of torchvision.* Did you mean 'RandomVerticalFlip'"),
        ("RandomRotation", r"does not take these arguments.*degrees"),
        ("{RandomCrop: {size: 8}}", r"must return uint8 of the shape it is given"),
        ("{RandomApply: {transforms: [{CenterCrop: {size: 8}}]}}", r"must return uint8 of the shape it is given"),
        ("{ToDtype: {dtype: 5}}", r"ToDtype"),
        ("{_target_: builtins.dict}", r"builtins.dict: must build a function of an image"),
        ("{_target_: no.such.Thing}", r"cannot be imported"),
    ],
)
def test_an_operation_that_a_view_cannot_take_is_refused_before_the_run(operation, message):
    with pytest.raises(UserError, match=message):
        lists(f"data.augment=[light,{operation}]")


@pytest.mark.parametrize(
    ("operation", "rule"),
    [
        ("RandomGrayscale", "RandomGrayscale changes colours only"),
        ("{ColorJitter: {brightness: 0.1, hue: 0.1}}", "Give brightness and contrast only"),
        ("{RandomApply: {transforms: [RandomChannelPermutation]}}", "RandomChannelPermutation changes colours only"),
    ],
)
def test_an_operation_on_colours_alone_is_refused_for_grey_pictures(operation, rule):
    with pytest.raises(UserError, match=rule):
        lists(f"data.augment=[{operation}]", spec=GREY)
    assert lists(f"data.augment=[{operation}]", spec=RGB)


def test_a_run_folder_may_name_operations_of_torchvision_and_nothing_else():
    assert needs_trust(compose(["data.root=d", FLIPS, "schedule.augment=[RandomInvert]"])) == []
    assert lists(FLIPS, trusted=False)
    for target in ("os.system", "torchvision.transforms.v2.Lambda", "torchvision.datasets.ImageFolder"):
        words = f"data.augment=[light,{{RandomApply: {{transforms: [{{_target_: {target}}}]}}}}]"
        assert any(target in line for line in needs_trust(compose(["data.root=d", words])))
        with pytest.raises(UserError, match="not on the list of what data may build"):
            lists(words, trusted=False)
    with pytest.raises(UserError, match="not on the list of what data may build"):
        lists("data.augment=[Lambda]", trusted=False)


def test_a_run_with_a_list_plans_reports_and_goes_on_to_the_same_weights(root, tmp_path, capsys):
    words = [f"data.root={root}", FLIPS, "backbone.name=resnet14t", "backbone.weights=none", "input.size=32",
             "schedule=head_then_all", "schedule.epochs=1", "schedule.cache=2", "logger=none", "data.num_workers=0"]  # fmt: skip
    config = compose(words)
    parts = assemble(config, trusted=True)
    text = "light + RandomVerticalFlip + RandomRotation(degrees=[90, 90]) + ColorJitter(brightness=0.5)"
    assert {phase.augment for phase in parts.phases} == {text}
    train_tiny(words, tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Training views: light + RandomVerticalFlip" in page
    (plan, *_) = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert text in json.dumps(plan)
    final = (tmp_path / "run" / "final.safetensors").read_bytes()
    (tmp_path / "run" / "results.json").unlink()
    resume(tmp_path / "run")
    assert (tmp_path / "run" / "final.safetensors").read_bytes() == final
    capsys.readouterr()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "Training views: light + RandomVerticalFlip" in (tmp_path / "run" / "report.html").read_text()

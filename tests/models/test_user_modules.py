"""The user's own modules: a backbone with named stages and a head, in a model, in a bundle, and back."""

import copy
import json
import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import finetune
from finetune.errors import UserError
from finetune.input_spec import InputSpec
from finetune.models.classifier import classifier_from_description
from finetune.models.sources.from_own import IN_SETTINGS, backbone_of
from finetune.models.user_modules import code_digest, modules_digest
from tests.models.own_parts import STAGES, Head, Net, chain
from tests.training.test_library_use import loader, trainer

CLASSES = ("a", "b", "c")
SPEC = InputSpec(size=(32, 32), crop_pct=1.0)


def own_model(head: nn.Module | None = None) -> finetune.Classifier:
    torch.manual_seed(0)
    backbone = finetune.build_backbone(Net(), stages=STAGES, input_spec=SPEC)
    model = finetune.build_classifier(backbone, head=head or Head(16, 3), classes=CLASSES)
    # statistics that are not those of a new network, so that losing them would show
    model.backbone.net.bn1.running_mean.uniform_(-1, 1)  # type: ignore[union-attr,operator]  # nn.Module's attributes
    return model.eval()


def test_a_module_with_named_stages_is_a_backbone_whose_maps_are_averaged(pixels: Callable[..., Tensor]) -> None:
    net = Net().eval()
    backbone = finetune.build_backbone(net, stages=STAGES, input_spec=SPEC)
    assert (backbone.stages, backbone.num_features) == (("stem", "layer1", "layer2"), 16)
    assert backbone.stage_of("conv1.weight") == "stem"
    assert backbone.stage_of("layer2.bn.running_mean") == "layer2"
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(backbone(images), net(images).mean((2, 3)))


def test_the_head_is_the_user_s_own_object_and_its_answer_is_the_model_s() -> None:
    head = Head(16, 3).eval()
    model = own_model(head)
    assert model.head is head
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(model(images), head(model.embed(images)))
    assert {model.stage_of(name) for name, _ in model.named_parameters()} == {"stem", "layer1", "layer2", "head"}


def test_a_head_is_also_a_name_or_settings() -> None:
    backbone = finetune.build_backbone("resnet18", weights="none")
    model = finetune.build_classifier(backbone, head="cosine", classes=list(CLASSES), size=(64, 96))
    assert (model.head_settings["name"], model.input_spec.size) == ("cosine", (64, 96))
    model = finetune.build_classifier(backbone, head={"name": "mlp", "hidden": 7}, classes=CLASSES)
    assert model.head_settings["hidden"] == 7


def test_a_chain_is_cut_after_each_stage_to_the_same_bits_and_another_module_after_its_last() -> None:
    stages = {"stem": ["0", "1"], "layer1": ["3"], "layer2": ["4"]}
    backbone = finetune.build_backbone(chain().eval(), stages=stages, input_spec=SPEC)
    assert backbone.boundaries == backbone.stages
    images = torch.rand(2, 3, 32, 32)
    for stage in backbone.boundaries:
        prefix, suffix = backbone.split(stage)
        assert torch.equal(suffix(prefix(images)), backbone(images))
    backbone = finetune.build_backbone(Net().eval(), stages=STAGES, input_spec=SPEC)
    assert backbone.boundaries == ("layer2",)
    prefix, suffix = backbone.split("layer2")
    assert torch.equal(suffix(prefix(images)), backbone(images))


def test_a_module_that_a_chain_runs_twice_runs_twice_in_its_parts() -> None:
    twice = nn.ReLU()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), twice, nn.Conv2d(4, 4, 3), twice, nn.Conv2d(4, 4, 3), nn.Flatten()).eval()
    spec = InputSpec(size=(12, 12), crop_pct=1.0)
    stages = {"stem": ["0"], "layer1": ["2"], "layer2": ["4"]}
    backbone = finetune.build_backbone(nn.Sequential(*net), stages=stages, input_spec=spec)
    images = torch.randn(2, 3, 12, 12)
    for stage in backbone.boundaries:
        prefix, suffix = backbone.split(stage)
        assert torch.equal(suffix(prefix(images)), net(images))
    assert backbone.boundaries == backbone.stages


@pytest.mark.parametrize(("channels", "adapt"), [(1, "fold"), (1, "sum"), (5, "tile"), (1, "reinit"), (3, "reinit")])
def test_a_network_whose_stem_was_adapted_is_put_back_into_its_bundle(
    channels: int, adapt: str, tmp_path: Path, pixels: Callable[..., Tensor]
) -> None:
    backbone = finetune.build_backbone(Net(), stages=STAGES, input_spec=SPEC)
    model = finetune.build_classifier(backbone, classes=CLASSES, channels=channels, adapt=adapt).eval()
    images = pixels(channels)
    expected, state = model(images), copy.deepcopy(model.state_dict())
    # the object that was trained, and a new one
    for net in (backbone.net, Net()):
        again = classifier_from_description(json.loads(json.dumps(model.describe())), modules={"backbone": net})
        again.load_state_dict(state)
        assert again.backbone.adapted == (channels, adapt)
        assert torch.equal(again.eval()(images), expected)


class _Scaled(nn.Module):
    def __init__(self, factor: float, act: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self._factor, self.act = factor, act

    def forward(self, maps: Tensor) -> Tensor:
        return self.act(self._factor * maps)


def test_modules_of_the_same_weights_that_compute_something_else_have_another_digest() -> None:
    def digest(last: nn.Module) -> str:
        torch.manual_seed(0)
        return modules_digest(nn.Sequential(nn.Conv2d(3, 4, 3), last))

    kinds = [nn.ReLU(), nn.GELU(), nn.MaxPool2d(2), nn.MaxPool2d(2, stride=1), nn.ReLU6()]
    kinds += [_Scaled(1.0), _Scaled(2.0), _Scaled(1.0, torch.tanh)]
    digests = [digest(kind) for kind in kinds]
    assert len(set(digests)) == len(kinds)
    assert digests == [digest(copy.deepcopy(kind)) for kind in kinds]


def test_code_that_cannot_be_read_or_compared_is_only_its_own() -> None:
    # as in a notebook: two cells that define one name
    scope: dict[str, type[nn.Module]] = {}
    cells = []
    for factor in (1, 2):
        exec(
            f"class Net(nn.Module):\n    def forward(self, x):\n        return {factor} * x",
            {"nn": nn, "__name__": "cell"},
            scope,
        )
        cells.append(scope["Net"])
    assert code_digest([cells[0]]) == code_digest([cells[0]]) != code_digest([cells[1]])
    nets = [_Scaled(1.0, lambda maps: maps), _Scaled(1.0, lambda maps: -maps)]
    assert modules_digest(nets[0]) == modules_digest(nets[0]) != modules_digest(nets[1])


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (None, r"stages: must be given .* with parameters: conv1, bn1, layer1, layer2. Give stages="),
        ({"stem": ["conv1"], "rest": ["layer1", "layer2"]}, r"In none: bn1\.weight, bn1\.bias\. Add the modules"),
        ({**STAGES, "more": ["layer2.bn"]}, r"In two: layer2\.bn\.weight \(in layer2 and more\)"),
        ({**STAGES, "layer3": ["layer2.relu"]}, r"stages\['layer3'\]: 'layer2.relu' is not a module of .*\.Net\."),
        ({"stem": "conv1"}, r"stages\['stem'\]='conv1': must be a list of names"),
        ({"head": ["conv1", "bn1"], "b": ["layer1", "layer2"]}, r"stages\['head'\]: not a name for a stage"),
        ({**STAGES, "none": []}, r"Without any: none\. Leave them out"),
    ],
)
def test_stages_that_do_not_divide_the_parameters_are_refused_by_name(
    stages: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        finetune.build_backbone(Net(), stages=stages, input_spec=SPEC)


def test_messages_spell_stages_as_settings_and_leave_a_module_of_that_name_alone() -> None:
    net = nn.Sequential(OrderedDict(stages=nn.Conv2d(3, 4, 3), rest=nn.Conv2d(4, 4, 3)))
    with pytest.raises(UserError) as refused:
        backbone_of(net, stages={"stem": ["rest"]}, input_spec=SPEC, spelling=IN_SETTINGS)
    assert str(refused.value) == (
        "backbone.stages: every parameter must be in a stage. In none: stages.weight, stages.bias. Add the modules that own "
        "them to a stage."
    )


def test_a_head_of_another_width_is_refused_at_once_with_both_widths() -> None:
    backbone = finetune.build_backbone(Net(), stages=STAGES, input_spec=SPEC)
    with pytest.raises(
        UserError, match=r"features \(B, 16\) to logits \(B, 3\)\. .* zeros \(2, 16\) gave \(2, 5\)\. Build"
    ):
        finetune.build_classifier(backbone, head=nn.Linear(16, 5), classes=CLASSES)
    with pytest.raises(
        UserError, match=r"zeros \(2, 16\) failed with RuntimeError: .*Build it for 16 features and 3 class"
    ):
        finetune.build_classifier(backbone, head=nn.Linear(8, 3), classes=CLASSES)


def test_a_backbone_that_gives_no_features_or_takes_no_such_image_is_refused() -> None:
    stages = {"stem": ["0"]}
    with pytest.raises(
        UserError, match=r"maps \(B, D, h, w\)\. A forward pass of zeros \(2, 3, 32, 32\) gave \(2, 4, 900\)"
    ):
        finetune.build_backbone(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2)), stages=stages, input_spec=SPEC)
    with pytest.raises(UserError, match=r"failed with RuntimeError: .*a mean and std for each channel"):
        finetune.build_backbone(nn.Sequential(nn.Conv2d(4, 4, 3)), stages=stages, input_spec=SPEC)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    backbone = finetune.build_backbone(flat, stages={"stem": ["1"]}, input_spec=SPEC)
    with pytest.raises(UserError, match=r"size=\[16, 16\]: .*must give features \(B, 4\) .* Choose another size"):
        finetune.build_classifier(backbone, classes=CLASSES, size=(16, 16))


def test_a_network_for_one_channel_takes_grey_images_as_they_are_and_no_others() -> None:
    spec = InputSpec(channels=1, size=(32, 32), mean=(0.5,), std=(0.25,))
    backbone = finetune.build_backbone(Net(channels=1), stages=STAGES, input_spec=spec)
    model = finetune.build_classifier(backbone, classes=CLASSES).eval()
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    assert torch.equal(model.embed(images), backbone((images / 255 - 0.5) / 0.25))
    with pytest.raises(
        UserError, match=r"^channels=3: .* takes 1 channel, by its mean and std\. Give images of 1 channel and"
    ):
        finetune.build_classifier(backbone, classes=CLASSES, channels=3)


def test_grey_images_reach_a_colour_network_exactly_by_its_folded_first_convolution() -> None:
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    logits = []
    for adapt in ("expand", "fold"):
        torch.manual_seed(0)
        backbone = finetune.build_backbone(Net().double(), stages=STAGES, input_spec=SPEC)
        model = finetune.build_classifier(backbone, classes=CLASSES, channels=1, adapt=adapt).double().eval()
        logits.append(model(images))
    assert torch.allclose(*logits, rtol=0, atol=1e-12)


def test_weights_of_a_module_come_from_a_file_or_stay_and_never_from_a_library(tmp_path: Path) -> None:
    torch.manual_seed(1)
    wanted = Net()
    torch.save(wanted.state_dict(), tmp_path / "net.pt")
    backbone = finetune.build_backbone(Net(), stages=STAGES, weights=tmp_path / "net.pt", input_spec=SPEC)
    assert all(torch.equal(value, backbone.net.state_dict()[name]) for name, value in wanted.state_dict().items())
    # a child may have a name that files of other programs put in front of all names
    wrapped = nn.Sequential()
    wrapped.add_module("net", Net())
    prefixed = {f"module.net.{name}": value for name, value in wanted.state_dict().items()}
    torch.save({"state_dict": prefixed}, tmp_path / "net.ckpt")
    inner = finetune.build_backbone(wrapped, stages={"stem": ["net"]}, weights=tmp_path / "net.ckpt", input_spec=SPEC)
    assert all(torch.equal(value, inner.net.state_dict()[f"net.{name}"]) for name, value in wanted.state_dict().items())
    with pytest.raises(
        UserError, match=r"^weights='imagenet': no library has weights for .*\.Net\. Give a path, or 'none' to keep"
    ):
        finetune.build_backbone(Net(), stages=STAGES, weights="imagenet", input_spec=SPEC)


def test_settings_of_a_module_are_refused_for_a_library_s_network_and_the_other_way_round() -> None:
    with pytest.raises(UserError, match=r"stages: only for a module of your own"):
        finetune.build_backbone("resnet18", weights="none", stages=STAGES)
    with pytest.raises(UserError, match=r"drop_rate: not taken for a module of your own"):
        finetune.build_backbone(Net(), stages=STAGES, drop_rate=0.1)
    with pytest.raises(UserError, match=r"backbone: must be what finetune.build_backbone returns. It is a Net"):
        finetune.build_classifier(Net(), classes=CLASSES)  # type: ignore[arg-type]  # the mistake under test


def test_a_model_of_own_modules_comes_back_from_its_bundle_to_the_bit(tmp_path: Path) -> None:
    model = own_model()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    finetune.save_bundle(model, tmp_path / "out")
    again = finetune.load(tmp_path / "out", modules={"head": Head(16, 3), "backbone": Net()})
    assert torch.equal(again(images), model(images))
    assert (again.classes, again.stages, again.input_spec) == (CLASSES, model.stages, model.input_spec)
    assert again.describe() == model.describe()


def test_a_model_of_library_parts_is_saved_and_loaded_without_a_word_more(tmp_path: Path) -> None:
    backbone = finetune.build_backbone("resnet18", weights="none")
    model = finetune.build_classifier(backbone, classes=CLASSES, size=(32, 32)).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    finetune.save_bundle(model, tmp_path)
    assert torch.equal(finetune.load(tmp_path)(images), model(images))


def test_a_bundle_names_the_classes_that_it_needs_and_holds_no_pickle(tmp_path: Path) -> None:
    finetune.save_bundle(own_model(), tmp_path)
    described = json.loads((tmp_path / "model.json").read_text())["model"]
    assert described["head"]["class"] == "tests.models.own_parts.Head"
    assert described["backbone"]["name"] == "tests.models.own_parts.Net"
    assert described["backbone"]["kwargs"] == {"stages": STAGES}
    card = (tmp_path / "README.md").read_text().replace("\\", "")
    assert "tests.models.own_parts.Head (head)" in card
    assert "tests.models.own_parts.Net (backbone)" in card
    assert 'modules={"head": Head(...), "backbone": Net(...)}' in card
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".safetensors"}


def test_a_bundle_is_refused_with_the_missing_classes_named_and_the_call_that_gives_them(tmp_path: Path) -> None:
    finetune.save_bundle(own_model(), tmp_path)
    with pytest.raises(
        UserError, match=r"parts\.Head \(head\), .*parts\.Net \(backbone\)\. None .*modules=\{.head.: Head"
    ) as all_of:
        finetune.load(tmp_path)
    assert "--trust" not in str(all_of.value)  # they came as objects: nothing says how they are built
    with pytest.raises(UserError, match=r"not part of finetune: tests\.models\.own_parts\.Head \(head\)\. None of it"):
        finetune.load(tmp_path, modules={"backbone": Net()})
    with pytest.raises(UserError, match=r"parts\.Head \(head\)"):
        finetune.load(tmp_path, modules={"backbone": Net()}, trust=True)


def test_modules_that_do_not_fit_a_bundle_are_refused(tmp_path: Path) -> None:
    finetune.save_bundle(own_model(), tmp_path)
    with pytest.raises(UserError, match=r"modules: must take the weights in .*size mismatch .*Build .*Head"):
        finetune.load(tmp_path, modules={"head": Head(16, 3, width=9), "backbone": Net()})
    with pytest.raises(UserError, match=r"head: torch\.nn\..* to logits \(B, 3\)\. .* gave \(2, 4\)"):
        finetune.load(tmp_path, modules={"head": nn.Linear(16, 4), "backbone": Net()})
    with pytest.raises(UserError, match=r"modules\['neck'\]: not needed\. This model needs head, backbone"):
        finetune.load(tmp_path, modules={"head": Head(16, 3), "backbone": Net(), "neck": Net()})


def test_a_class_of_another_name_is_loaded_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Renamed(Head):
        pass

    finetune.save_bundle(own_model(), tmp_path)
    with caplog.at_level(logging.WARNING):
        finetune.load(tmp_path, modules={"head": Renamed(16, 3), "backbone": Net()})
    assert "head: saved with tests.models.own_parts.Head, loaded into" in caplog.text


def test_an_own_backbone_and_head_train_by_stages_under_the_user_s_trainer_and_come_back(tmp_path: Path) -> None:
    model = own_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    module = finetune.FineTuner(model, train=["layer2", "head"], lr=1e-2, layer_decay=0.5, loss=nn.CrossEntropyLoss())
    with trainer(2) as user:
        user.fit(module, loader(), loader(seed=1))
    moved = {
        model.stage_of(name) for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert moved == {"layer2", "head"}
    finetune.save_bundle(model, tmp_path)
    again = finetune.load(tmp_path, modules={"head": Head(16, 3), "backbone": Net()})
    images, _ = next(iter(loader(seed=2)))
    assert torch.equal(again(images), model.eval()(images))

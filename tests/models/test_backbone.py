"""The contract that every source keeps, shown as a matrix; splitting, gates, and messages."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from finetune.errors import UserError
from finetune.models.backbone import Backbone
from finetune.models.build import backbone_from_description, build_backbone
from finetune.models.classifier import Classifier, build_classifier, classifier_from_description
from finetune.models.weights import save_backbone

Settle = Callable[[nn.Module], nn.Module]
IMAGES_BSHW = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

SMALL_VIT = {"embed_dim": 48, "depth": 2, "num_heads": 4}
SOURCES: dict[str, dict[str, Any]] = {
    "timm resnet18": {"source": "timm", "name": "resnet18"},
    "timm resnet18d": {"source": "timm", "name": "resnet18d"},
    "timm seresnet18": {"source": "timm", "name": "seresnet18"},
    "timm resnetv2_18": {"source": "timm", "name": "resnetv2_18"},
    "timm convnext_atto": {"source": "timm", "name": "convnext_atto"},
    "timm efficientnet_b0": {"source": "timm", "name": "efficientnet_b0"},
    "timm vit_tiny": {"source": "timm", "name": "vit_tiny_patch16_224", "img_size": 32},
    "timm vit siglip": {"source": "timm", "name": "vit_base_patch16_siglip_224", "img_size": 32, **SMALL_VIT},
    "timm eva dinov3": {"source": "timm", "name": "vit_small_patch16_dinov3", "img_size": 32, "depth": 2},
    "timm cait": {"source": "timm", "name": "cait_xxs24_224", "img_size": 32, "depth": 1},
    "torchvision resnet18": {"source": "torchvision", "name": "resnet18"},
    "torchvision resnext50": {"source": "torchvision", "name": "resnext50_32x4d"},
    "transformers resnet-18": {"source": "transformers", "name": "microsoft/resnet-18"},
    "residual gated resnet18": {"source": "residual", "name": "resnet18", "scaling": "layerscale"},
    "residual pre cifar_resnet20": {"source": "residual", "name": "cifar_resnet20", "activation": "pre"},
    "residual fixup cifar_resnet20": {
        "source": "residual",
        "name": "cifar_resnet20",
        "norm": "none",
        "scaling": "fixup",
    },
    "finetune export": {"source": "timm", "name": "resnet18", "exported": True},
}
# networks that are no chain of modules; they split after their last stage
WHOLE = ("timm cait",)


def build(case: str, tmp_path: Path) -> Backbone:
    kwargs = dict(SOURCES[case])
    if not kwargs.pop("exported", False):
        return build_backbone(**kwargs, weights="none")
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, backbone=build_backbone(**kwargs, weights="none", seed=5), size=(32, 32))
    return build_backbone(**kwargs, weights=str(path))


def classifier(backbone: Backbone, *, channels: int = 3, adapt: str = "expand", head: str = "linear") -> Classifier:
    return build_classifier(
        backbone=backbone, head={"name": head}, classes=("a", "b", "c"), channels=channels, adapt=adapt, size=(32, 32)
    )


def images(channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, channels, 32, 32), dtype=torch.uint8, generator=generator)


def check_stages(backbone: Backbone) -> None:
    names = [*dict(backbone.net.named_parameters()), *backbone.net.state_dict()]
    assert {backbone.stage_of(name) for name in names} == set(backbone.stages)
    assert backbone.stages[0] == "stem"
    placed = [module for modules in backbone.stage_modules().values() for module in modules]
    assert len(placed) == len(set(placed))
    assert set(placed) == set(backbone.net.modules())


def check_freezing(backbone: Backbone) -> None:
    """All but the last stage and the head frozen: after two steps these moved and nothing else did, buffers included."""
    model = classifier(backbone)
    trained = model.stages[-2:]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(model.stage_of(name) in trained)
    for stage, modules in model.stage_modules().items():
        for module in modules:
            module.training = stage in trained
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images(3)), torch.arange(3)).backward()
        optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {model.stage_of(name) for name in moved} == set(trained)


def check_rates(backbone: Backbone) -> None:
    """One optimizer group a stage covers every parameter once."""
    model = classifier(backbone)
    groups = {
        stage: [parameter for name, parameter in model.named_parameters() if model.stage_of(name) == stage]
        for stage in model.stages
    }
    assert all(groups.values())
    assert sum(map(len, groups.values())) == len(list(model.parameters()))


@torch.no_grad()
def check_channels(backbone: Backbone) -> None:
    for channels, adapt in ((1, "expand"), (1, "fold"), (1, "sum"), (1, "reinit"), (3, "expand"), (5, "tile")):
        model = classifier(copy.deepcopy(backbone), channels=channels, adapt=adapt).eval()
        assert model(images(channels)).shape == (3, 3)
    grey = images(1)
    expand, fold = (classifier(copy.deepcopy(backbone), channels=1, adapt=way).eval() for way in ("expand", "fold"))
    reference = expand.double().embed(grey)
    # a network in double precision, folded in double precision
    exact = classifier(copy.deepcopy(backbone).double(), channels=1, adapt="fold").double().eval()
    assert (exact.embed(grey) - reference).norm() < 1e-12 * reference.norm().clamp(min=1e-6)
    assert (fold.embed(grey) - reference).norm() < 1e-4 * reference.norm().clamp(min=1e-6)


@torch.no_grad()
def check_heads(backbone: Backbone) -> None:
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    for head in ("linear", "mlp", "cosine"):
        assert classifier(backbone, head=head).eval()(images(3)).shape == (3, 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


@torch.no_grad()
def check_round_trip(backbone: Backbone) -> None:
    model = classifier(backbone, channels=1, adapt="fold").eval()
    again = classifier_from_description(json.loads(json.dumps(model.describe()))).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(images(1)), model(images(1)))
    assert again.stages == model.stages


@torch.no_grad()
def check_split(backbone: Backbone, *, everywhere: bool) -> None:
    backbone.eval()
    features_BD = backbone(IMAGES_BSHW)
    assert features_BD.shape == (2, backbone.num_features)
    assert backbone.boundaries == (backbone.stages if everywhere else backbone.stages[-1:])
    for stage in backbone.boundaries:
        prefix, suffix = backbone.split(stage)
        assert torch.equal(suffix(prefix(IMAGES_BSHW)), features_BD)
        owned = {id(parameter) for parameter in prefix.parameters()}
        inside = backbone.stages[: backbone.stages.index(stage) + 1]
        expected = {id(p) for name, p in backbone.net.named_parameters() if backbone.stage_of(name) in inside}
        assert owned == expected


def test_every_source_keeps_the_contract(tmp_path: Path, settled: Settle, capsys: pytest.CaptureFixture[str]) -> None:
    checks: dict[str, Callable[[Backbone], None]] = {
        "stages": check_stages,
        "freezing": check_freezing,
        "rates": check_rates,
        "channels": check_channels,
        "heads": check_heads,
        "round trip": check_round_trip,
    }
    rows, failures = [], []
    for case in SOURCES:
        fresh = build(case, tmp_path)
        settled(fresh.net)
        cells = []
        for what, check in [*checks.items(), ("split", None)]:
            backbone = copy.deepcopy(fresh)
            try:
                check(backbone) if check else check_split(backbone, everywhere=case not in WHOLE)
                cells.append("ok")
            except Exception as error:
                cells.append("FAILED")
                failures.append(f"{case}, {what}: {type(error).__name__} {error}")
        rows.append((case, cells))
    with capsys.disabled():
        print(f"\n{'':32}" + "".join(f"{what:12}" for what in [*checks, "split"]))
        for case, cells in rows:
            print(f"{case:32}" + "".join(f"{cell:12}" for cell in cells))
    assert not failures, "\n".join(failures)


@torch.no_grad()
@pytest.mark.parametrize("scaling", ["skipinit", "layerscale"])
def test_gates_on_trained_weights_change_no_bit_and_then_select_what_trains(
    scaling: str, tmp_path: Path, settled: Settle
) -> None:
    plain = build_backbone(source="torchvision", name="resnet18", weights="none")
    torch.save(settled(plain.net).state_dict(), tmp_path / "trained.pth")
    path = str(tmp_path / "trained.pth")
    gated = build_backbone(source="residual", name="resnet18", weights=path, scaling=scaling)
    assert torch.equal(gated.eval()(IMAGES_BSHW), plain.eval()(IMAGES_BSHW))
    model = classifier(gated)
    gates = {name for name in dict(model.named_parameters()) if name.endswith(".gate")}
    norms = {name for name in dict(model.named_parameters()) if ".bn" in name or ".downsample.1" in name}
    norms |= {name for name in dict(model.named_parameters()) if name.startswith("backbone.net.bn1")}
    assert len(gates) == 8
    assert model.select("gates") == gates | norms
    assert model.select("norms") == norms
    assert model.select("head") == {"head.fc.weight", "head.fc.bias"}


def test_gates_that_are_not_there_are_an_error_and_not_an_empty_choice() -> None:
    model = classifier(build_backbone(source="timm", name="resnet18", weights="none"))
    with pytest.raises(UserError, match=r"'resnet18' has none. Gates: backbone=residual"):
        model.select("gates")
    with pytest.raises(UserError, match="not a kind of parameters"):
        model.select("gate")


def test_a_copy_of_a_backbone_is_split_into_its_own_modules() -> None:
    backbone = build_backbone(source="torchvision", name="resnet18", weights="none")
    prefix, _ = copy.deepcopy(backbone).split("stem")
    assert not {id(p) for p in prefix.parameters()} & {id(p) for p in backbone.parameters()}


def test_a_network_that_is_no_chain_says_where_it_can_be_split() -> None:
    backbone = build_backbone(source="timm", name="cait_xxs24_224", weights="none", img_size=32, depth=1)
    with pytest.raises(ValueError, match=r"after .stem., only after blocks"):
        backbone.split("stem")


SMALL_SWIN = {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4]}


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("mobilenetv3_small_100", {}),
        ("mobilenetv4_conv_small", {}),
        ("regnety_002", {}),
        ("repvgg_a0", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": 32, **SMALL_SWIN}),
        ("swinv2_tiny_window8_256", {"img_size": 32, **SMALL_SWIN}),
        ("eva02_tiny_patch14_224", {"img_size": 32, "depth": 2}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 32, **SMALL_VIT}),
    ],
)
def test_networks_that_people_use_are_cut_after_every_stage_to_the_bit(
    name: str, kwargs: dict[str, Any], settled: Settle
) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(source="timm", name=name, weights="none", **kwargs)
    settled(backbone.net)
    check_split(backbone, everywhere=True)


@torch.no_grad()
def test_a_rotary_network_that_takes_any_size_is_cut_to_the_bit_at_any_size() -> None:
    small = {"img_size": (64, 32), "depth": 2, "embed_dim": 48, "num_heads": 4, "num_kv_heads": 4}
    backbone = build_backbone("vit_base_patch16_sapiens2", weights="none", **small).eval()
    for size in ((64, 32), (32, 64), (48, 48)):
        images_BSHW = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        for stage in backbone.boundaries:
            prefix, suffix = backbone.split(stage)
            assert torch.equal(suffix(prefix(images_BSHW)), backbone(images_BSHW)), (size, stage)


@pytest.mark.parametrize(
    ("name", "kwargs"), [("vit_tiny_patch16_224", SMALL_VIT), ("swin_tiny_patch4_window7_224", SMALL_SWIN)]
)
@torch.no_grad()
def test_a_network_of_one_size_takes_another_with_its_tables_resampled(
    name: str, kwargs: dict[str, Any], tmp_path: Path
) -> None:
    native = build_backbone(source="timm", name=name, weights="none", **kwargs)
    model = build_classifier(native, classes=("a", "b"), size=(64, 96)).eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits_BK, features_BD = model(pixels), model.embed(pixels)
    # bundle: rebuilt from its description
    again = classifier_from_description(json.loads(json.dumps(model.describe()))).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(pixels), logits_BK)
    # exported backbone: its size comes with its weights
    save_backbone(tmp_path / "backbone.safetensors", backbone=model.backbone, size=(64, 96))
    loaded = build_backbone(source="timm", name=name, weights=tmp_path / "backbone.safetensors", **kwargs)
    assert loaded.input_spec.size == (64, 96)
    assert torch.equal(build_classifier(loaded, classes=("a", "b")).eval().embed(pixels), features_BD)
    for stage in loaded.boundaries:
        prefix, suffix = loaded.split(stage)
        assert torch.equal(suffix(prefix(model.prepare(pixels))), features_BD)


@torch.no_grad()
def test_a_position_table_of_another_size_is_resampled_as_timm_does(tmp_path: Path) -> None:
    small = build_backbone("vit_tiny_patch16_224", weights="none", img_size=64, **SMALL_VIT)
    save_file(small.net.state_dict(), tmp_path / "small.safetensors")
    loaded = build_backbone("vit_tiny_patch16_224", weights=tmp_path / "small.safetensors", **SMALL_VIT)
    table = small.net.get_parameter("pos_embed")
    expected = resample_abs_pos_embed(table, new_size=[14, 14], old_size=[4, 4], num_prefix_tokens=1)
    assert torch.equal(loaded.net.get_parameter("pos_embed"), expected)
    # a table that is not square cannot be told from its length
    wide = build_classifier(small, classes=("a", "b"), size=(64, 32))
    save_file(wide.backbone.net.state_dict(), tmp_path / "wide.safetensors")
    with pytest.raises(UserError, match=r"other shape \(1\): pos_embed 1x9x48 instead of 1x197x48"):
        build_backbone("vit_tiny_patch16_224", weights=tmp_path / "wide.safetensors", **SMALL_VIT)


def test_a_size_that_patches_do_not_divide_is_told_and_one_that_cannot_be_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    build_classifier(
        build_backbone("vit_tiny_patch16_224", weights="none", **SMALL_VIT), classes=("a", "b"), size=(64, 100)
    )
    assert "patches of 16 pixels leave a margin" in caplog.text
    assert "Choose 96." in caplog.text
    for name, kwargs, message in (
        ("vit_small_patch16_dinov3", {"depth": 1}, r"cannot be changed to these.*divisible by patch size"),
        ("cait_xxs24_224", {"depth": 1}, r"takes only 224x224 pixels.* backbone\.kwargs\.img_size=\[64, 100\]"),
    ):
        with pytest.raises(UserError, match=message):
            build_classifier(build_backbone(name, weights="none", **kwargs), classes=("a", "b"), size=(64, 100))


def test_random_weights_come_from_the_seed_and_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (
        build_backbone(source="timm", name="resnet18", weights="none", seed=seed).net.get_parameter("conv1.weight")
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"source": "tim"}, "backbone.source='tim': unknown. .* Did you mean 'timm'"),
        ({"name": "resnet81"}, "timm .* has no such network"),
        ({"name": "resnet18.a9_in1k"}, "backbone.name='resnet18.a9_in1k': "),
        ({"source": "torchvision", "name": "vgg11"}, "not one of torchvision's ResNets"),
        ({"source": "residual", "name": "resnet20"}, "not in the family"),
        ({"depth": 3}, "backbone.kwargs=.*depth.*cannot be built with them"),
        ({"num_classes": 3}, "backbone.kwargs.num_classes=3: is set by finetune itself"),
        ({"source": "transformers", "name": "microsoft/resnet-50", "widths": 3}, "not fields of ResNetConfig"),
    ],
)
def test_what_does_not_exist_is_refused_by_its_name(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_backbone(**{"source": "timm", "name": "resnet18", "weights": "none", **kwargs})


def test_a_description_that_lacks_a_key_is_refused() -> None:
    description = build_backbone(source="timm", name="resnet18", weights="none").describe()
    del description["kwargs"]
    with pytest.raises(UserError, match="needs the keys"):
        backbone_from_description(description)

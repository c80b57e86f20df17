"""Stages: every parameter, buffer and module of a network in exactly one, for networks of any shape."""

import pytest
import timm
import torch
from torch import nn

from finetune.models.build import build_backbone
from finetune.models.stages import StageMap, group_names

EXPECTED = {
    "resnet18": ["stem", "layer1", "layer2", "layer3", "layer4"],
    "resnetv2_50": ["stem", "stages.0", "stages.1", "stages.2", "stages.3"],
    "convnext_atto": ["stem", "stages.0", "stages.1", "stages.2", "stages.3"],
    "vit_tiny_patch16_224": ["stem", *(f"blocks.{i}" for i in range(12))],
    "efficientnet_b0": ["stem", *(f"blocks.{i}" for i in range(7))],
    "mobilenetv3_small_050": ["stem", *(f"blocks.{i}" for i in range(6)), "conv_head"],
    "densenet121": ["stem", *(f"features.denseblock{i}" for i in (1, 2, 3, 4))],
    "regnetx_002": ["stem", "s1", "s2", "s3", "s4"],
    "swin_tiny_patch4_window7_224": ["stem", *(f"layers.{i}" for i in range(4))],
}


@pytest.mark.parametrize("name", list(EXPECTED))
def test_the_stages_of_a_timm_network_are_its_own_groups_in_order(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(source="timm", name=name, weights="none")
    assert list(backbone.stages) == EXPECTED[name]
    for key in [*dict(backbone.net.named_parameters()), *dict(backbone.net.named_buffers())]:
        assert backbone.stage_of(key) in backbone.stages
    placed = [module for modules in backbone.stage_modules().values() for module in modules]
    assert len(placed) == len(set(placed))
    assert set(placed) == set(backbone.net.modules())


def test_a_last_norm_alone_joins_the_stage_before_it() -> None:
    with torch.device("meta"):
        backbone = build_backbone(source="timm", name="convnext_atto", weights="none")
    assert backbone.stage_of("head.norm.weight") == "stages.3"


def test_a_buffer_is_in_the_stage_of_its_module() -> None:
    backbone = build_backbone(source="timm", name="resnet18", weights="none")
    assert backbone.stage_of("bn1.running_mean") == "stem"
    assert backbone.stage_of("layer3.1.bn2.num_batches_tracked") == "layer3"


def test_a_module_without_parameters_goes_with_what_runs_before_it() -> None:
    backbone = build_backbone(source="timm", name="vit_tiny_patch16_224", weights="none", drop_rate=0.1)
    stage_of_module = {module: stage for stage, modules in backbone.stage_modules().items() for module in modules}
    net = backbone.net
    assert stage_of_module[net.get_submodule("pos_drop")] == "stem"
    assert stage_of_module[net.get_submodule("blocks.3.mlp.drop1")] == "blocks.3"
    assert stage_of_module[net.get_submodule("head_drop")] == "blocks.11"
    # the network owns the class token itself
    assert stage_of_module[net] == "stem"


def test_a_module_used_under_two_names_is_in_one_stage() -> None:
    with torch.device("meta"):
        backbone = build_backbone(source="timm", name="coat_tiny", weights="none")
    shared = "serial_blocks1.0.cpe.proj.weight"
    assert shared in backbone.net.state_dict()
    assert shared not in dict(backbone.net.named_parameters())
    assert backbone.stage_of(shared) == backbone.stage_of("cpe1.proj.weight")
    placed = [module for modules in backbone.stage_modules().values() for module in modules]
    assert len(placed) == len(set(placed)) == len(list(backbone.net.modules()))


def test_a_group_is_never_called_head() -> None:
    assert group_names([["a.w"], ["head.w"]]) == ("stem", "head.w")
    assert group_names([["a.w"], ["head"]]) == ("stem", "group1")


def test_a_parameter_without_a_stage_is_an_error_that_names_it() -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"'1\.bias'"):
        StageMap(net, names=["stem", "b"], groups=[["0.weight", "0.bias"], ["1.weight"]])
    with pytest.raises(ValueError, match=r"'0\.bias' is in two stages"):
        StageMap(net, names=["stem", "b"], groups=[["0.weight", "0.bias"], ["0.bias"]])


def test_timm_names_networks_that_the_expectations_cover() -> None:
    assert set(EXPECTED) <= set(timm.list_models())

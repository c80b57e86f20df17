"""The names of transformers' ResNet and of torchvision's map onto each other, one to one."""

import pytest
import torch
import torchvision
import transformers

from finetune.models.build import build_backbone
from finetune.models.state_dict_names import is_transformers_layout, to_torchvision, to_transformers


@pytest.mark.parametrize("depth", [18, 50])
def test_every_name_of_one_layout_is_a_name_of_the_other(depth: int) -> None:
    with torch.device("meta"):
        fields = build_backbone(source="transformers", name=f"microsoft/resnet-{depth}", weights="none").kwargs
        theirs = transformers.ResNetForImageClassification(transformers.ResNetConfig(**fields)).state_dict()
        ours = torchvision.models.get_model(f"resnet{depth}").state_dict()
    theirs = {name.removeprefix("resnet."): tensor for name, tensor in theirs.items()}
    assert set(to_torchvision(theirs)) == set(ours)
    assert set(to_transformers(ours)) == set(theirs)
    assert set(to_transformers(to_torchvision(theirs))) == set(theirs)
    assert is_transformers_layout(theirs)
    assert not is_transformers_layout(ours)

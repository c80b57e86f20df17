"""Features equal the network's at the chosen stage, and the same network can be loaded again."""

from pathlib import Path

import numpy as np
import pytest
import torch

import finetune
from finetune.bundle import load_bundle
from finetune.data.decode import decode_image
from finetune.data.image_file import read_image_file
from finetune.embeddings.extractor import (
    FeatureExtractor,
    extractor_from_backbone,
    extractor_from_classifier,
    extractor_from_run,
    restore_extractor,
)
from finetune.errors import UserError
from finetune.models.build import build_backbone
from tests.bundles import small_bundle
from tests.export.odd_files import write_files
from tests.export.trained import settled_classifier


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("bundle"), size=(32, 32))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_by_default_they_are_the_features_below_the_head(bundle: Path, images: torch.Tensor) -> None:
    model = load_bundle(bundle)
    with torch.inference_mode():
        expected = model.embed(images).numpy()
    # BatchNorm is folded into the convolutions
    np.testing.assert_allclose(
        extractor_from_run(bundle).embed(list(images)), expected, rtol=0, atol=1e-5 * expected.max()
    )


@pytest.mark.parametrize("stage", ["stem", "layer1", "layer2", "layer3", "layer4"])
def test_of_a_stage_they_are_its_output_averaged_over_places(stage: str, images: torch.Tensor) -> None:
    model = settled_classifier(name="resnet10t")
    net = model.backbone.net
    seen: dict[str, torch.Tensor] = {}
    module = net.get_submodule("maxpool" if stage == "stem" else stage)
    module.register_forward_hook(lambda module, given, output: seen.update(output=output))
    with torch.inference_mode():
        model(images)
    expected = seen["output"].mean((2, 3)).numpy()
    made = extractor_from_classifier(model, stage=stage).embed(list(images))
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_tokens_are_averaged_over_their_sequence(images: torch.Tensor) -> None:
    class Tokens(torch.nn.Module):
        def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
            return images_BCHW.flatten(2).transpose(1, 2)

    extractor = extractor_from_classifier(settled_classifier(name="resnet10t"))
    extractor.net = Tokens()
    normalised = extractor.input(images / 255)
    np.testing.assert_allclose(extractor.embed(list(images)), normalised.mean((2, 3)).numpy(), atol=1e-6)


def bare(**settings: object) -> FeatureExtractor:
    backbone = build_backbone(source="timm", name="resnet10t", weights="none", seed=3)
    return extractor_from_backbone(backbone, weights="none", seed=3, size=(32, 32), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_backbone_that_was_never_trained_here_can_be_had_again(channels: int) -> None:
    images = list(torch.randint(0, 256, (3, channels, 32, 32), dtype=torch.uint8))
    first = bare(channels=channels, adapt="fold" if channels == 1 else "expand", stage="layer2")
    again = restore_extractor({**first.identity, "model": first.model})
    np.testing.assert_array_equal(again.embed(images), first.embed(images))
    assert again.identity == first.identity


def test_a_network_of_one_size_at_another_can_be_had_again() -> None:
    backbone = build_backbone("vit_tiny_patch16_224", weights="none", embed_dim=48, depth=1, num_heads=3)
    first = extractor_from_backbone(backbone, weights="none", seed=0, size=(32, 48))
    again = restore_extractor({**first.identity, "model": first.model})
    images = list(torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8))
    np.testing.assert_array_equal(again.embed(images), first.embed(images))
    assert again.identity == first.identity


def test_a_run_can_be_had_again_also_where_it_was_moved(bundle: Path, images: torch.Tensor, tmp_path: Path) -> None:
    first = extractor_from_run(bundle, stage="layer3")
    metadata = {**first.identity, "model": first.model}
    np.testing.assert_array_equal(restore_extractor(metadata).embed(list(images)), first.embed(list(images)))
    bundle_moved = tmp_path / "moved"
    bundle_moved.symlink_to(bundle)
    metadata["model"] = {**first.model, "run": str(tmp_path / "gone")}
    with pytest.raises(UserError, match=r"gone': no such folder.*give --model RUN"):
        restore_extractor(metadata)
    np.testing.assert_array_equal(
        restore_extractor(metadata, run=bundle_moved).embed(list(images)), first.embed(list(images))
    )


def test_other_weights_than_those_that_made_the_embeddings_are_refused(bundle: Path, tmp_path: Path) -> None:
    first = extractor_from_run(bundle)
    other = small_bundle(tmp_path / "other", size=(32, 32), seed=5)
    with pytest.raises(UserError, match="holds other weights than those that made the embeddings"):
        restore_extractor({**first.identity, "model": first.model}, run=other)
    model = bare().model
    with pytest.raises(UserError, match="holds other weights"):
        restore_extractor({**bare().identity, "model": {**model, "seed": 4}})


def test_a_record_of_somebody_elses_opens_no_files(tmp_path: Path) -> None:
    first = bare()
    description = {**first.model["backbone"], "kwargs": {"checkpoint_path": "/etc/passwd"}}
    metadata = {**first.identity, "model": {**first.model, "backbone": description}}
    with pytest.raises(UserError, match="checkpoint_path would read files or the network"):
        restore_extractor(metadata)
    with pytest.raises(UserError, match="record of the model is damaged"):
        restore_extractor({"model": {}})
    # nor does it decide whom this machine contacts
    with pytest.raises(UserError, match="no server, because a file names it and not you"):
        restore_extractor({**first.identity, "model": {**first.model, "weights": "hub:someone/net"}})


def test_a_folder_of_the_name_of_the_weights_is_not_recorded_as_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()
    assert bare().model["weights"] == "none"


def test_a_model_in_training_gives_the_same_features_and_stays_as_it_is(images: torch.Tensor) -> None:
    model = settled_classifier(name="resnet10t")
    expected = finetune.embed(model.eval(), images).features
    model.train()
    model.backbone.net.get_submodule("layer1").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    np.testing.assert_array_equal(finetune.embed(model, images).features, expected)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_unknown_stages_are_told(bundle: Path) -> None:
    with pytest.raises(UserError, match=r"--stage layer5: not a stage of 'resnet10t'.*Did you mean 'layer4'"):
        extractor_from_run(bundle, stage="layer5")
    cait = build_backbone(source="timm", name="cait_xxs24_224", weights="none", img_size=32, depth=1)
    with pytest.raises(UserError, match=r"--stage stem: 'cait_xxs24_224' does not expose the output of this stage"):
        extractor_from_backbone(cait, weights="none", seed=0, stage="stem")


def test_a_stage_inside_a_transformer_is_averaged_over_tokens_or_places() -> None:
    images = list(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
    # the first is no chain of modules, the others are
    for name, stage in (
        ("cait_xxs24_224", "blocks.2"),
        ("vit_tiny_patch16_224", "blocks.2"),
        ("swin_tiny_patch4_window7_224", "layers.1"),
    ):
        backbone = build_backbone(source="timm", name=name, weights="none", img_size=64)
        extractor = extractor_from_backbone(backbone, weights="none", seed=0, stage=stage)
        seen: dict[str, torch.Tensor] = {}
        module = backbone.net.get_submodule(stage)
        hook = module.register_forward_hook(lambda module, given, output, seen=seen: seen.update(output=output))
        made = extractor.embed(images)
        hook.remove()
        # one network gives tokens (B, N, D), the other maps (B, H, W, D): the features are last in both
        expected = seen["output"].flatten(1, -2).mean(1).numpy()
        np.testing.assert_allclose(made, expected, atol=1e-5)
        assert made.shape == (2, 192)
        assert not module._forward_hooks


def test_from_python_images_become_embeddings_and_are_found_again(bundle: Path, tmp_path: Path) -> None:
    paths = write_files(tmp_path, 12)
    found = finetune.embed(bundle, tmp_path)
    assert [found.paths[row] for row in range(12)] == paths
    extractor = extractor_from_run(bundle)
    views = [extractor.read(read_image_file(path), path) for path in paths]
    np.testing.assert_allclose(found.features, extractor.embed(views), atol=1e-5)
    model = finetune.load(bundle)
    pixels = decode_image(paths[2], channels=3)
    again = finetune.embed(model, torch.stack([pixels, pixels.flip(2)]), normalize=True)
    neighbours = finetune.search(found, again, k=2)
    assert neighbours.rows[0, 0] == 2
    assert neighbours.distances[0, 0] == pytest.approx(0, abs=1e-6)
    assert neighbours.distances[1, 0] > 1e-4
    np.testing.assert_allclose(np.linalg.norm(again.features, axis=1), 1, atol=1e-6)
    with pytest.raises(UserError, match=r"must be uint8 \(B, 3, H, W\)"):
        finetune.embed(model, torch.zeros(1, 3, 32, 32))

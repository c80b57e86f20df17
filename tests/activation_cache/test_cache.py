"""Training on cached activations is training, to the bit, and nothing frozen is computed twice."""

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetune.activation_cache.frozen_prefix import Prefix
from finetune.activation_cache.policy import last_frozen_stage, pool_size
from finetune.activation_cache.store import features_folder, list_entries
from finetune.build import assemble
from finetune.config import compose
from finetune.errors import UserError
from finetune.models.batch_norm_folding import fold_batch_norm
from finetune.models.memory_format import memory_format_for
from finetune.runners.train import decide
from tests.runs import train_tiny
from tests.training.building import phase_for, tiny_classifier

Words = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "the-cache"
    monkeypatch.setenv("FINETUNE_CACHE", str(folder))
    return folder


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one / "final.safetensors"), load_file(other / "final.safetensors")
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("augment", ["none", "standard"])
@pytest.mark.parametrize("train", ["[head]", "[layer4,head]", "[layer2,layer3,layer4,head]"])
def test_a_cached_phase_ends_in_the_same_bits(words: Words, tmp_path: Path, train: str, augment: str) -> None:
    # a network whose kernels compute an image alike in every batch; those of resnet10t at this size do not, in the last bit
    given = words(
        "schedule=frozen",
        f"schedule.phases.0.train={train}",
        "schedule.epochs=2",
        f"data.augment={augment}",
        "backbone.name=resnet18",
    )
    cached = train_tiny([*given, "schedule.cache=2"], tmp_path / "cached")
    uncached = train_tiny([*given, "schedule.cache=off"], tmp_path / "uncached")
    assert cached.results.phases[0].cached_after in ("layer4", "layer3", "layer1")
    assert uncached.results.phases[0].cached_after == ""
    assert same_weights(tmp_path / "cached", tmp_path / "uncached")
    assert (tmp_path / "cached/metrics.csv").read_bytes() == (tmp_path / "uncached/metrics.csv").read_bytes()


def test_a_pool_of_views_is_the_same_pool_without_a_cache(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = words("schedule=frozen", "schedule.epochs=4", "schedule.cache=2", "backbone.name=resnet18")
    train_tiny(given, tmp_path / "cached")
    monkeypatch.setenv("FINETUNE_CACHE", "off")
    uncached = train_tiny(given, tmp_path / "uncached")
    assert uncached.results.phases[0].cached_after == ""
    assert uncached.results.phases[0].views == 2
    assert same_weights(tmp_path / "cached", tmp_path / "uncached")


@pytest.mark.parametrize("cache", ["auto", "2", "3"])
def test_rows_held_by_the_device_are_those_of_the_file(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: str
) -> None:
    given = words("schedule=frozen", "schedule.epochs=4", f"schedule.cache={cache}")
    train_tiny(given, tmp_path / "read")
    # a line may be wrapped
    assert "in the memory of" not in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr("finetune.activation_cache.cache.room_on", lambda device: 10**9)
    train_tiny(given, tmp_path / "held")
    assert "kB, in the memory of cpu" in " ".join(capsys.readouterr().out.split())
    assert same_weights(tmp_path / "read", tmp_path / "held")
    assert (tmp_path / "read/metrics.csv").read_bytes() == (tmp_path / "held/metrics.csv").read_bytes()


def test_auto_trains_a_head_on_the_evaluation_view_of_each_image_computed_once(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words("schedule=frozen", "schedule.epochs=3", "data.augment=standard")
    auto = train_tiny(given, tmp_path / "auto")
    assert [getattr(auto.results.phases[0], key) for key in ("cached_after", "cached_view", "views")] == [
        "layer4",
        "evaluation",
        0,
    ]
    # each training image once whatever the epochs, and the validation images
    assert f"cached layer4 activations: {36 + 6} computed, 0 reused" in capsys.readouterr().out
    train_tiny([*given, "schedule.cache=features"], tmp_path / "features")
    train_tiny([*given, "data.augment=none"], tmp_path / "none")
    assert same_weights(tmp_path / "auto", tmp_path / "features")
    assert same_weights(tmp_path / "auto", tmp_path / "none")


def test_features_mean_the_evaluation_view_without_a_cache_too(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # resnet18: where batches of images and of cached rows are computed to the same bits
    given = words("schedule=frozen", "schedule.epochs=2", "schedule.cache=features", "backbone.name=resnet18")
    train_tiny(given, tmp_path / "cached")
    monkeypatch.setenv("FINETUNE_CACHE", "off")
    uncached = train_tiny(given, tmp_path / "uncached")
    assert uncached.results.phases[0].cached_after == ""
    assert uncached.results.phases[0].cached_view == "evaluation"
    assert same_weights(tmp_path / "cached", tmp_path / "uncached")


def test_a_second_run_computes_nothing(words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = words("schedule=frozen", "schedule.epochs=2", "schedule.cache=2")
    train_tiny(given, tmp_path / "first")
    assert "cached layer4 activations: 78 computed, 0 reused" in capsys.readouterr().out
    train_tiny([*given, "schedule.lr=0.5"], tmp_path / "second")
    assert "cached layer4 activations: 0 computed, 78 reused" in capsys.readouterr().out


ONE_EACH = [
    "schedule=gradual",
    "schedule.phases.0.solver=gradient",
    *(f"schedule.phases.{number}.epochs=1" for number in range(3)),
]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # one epoch sees each image once
        ([], [(None, None), (None, None), (None, None)]),
        (["schedule.phases.0.epochs=3"], [("layer4", None), (None, None), (None, None)]),
        # maps of the square root of the epochs
        (["schedule.phases.1.epochs=4"], [(None, None), ("layer3", 2), (None, None)]),
        (["schedule.phases.1.epochs=4", "schedule.phases.1.cache=3"], [(None, None), ("layer3", 3), (None, None)]),
        (
            ["schedule.phases.1.epochs=4", "schedule.phases.1.cache=features"],
            [(None, None), ("layer3", None), (None, None)],
        ),
        (["schedule.phases.1.epochs=4", "data.augment=none"], [(None, None), ("layer3", None), (None, None)]),
        (["schedule.phases.0.epochs=3", "cache.max_gb=1e-6"], [(None, None), (None, None), (None, None)]),
    ],
)
def test_which_views_each_phase_trains_on(
    words: Words, changes: list[str], expected: list[tuple[str | None, int | None]]
) -> None:
    config = compose(words(*ONE_EACH, *changes))
    policies = decide(config, assemble(config)).cache_policies
    assert [(cache.cached_stage, cache.views) for cache in policies] == expected


def test_a_chunk_that_is_still_being_loaded_is_not_computed_again(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("finetune.activation_cache.cache.CHUNK_ROWS", 4)
    # loader processes are handed chunks before those in front of them are written
    train_tiny(
        words("schedule=frozen", "schedule.epochs=2", "schedule.cache=2", "data.num_workers=2"), tmp_path / "run"
    )
    assert "cached layer4 activations: 78 computed, 0 reused" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["input.size=40", "data.augment=light", "seed=1", "backbone.name=resnet14t"])
def test_what_an_activation_depends_on_is_in_its_key(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    given = words("schedule=frozen", "schedule.epochs=2", "schedule.cache=2")
    train_tiny(given, tmp_path / "first")
    capsys.readouterr()
    train_tiny([*given, change], tmp_path / "second")
    out = capsys.readouterr().out
    # the view of validation has no augmentation
    found = 6 if change == "data.augment=light" else 0
    assert f"cached layer4 activations: {78 - found} computed, {found} reused" in out


def test_features_that_stay_in_single_precision_are_shared_by_no_other_precision(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # the sum of a vision transformer's blocks is float32 in half precision too, and differs
    given = words("schedule=frozen", "schedule.epochs=1", "schedule.cache=features", "backbone.name=test_vit")
    for precision in ("32-true", "bf16-mixed"):
        train_tiny([*given, f"trainer.precision={precision}"], tmp_path / precision)
        assert "activations: 42 computed, 0 reused" in capsys.readouterr().out
    torch.set_float32_matmul_precision("medium")
    try:
        train_tiny([*given, "trainer.precision=32-true"], tmp_path / "medium")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert "activations: 42 computed, 0 reused" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "precision", "item_bytes"),
    [
        ("resnet10t", "32-true", 4),
        ("resnet10t", "bf16-mixed", 2),
        ("test_vit", "bf16-mixed", 4),
    ],
)
def test_the_size_that_is_planned_is_the_size_that_is_written(
    words: Words, tmp_path: Path, name: str, precision: str, item_bytes: int
) -> None:
    chosen = [f"backbone.name={name}", f"trainer.precision={precision}", "schedule.cache=features"]
    train_tiny(words("schedule=frozen", "schedule.epochs=1", *chosen), tmp_path / "run")
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    features = 512 if name == "resnet10t" else 64
    folder = features_folder()
    assert folder is not None
    written = sum(file.stat().st_size for file in folder.glob("*/data.bin"))
    assert plan[0]["cache"]["bytes"] == written == 42 * features * item_bytes


def test_a_cached_phase_trains_in_double_precision(words: Words, tmp_path: Path) -> None:
    chosen = ["trainer.precision=64-true", "schedule.cache=features"]
    run = train_tiny(words("schedule=frozen", "schedule.epochs=1", *chosen), tmp_path / "run")
    assert run.results.phases[0].cached_after == "layer4"


def test_a_damaged_chunk_is_computed_again(words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = words("schedule=frozen", "schedule.epochs=2", "schedule.cache=1")
    train_tiny(given, tmp_path / "first")
    folder = features_folder()
    assert folder is not None
    files = sorted(folder.glob("*/data.bin"), key=lambda file: file.stat().st_size)
    with files[-1].open("r+b") as file:
        file.seek(100)
        file.write(b"\x13")
    capsys.readouterr()
    train_tiny(given, tmp_path / "second")
    assert "cached layer4 activations: 36 computed, 6 reused" in capsys.readouterr().out
    assert same_weights(tmp_path / "first", tmp_path / "second")


def test_the_pool_grows_with_the_root_of_the_epochs() -> None:
    assert [pool_size(epochs) for epochs in (1, 5, 30)] == [1, 2, 5]


@pytest.mark.parametrize(
    ("source", "name", "train", "cached_stage"),
    [
        ("timm", "resnet10t", ["head"], "layer4"),
        ("timm", "resnet10t", ["layer2", "layer3", "layer4", "head"], "layer1"),
        # layer2 is frozen, yet its input is not: it does not belong to the prefix
        ("timm", "resnet10t", ["layer1", "layer3", "head"], "stem"),
        ("timm", "resnet10t", ["stem", "head"], None),
    ],
)
def test_the_prefix_ends_where_something_trains(
    source: str, name: str, train: list[str], cached_stage: str | None
) -> None:
    classifier = tiny_classifier(source=source, name=name)
    assert last_frozen_stage(classifier, phase_for(classifier, train)) == cached_stage


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet18d", "convnext_atto"])
def test_a_folded_network_computes_the_same(name: str) -> None:
    classifier = tiny_classifier(name=name, size=64).eval()
    net, _ = classifier.backbone.split(classifier.backbone.stages[-1])
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    fused, was_folded = fold_batch_norm(net, images)
    with torch.inference_mode():
        expected, found = net(images), fused(images)
    # what has no BatchNorm stays as it is
    assert was_folded == (fused is not net) == (name != "convnext_atto")
    assert float((expected - found).abs().max() / expected.abs().max()) < 1e-5
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules()) == (name != "convnext_atto")
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())


@pytest.mark.parametrize("name", ["resnet18", "seresnet50", "resnet50_gn", "convnext_atto"])
def test_a_prefix_in_half_precision_gives_the_bits_of_the_folded_network(name: str) -> None:
    classifier = tiny_classifier(name=name, size=64).eval()
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=random)
    net, _ = classifier.backbone.split(classifier.backbone.stages[-1])
    with torch.no_grad():
        fused, was_folded = fold_batch_norm(net, classifier.prepare(images[:2]))
    fused.to(memory_format=memory_format_for(classifier.input_spec))
    with torch.autocast("cpu", torch.bfloat16):
        prefix = Prefix(classifier, classifier.backbone.stages[-1], fold=True)
        with torch.no_grad():
            expected = fused(classifier.prepare(images))
        assert torch.equal(prefix(images), expected)
    # what was not folded is the network that trains, whose weights stay what they are
    assert all(parameter.dtype == torch.float32 for parameter in classifier.parameters())
    assert prefix.folded == was_folded == (name in ("resnet18", "seresnet50"))


def test_no_copy_is_left_of_those_made_on_the_way_to_the_prefix() -> None:
    classifier = tiny_classifier(name="resnet18", size=64).eval()
    before = set(map(id, _read_by_fx()))
    gc.disable()
    try:
        with torch.autocast("cpu", torch.bfloat16):
            prefix = Prefix(classifier, classifier.backbone.stages[-1], fold=True)
        left = [net for net in _read_by_fx() if id(net) not in before]
    finally:
        gc.enable()
    assert prefix.folded
    assert len(left) == 1
    assert left[0] is prefix._net


def _read_by_fx() -> list[torch.fx.GraphModule]:
    # their types: asking some others what they are imports modules
    return [thing for thing in gc.get_objects() if issubclass(type(thing), torch.fx.GraphModule)]


def test_too_little_room_means_training_without_a_cache_and_is_said(words: Words, tmp_path: Path) -> None:
    run = train_tiny(words("schedule=frozen", "schedule.epochs=3", "cache.max_gb=1e-6"), tmp_path / "run")
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    assert "more than cache.max_gb=1e-06" in plan[0]["cache"]["why"]
    assert run.results.phases[0].cached_after == ""


def test_the_limit_deletes_what_was_used_longest_ago(words: Words, tmp_path: Path) -> None:
    given = words("schedule=frozen", "schedule.epochs=4", "schedule.cache=2")
    train_tiny(given, tmp_path / "first")
    before = {entry.folder.name for entry in list_entries()}
    size = sum(entry.bytes for entry in list_entries())
    train_tiny([*given, "input.size=40", f"cache.max_gb={1.5 * size / 1e9}"], tmp_path / "second")
    after = {entry.folder.name for entry in list_entries()}
    assert len(before) == 3
    assert len(after - before) == 3
    assert sum(entry.bytes for entry in list_entries()) <= 1.5 * size


def test_mixing_pixels_and_unfrozen_stems_train_without_a_cache(words: Words, tmp_path: Path) -> None:
    train_tiny(words("schedule=frozen", "schedule.epochs=2", "schedule.mixup=0.2"), tmp_path / "mixed")
    train_tiny(words("schedule=full", "schedule.epochs=2"), tmp_path / "full")
    for name, why in (("mixed", "mix pixels"), ("full", "no stage before the trained ones is frozen")):
        assert why in json.loads((tmp_path / name / "plan.json").read_text())[0]["cache"]["why"]
    assert not list(Path(os.environ["FINETUNE_CACHE"]).rglob("data.bin"))


@pytest.mark.parametrize("value", ["0", "-1", "some", "1.5"])
def test_a_wrong_setting_is_refused(words: Words, tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match=r"schedule\.cache=.*must be auto, off, features, or a number of views"):
        train_tiny(words(f"schedule.cache={value}"), tmp_path / "run")


def test_on_and_off_are_words(words: Words, tmp_path: Path) -> None:
    for value, expected in (("off", "off, as configured"), ("true", "after layer4")):
        train_tiny(words("schedule=frozen", "schedule.epochs=2", f"schedule.cache={value}"), tmp_path / value)
        plan = json.loads((tmp_path / value / "plan.json").read_text())
        assert plan[0]["cache"]["why"].startswith(expected)


def test_views_of_a_pool_are_all_used() -> None:
    from finetune.data.sampling import views_of

    rows = np.arange(200)
    later = np.stack([views_of(rows, epoch=epoch, views=3, seed=0, phase="head") for epoch in range(3, 9)])
    assert set(np.unique(later)) == {0, 1, 2}
    # by itself each image, by itself each epoch
    assert len({tuple(column) for column in later.T}) > 100
    assert len({tuple(row) for row in later}) == 6
